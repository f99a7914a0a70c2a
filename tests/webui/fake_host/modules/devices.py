"""The hosts' devices, without torch: a device has a type and an index and says its name."""

from __future__ import annotations

from modules import calls
from modules.shared_cmd_options import cmd_opts


class Device:
    def __init__(self, type: str, index: int | None = None):
        self.type = type
        self.index = index

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type='{self.type}')"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


cpu = Device("cpu")
device = Device("cuda") if cmd_opts.fake_gpu else cpu
device_interrogate = device_gfpgan = device_esrgan = device_codeformer = device
dtype = "float16"


def get_cuda_device_string():
    return f"cuda:{cmd_opts.device_id}" if cmd_opts.device_id is not None else "cuda"


def torch_gc():
    calls.record("torch_gc")
