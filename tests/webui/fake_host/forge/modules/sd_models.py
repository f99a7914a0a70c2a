"""Forge's model: nothing is loaded before the first image, and what an image needs is loaded for
it.
"""

from __future__ import annotations

from modules import calls, shared
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


class FakeInitialModel:
    def __init__(self):
        self.cond_stage_model = None
        self.chunk_length = 75


class Model:
    """A loaded checkpoint; its weights are on the GPU while memory_management says so."""

    is_sdxl = False
    is_sd2 = False
    is_sd1 = True

    def __init__(self, info: CheckpointInfo):
        self.sd_checkpoint_info = info
        self.sd_model_checkpoint = info.filename
        self.sd_model_hash = info.shorthash
        self.filename = info.filename

    def is_on_gpu(self) -> bool:
        from backend import memory_management

        return shared.cmd_opts.fake_gpu and self in memory_management.current_loaded_models


class SdModelData:
    def __init__(self):
        self.sd_model = FakeInitialModel()
        self.forge_loading_parameters = {}
        self.forge_hash = ""

    def get_sd_model(self):
        return self.sd_model

    def set_sd_model(self, v):
        self.sd_model = v


model_data = SdModelData()


def select_checkpoint():
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is not None:
        return info
    if not checkpoints_list:
        print("You do not have any model!")
        return None
    return next(iter(checkpoints_list.values()))


def send_model_to_cpu(m):
    pass


def send_model_to_device(m):
    pass


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    pass


def unload_model_weights(sd_model=None, info=None):
    pass


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    pass


def forge_model_reload():
    info = select_checkpoint()
    if info is None:
        raise ValueError(
            "You do not have any model! Please download at least one model in"
            " [models/Stable-diffusion]."
        )
    if model_data.forge_hash == info.filename:
        return model_data.sd_model, False
    calls.record("forge_model_reload", checkpoint=info.title)
    model_data.set_sd_model(Model(info))
    model_data.forge_hash = info.filename
    return model_data.sd_model, True


def model_for_generation():
    """The model, loaded and on the GPU: Forge sees to that itself."""
    from backend import memory_management

    model, _ = forge_model_reload()
    memory_management.load_models_gpu([model])
    return model
