"""Device, dtype and memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lora_trainer.errors import ConfigError

SMALL_MODEL = 100_000_000
"""Parameter count below which float32 is as fast as bfloat16 on a CPU."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""
_MOST = 2**31 - 1


def choose_device(name: str) -> torch.device:
    """ "auto" -> the best device, else the named one. Raises ConfigError if unavailable."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
    }
    if name == "auto":
        return torch.device(next((kind for kind, there in available.items() if there), "cpu"))
    device = torch.device(name)
    if not available.get(device.type, True) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        there = ", ".join([*(kind for kind, yes in available.items() if yes), "cpu"])
        raise ConfigError(
            "device is {name}, but this PyTorch ({version}) finds only: {there}",
            hint="Use auto.",
            name=name,
            version=torch.__version__,
            there=there,
        )
    return device


def listed_devices(device: str, devices: str) -> list[str]:
    """The settings `device` and `devices` -> the device of each process that trains on this
    machine.
    """
    if devices == "auto":
        return [device]
    if devices != "all":
        names = [name.strip() for name in devices.split(",")]
        return [f"cuda:{name}" if name.isdigit() else name for name in names]
    kind = choose_device(device).type
    count = {"cuda": torch.cuda.device_count, "xpu": _xpu_count}.get(kind, lambda: 1)()
    return [f"{kind}:{index}" for index in range(count)] if count > 1 else [device]


def _xpu_count() -> int:
    return int(torch.xpu.device_count())


def choose_precision(setting: str, device: torch.device, parameter_count: int) -> torch.dtype:
    """mixed_precision -> the frozen model's dtype. Raises ConfigError for fp16 on a CPU."""
    if setting == "auto":
        return _best_precision(device, parameter_count)
    if setting == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision is fp16, but training runs on the CPU", hint="Use auto, bf16 or no."
        )
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[setting]


def precision_name(dtype: torch.dtype) -> str:
    """The value of mixed_precision for this dtype."""
    return {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def uses_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a training with a frozen model in `dtype` has its forward passes under autocast."""
    return dtype != torch.float32 and device.type != "mps"


def _best_precision(device: torch.device, parameter_count: int) -> torch.dtype:
    if device.type == "cuda":
        # native bfloat16 since Ampere (8.0); emulated before, slower than float32
        is_native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_native else torch.float16
    if device.type == "cpu":
        is_faster = parameter_count >= SMALL_MODEL and processor_has_bfloat16()
        return torch.bfloat16 if is_faster else torch.float32
    return torch.float16 if device.type == "mps" else torch.bfloat16


def processor_has_bfloat16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX; otherwise bfloat16 is many times slower than
    float32.
    """
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        probe = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            return True
    if sys.platform == "linux" and not hasattr(torch.cpu, "_is_amx_tile_supported"):
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        # not getrusage, whose peak is inherited from the parent process, such as a WebUI
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peaks = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return next((int(line.split()[1]) * 1024 for line in peaks), 0)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def free_memory(device: torch.device) -> None:
    """Return unreferenced memory to the system or the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and sys.platform == "linux":
        _trim_heap()


def _trim_heap() -> None:
    """Make glibc return freed blocks to the system."""
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another libc
        return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that device or system memory is exhausted."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def describe_device(device: torch.device) -> str:
    """A name for people."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return device.type


def move_optimizer(optimizer: Any, device: torch.device) -> None:
    """Move the optimizer's state, in place."""
    for state in optimizer.state.values():
        for key, value in state.items():
            # AdamW keeps its step counter on the CPU
            if isinstance(value, torch.Tensor) and key != "step":
                state[key] = value.to(device)


def keep_freed_memory() -> None:
    """Let this process's allocator keep what is freed. Each step frees and takes the same blocks;
    given back to the system, every page of them is cleared and mapped anew. Does nothing where the
    C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
