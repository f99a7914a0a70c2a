"""A1111's model in memory: loaded by the first look at it, moved between "cuda" and "cpu" as a
whole.
"""

from __future__ import annotations

import threading
from typing import Any

from modules import calls, devices, sd_vae, shared
from modules.checkpoint_files import (
    CheckpointInfo,
    checkpoint_aliases,
    checkpoint_tiles,
    checkpoints_list,
    list_models,
    model_dir,
    model_path,
)

__all__ = [
    "CheckpointInfo",
    "checkpoint_aliases",
    "checkpoint_tiles",
    "checkpoints_list",
    "list_models",
    "model_dir",
    "model_path",
]


class Model:
    """A loaded checkpoint: all that the hosts' code asks of it here is where it lies."""

    lowvram = False
    is_sdxl = False
    is_sd2 = False
    is_sd1 = True

    def __init__(self, info: CheckpointInfo):
        self.sd_checkpoint_info = info
        self.sd_model_checkpoint = info.filename
        self.sd_model_hash = info.shorthash
        self.filename = info.filename
        self.device: Any = devices.cpu

    def to(self, device: Any) -> Model:
        self.device = device
        return self

    def parameters(self):
        """What torch's parameters are asked here is `.device`, and that the model can tell
        itself.
        """
        return iter([self])

    def is_on_gpu(self) -> bool:
        return str(self.device).startswith("cuda")


class SdModelData:
    def __init__(self) -> None:
        self.sd_model: Model | None = None
        self.loaded_sd_models: list[Model] = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()

    def get_sd_model(self):
        if self.was_loaded_at_least_once:
            return self.sd_model
        with self.lock:
            if self.sd_model is None and not self.was_loaded_at_least_once:
                load_model()
        return self.sd_model

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v
        if v is not None:
            self.loaded_sd_models = [
                v,
                *(model for model in self.loaded_sd_models if model is not v),
            ]


model_data = SdModelData()


def select_checkpoint():
    """Raises `FileNotFoundError` if no checkpoints are found."""
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is not None:
        return info
    if not checkpoints_list:
        raise FileNotFoundError("No checkpoints found. Can't run without a checkpoint.")
    return next(iter(checkpoints_list.values()))


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    info = checkpoint_info or select_checkpoint()
    calls.record("load_model", checkpoint=info.title)
    model = Model(info)
    send_model_to_device(model)
    shared.opts.data["sd_model_checkpoint"] = info.title
    shared.opts.data["sd_checkpoint_hash"] = info.sha256
    sd_vae.loaded_vae_file = None
    model_data.set_sd_model(model)
    model_data.was_loaded_at_least_once = True
    return model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    info = info or select_checkpoint()
    model = sd_model or model_data.sd_model
    if model is not None and model.sd_model_checkpoint == info.filename and not forced_reload:
        # the trap: for the file that is loaded already, it stays where it lies
        return model
    return load_model(info)


def send_model_to_cpu(m):
    calls.record("send_model_to_cpu")
    if m is not None:
        m.to(devices.cpu)
    devices.torch_gc()


def send_model_to_device(m):
    calls.record("send_model_to_device")
    m.to(devices.device)


def unload_model_weights(sd_model=None, info=None):
    calls.record("unload_model_weights")
    send_model_to_cpu(sd_model or shared.sd_model)
    return sd_model


def model_for_generation() -> Model:
    """The model, if it lies where the images are made; else what torch would say."""
    model = model_data.get_sd_model()
    if model is None:
        raise FileNotFoundError("No checkpoints found. Can't run without a checkpoint.")
    if model.device != devices.device:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" {devices.device}:0 and {model.device}!"
        )
    return model
