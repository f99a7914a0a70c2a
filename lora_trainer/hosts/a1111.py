"""AUTOMATIC1111's WebUI, read at v1.10.1."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from lora_trainer.hosts.base import Host, LowBits, Txt2ImgRequest, has_module, host_module


class A1111(Host):
    """AUTOMATIC1111's WebUI. Its model is moved off the device and back explicitly."""

    kind = "a1111"
    name = "AUTOMATIC1111"

    @classmethod
    def is_here(cls) -> bool:
        return has_module("modules.shared") and not has_module("modules_forge")

    def low_bits(self) -> LowBits:
        chosen = self.option("fp8_storage", "Disable")
        is_sdxl = bool(getattr(self._model(), "is_sdxl", False))
        if chosen != "Enable" and not (chosen == "Enable for SDXL" and is_sdxl):
            return LowBits()
        keeps = bool(self.option("cache_fp16_weight", False))
        return LowBits(setting="FP8 weight: Enable", keeps_loras=keeps)

    def model_on_device(self) -> bool:
        model = self._model()
        if model is None:
            return False
        if getattr(model, "lowvram", False):
            return getattr(host_module("modules.lowvram"), "module_in_gpu", None) is not None
        try:
            return any(
                parameter.device.type not in ("cpu", "meta") for parameter in model.parameters()
            )
        except Exception:
            return False

    def _release(self) -> None:
        models = importlib.import_module("modules.sd_models")
        data = models.model_data
        # other checkpoints kept in memory are on the device too
        held = [data.sd_model, *(getattr(data, "loaded_sd_models", None) or [])]
        for model in {id(model): model for model in held if model is not None}.values():
            models.send_model_to_cpu(model)

    def _restore(self) -> None:
        models = importlib.import_module("modules.sd_models")
        if models.model_data.sd_model is not None:
            # not reload_model_weights(), which returns early for the same file and leaves the model
            # on the CPU
            models.send_model_to_device(models.model_data.sd_model)

    def _process(self, request: Txt2ImgRequest) -> Any:
        # while the WebUI starts, a thread of its own loads the model; process_images would load it
        # once more beside that, and fail
        importlib.import_module("modules.sd_models").model_data.get_sd_model()
        return super()._process(request)

    def _matched_modules(self) -> dict[str, int] | None:
        # the builtin Lora extension puts its own folder on sys.path
        loaded = getattr(sys.modules.get("networks"), "loaded_networks", None)
        if loaded is None:
            return None
        return {
            str(network.name): len(network.modules)
            for network in loaded
            if hasattr(network, "modules")
        }
