"""Panchovix's reForge, read at 3b56b268."""

from __future__ import annotations

from lora_trainer.hosts.on_demand import OnDemand


class ReForge(OnDemand):
    """Panchovix's reForge, and Forge before its own backend."""

    kind = "reforge"
    name = "reForge"
    manager = "ldm_patched.modules.model_management"
