"""Haoming02's Forge Classic, read at 1f95d717."""

from __future__ import annotations

from lora_trainer.hosts.base import LowBits
from lora_trainer.hosts.reforge import FLAGS, ReForge

STORED_IN_FP8 = "Store UNet Weights in fp8"


class Classic(ReForge):
    """Haoming02's Forge Classic, which moves its models as reForge does."""

    kind = "classic"
    name = "Forge Classic"

    @classmethod
    def is_here(cls) -> bool:
        return super().is_here() and cls._fork() == "classic"

    def low_bits(self) -> LowBits:
        found = super().low_bits()
        if self.option("fp8_storage", False) or found.setting == FLAGS[0]:
            return LowBits(setting=STORED_IN_FP8)
        return found
