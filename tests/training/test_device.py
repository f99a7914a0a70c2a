import psutil
import pytest
import torch

from lora_trainer.errors import ConfigError
from lora_trainer.training import device as devices


def test_a_device_that_is_not_there_gets_a_sentence():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ConfigError, match="device is cuda, but this PyTorch .* finds only: cpu"):
        devices.choose_device("cuda")
    assert devices.choose_device("cpu").type == "cpu"


def test_a_graphics_card_beyond_those_there_are_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [devices.choose_device(name).index for name in ("cuda", "cuda:1")] == [None, 1]
    with pytest.raises(ConfigError, match="device is cuda:2, but this PyTorch"):
        devices.choose_device("cuda:2")


def test_precision_is_what_was_asked_and_fp16_is_refused_on_a_cpu():
    cpu = torch.device("cpu")
    assert devices.choose_precision("bf16", cpu, 10) == torch.bfloat16
    assert devices.choose_precision("no", cpu, 10) == torch.float32
    with pytest.raises(ConfigError, match="fp16"):
        devices.choose_precision("fp16", cpu, 10)


@pytest.mark.parametrize(
    ("has_bfloat16", "parameters", "expected"),
    [(True, 860_000_000, "bf16"), (True, 9_000_000, "no"), (False, 860_000_000, "no")],
)
def test_auto_takes_bfloat16_on_a_cpu_only_where_it_is_faster(
    monkeypatch, has_bfloat16, parameters, expected
):
    monkeypatch.setattr(devices, "processor_has_bfloat16", lambda: has_bfloat16)
    assert (
        devices.precision_name(devices.choose_precision("auto", torch.device("cpu"), parameters))
        == expected
    )


def test_peak_memory_grows_with_what_is_held():
    before, process = devices.peak_memory(torch.device("cpu")), psutil.Process()
    # more than this process has held and let go before
    room = max(0, before - process.memory_info().rss)
    held = torch.ones((room + 300_000_000) // 4)
    # the allocator may give other memory back meanwhile
    now = process.memory_info().rss
    peak = devices.peak_memory(torch.device("cpu"))
    assert peak >= max(before, now - 50_000_000) and peak > held.nbytes
    del held


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
            ),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("no such file: out of memory.png"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, expected):
    assert devices.is_out_of_memory(error) is expected
