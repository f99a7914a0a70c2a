"""Every `auto` of a run, settled from its checkpoint, its dataset and its device: running the result again gives the same LoRA."""

from __future__ import annotations

import math

import torch

from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.config import RunConfig
from lora_trainer.errors import ConfigError
from lora_trainer.lora.deliver import clean_name
from lora_trainer.training.device import precision_name

UNET_PREFIX = "model.diffusion_model."


def native_resolution(checkpoint: Checkpoint) -> int:
    """The side of the square pictures the checkpoint was made for, in pixels: as its metadata says (modelspec.resolution), else its family's."""
    if checkpoint.resolution is not None:
        return checkpoint.resolution
    if checkpoint.family == "sdxl":
        return 1024
    return 768 if checkpoint.family == "sd2" and checkpoint.schedule.prediction_type == "v_prediction" else 512


def unet_parameter_count(checkpoint: Checkpoint) -> int:
    """Weights of the UNet, from the header."""
    shapes = [at.info.shape for name, at in checkpoint.unet.tensors.items() if name.startswith(UNET_PREFIX) or at.path.parent.name == "unet"]
    return sum(math.prod(shape) for shape in shapes)


def resolve(config: RunConfig, checkpoint: Checkpoint, resolution: int, dtype: torch.dtype, step_count: int) -> RunConfig:
    """The same run with nothing left at auto that decides what is learned."""
    training, output, samples = config.training, config.output, config.samples
    save_steps = output.save_steps or max(1, min(500, math.ceil(step_count / 10)))
    return config.replace(
        resolution=resolution,
        name=config.lora.name or clean_name(output.output_dir.name),
        lora_alpha=float(config.lora.lora_rank) if config.lora.lora_alpha is None else config.lora.lora_alpha,
        mixed_precision=precision_name(dtype),
        prediction_type=checkpoint.schedule.prediction_type,
        zero_terminal_snr=checkpoint.schedule.zero_terminal_snr,
        text_encoder_lr=training.learning_rate / 2 if training.text_encoder_lr is None else training.text_encoder_lr,
        max_train_steps=step_count,
        save_steps=save_steps,
        sample_every=samples.sample_every or min(save_steps, 1_000_000),
        # what nobody asked for must not break a bound; nor can a picture's side be anything but a multiple of 8
        sample_size=(samples.sample_size or min(resolution, 2048)) // 8 * 8,
    )


def require_lora_dir(config: RunConfig) -> None:
    """Raises ConfigError before an hour of training when there is nowhere to deliver to."""
    folder = config.output.lora_dir
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "lora_dir {folder} is not a folder",
            hint="It is models/Lora in the WebUI's folder. Leave it out to keep the LoRA in output_dir only.",
            folder=folder,
        )
