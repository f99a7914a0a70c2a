"""Haoming02's Forge Classic, read at 1f95d717."""

from __future__ import annotations

from lora_trainer.hosts.reforge import ReForge


class Classic(ReForge):
    """Haoming02's Forge Classic, which moves its models as reForge does."""

    kind = "classic"
    name = "Forge Classic"

    @classmethod
    def is_here(cls) -> bool:
        return super().is_here() and cls._fork() == "classic"
