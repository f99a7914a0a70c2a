"""Panchovix's reForge, read at 3b56b268."""

from __future__ import annotations

from lora_trainer.hosts.base import LowBits, host_module
from lora_trainer.hosts.on_demand import OnDemand

FLAGS = ("--unet-in-fp8-e4m3fn", "--unet-in-fp8-e5m2")


class ReForge(OnDemand):
    """Panchovix's reForge, and Forge before its own backend."""

    kind = "reforge"
    name = "reForge"
    manager = "ldm_patched.modules.model_management"

    def low_bits(self) -> LowBits:
        given = getattr(host_module("ldm_patched.modules.args_parser"), "args", None)
        chosen = (flag for flag in FLAGS if getattr(given, flag[2:].replace("-", "_"), False))
        return LowBits(setting=next(chosen, ""))
