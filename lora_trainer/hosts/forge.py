"""lllyasviel's Forge, read at dfdcbab6."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lora_trainer.hosts.base import HostDevice, host_module
from lora_trainer.hosts.on_demand import OnDemand


class Forge(OnDemand):
    """lllyasviel's Forge with its own backend."""

    kind = "forge"
    name = "Forge"
    manager = "backend.memory_management"

    def _checkpoint_info(self) -> Any:
        data = getattr(host_module("modules.sd_models"), "model_data", None)
        chosen = getattr(data, "forge_loading_parameters", None) or {}
        return chosen.get("checkpoint_info") or super()._checkpoint_info()

    def _vae(self) -> Path | None:
        chosen = self.option("forge_additional_modules", [])
        listed = chosen if isinstance(chosen, list) else []
        paths = [Path(path) for path in listed if isinstance(path, str)]
        folders = [self.paths().models / "VAE", *self._more_vae_folders()]
        vaes = (path for path in paths if any(folder in path.parents for folder in folders))
        return next(vaes, None)

    def _more_vae_folders(self) -> list[Path]:
        return [Path(self._flag("vae_dir"))] if self._flag("vae_dir") else []

    def device(self) -> HostDevice:
        found = super().device()
        chosen = self._flag("gpu_device_id") if found.device_id is None else found.device_id
        return dataclasses.replace(found, device_id=None if chosen is None else str(chosen))
