"""Every `auto` of a run, settled from its checkpoint, its dataset and its device: running the
result again gives the same LoRA.
"""

from __future__ import annotations

import math

import torch

from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.errors import ConfigError
from lora_trainer.lora.deliver import clean_name
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.device import precision_name

UNET_PREFIX = "model.diffusion_model."


def unet_parameter_count(checkpoint: Checkpoint) -> int:
    """Weights of the UNet, from the header."""
    shapes = [
        at.info.shape
        for name, at in checkpoint.unet.tensors.items()
        if name.startswith(UNET_PREFIX) or at.path.parent.name == "unet"
    ]
    return sum(math.prod(shape) for shape in shapes)


def resolve(
    config: RunConfig, checkpoint: Checkpoint, resolution: int, dtype: torch.dtype, step_count: int
) -> RunConfig:
    """The same run with nothing left at auto that decides what is learned."""
    return settings.settle(config, resolution, step_count).replace(
        name=config.lora.name or clean_name(config.output.output_dir.name),
        mixed_precision=precision_name(dtype),
        prediction_type=checkpoint.schedule.prediction_type,
        zero_terminal_snr=checkpoint.schedule.zero_terminal_snr,
    )


def require_lora_dir(config: RunConfig) -> None:
    """Raises ConfigError before an hour of training when there is nowhere to deliver to."""
    folder = config.output.lora_dir
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "lora_dir {folder} is not a folder",
            hint=(
                "It is models/Lora in the WebUI's folder. Leave it out to keep the LoRA in"
                " output_dir only."
            ),
            folder=folder,
        )
