"""Which device trains, in which number format, and what memory it takes."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lora_trainer.errors import ConfigError

SMALL_MODEL = 100_000_000
"""Parameters below which float32 is as fast as bfloat16 on a CPU."""


def choose_device(name: str) -> torch.device:
    """auto -> the best device there is; else the named one. Raises ConfigError if it is not
    there.
    """
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


def choose_precision(setting: str, device: torch.device, parameter_count: int) -> torch.dtype:
    """mixed_precision -> the frozen model's dtype. Raises ConfigError for fp16 on a CPU, which has
    no such arithmetic.
    """
    if setting == "auto":
        return _best_precision(device, parameter_count)
    if setting == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision is fp16, but training runs on the CPU", hint="Use auto, bf16 or no."
        )
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[setting]


def precision_name(dtype: torch.dtype) -> str:
    """The value of mixed_precision that gives this dtype."""
    return {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def _best_precision(device: torch.device, parameter_count: int) -> torch.dtype:
    if device.type == "cuda":
        # bfloat16 has hardware from Ampere (8.0) on; emulated before, it is slower than float32
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    if device.type == "cpu":
        return (
            torch.bfloat16
            if parameter_count >= SMALL_MODEL and _cpu_has_bfloat16()
            else torch.float32
        )
    return torch.float16 if device.type == "mps" else torch.bfloat16


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX): without it, bfloat16 is
    many times slower than float32.
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
    """Most memory used so far in bytes: the card's, or on a CPU the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        # not getrusage: its peak is inherited from the process that started this one, which may be
        # a WebUI of many gigabytes
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(
            (
                int(line.split()[1]) * 1024
                for line in status.splitlines()
                if line.startswith("VmHWM:")
            ),
            0,
        )
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def free_memory(device: torch.device) -> None:
    """Give what is no longer referenced back to the system, so that the next part, or the host,
    finds room.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and sys.platform == "linux":
        _trim_heap()


def _trim_heap() -> None:
    """glibc keeps freed blocks; a text encoder's gigabyte would stay with the process."""
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another libc
        return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a foreign exception means that the device's or the system's memory is used up."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def describe_device(device: torch.device) -> str:
    """A name a person recognises."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return (
        f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
        if device.type == "cpu"
        else device.type
    )


def move_optimizer(optimizer: Any, device: torch.device) -> None:
    """Move the optimizer's running averages, in place."""
    for state in optimizer.state.values():
        for key, value in state.items():
            # the step counter stays on the CPU, where AdamW keeps it
            if isinstance(value, torch.Tensor) and key != "step":
                state[key] = value.to(device)
