"""lllyasviel's Forge, read at dfdcbab6."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lora_trainer.hosts.base import HostDevice, LowBits, host_module
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

    def low_bits(self) -> LowBits:
        chosen = str(self.option("forge_unet_storage_dtype", "Automatic"))
        plain = chosen.removesuffix(" (fp16 LoRA)")
        return LowBits(
            setting="" if plain == "Automatic" else f"Diffusion in Low Bits: {plain}",
            keeps_loras=plain != chosen,
        )

    def part_files(self) -> list[Path]:
        chosen = self.option("forge_additional_modules", [])
        listed = chosen if isinstance(chosen, list) else []
        return [Path(path) for path in listed if isinstance(path, str)]

    def part_folders(self) -> list[Path]:
        models = self.paths().models
        text = [models / "text_encoder", *self._folders_of("text_encoder_dir")]
        return [*text, *self._vae_folders()]

    def _vae(self) -> Path | None:
        folders = self._vae_folders()
        vaes = (
            path for path in self.part_files() if any(folder in path.parents for folder in folders)
        )
        return next(vaes, None)

    def _vae_folders(self) -> list[Path]:
        return [self.paths().models / "VAE", *self._folders_of("vae_dir")]

    def _folders_of(self, flag: str) -> list[Path]:
        """The folders of a command-line flag for one, or several, as --vae-dir and --vae-dirs."""
        given = self._flag(flag) or self._flag(f"{flag}s") or ()
        return [Path(one) for one in ([given] if isinstance(given, (str, Path)) else given)]

    def device(self) -> HostDevice:
        found = super().device()
        chosen = self._flag("gpu_device_id") if found.device_id is None else found.device_id
        return dataclasses.replace(found, device_id=None if chosen is None else str(chosen))
