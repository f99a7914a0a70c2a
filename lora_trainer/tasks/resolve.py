"""Resolves every `auto` of a run from checkpoint, dataset and device, so that running the result
again gives the same LoRA.
"""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import FlowSchedule
from lora_trainer.errors import ConfigError
from lora_trainer.families.refusals import refused
from lora_trainer.lora.deliver import clean_name
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.device import precision_name


def resolve(
    config: RunConfig, checkpoint: Checkpoint, resolution: int, dtype: torch.dtype, step_count: int
) -> RunConfig:
    """The config with every `auto` that affects the result resolved."""
    precision = config.checkpoint.base_precision
    text_encoders, vae = checkpoint.separate_paths
    lora = checkpoint.family.learning(config.lora)
    return settings.settle(config, resolution, step_count).replace(
        name=config.lora.name or clean_name(config.output.output_dir.name),
        target_modules=lora.target_modules,
        text_encoder_targets=lora.text_encoder_targets,
        mixed_precision=precision_name(dtype),
        base_precision="same" if precision == "auto" else precision,
        blocks_to_swap=config.training.blocks_to_swap or 0,
        **_flow(checkpoint),
        **checkpoint.family.sampling(config.samples, is_distilled=checkpoint.detected.is_distilled),
        text_encoders=list(text_encoders) or None,
        vae=vae,
        prediction_type=checkpoint.schedule.prediction_type or "auto",
        zero_terminal_snr=checkpoint.schedule.zero_terminal_snr,
    )


def _flow(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of a flow-matching model's schedule; a shift that depends on the size of each
    image stays `auto`.
    """
    schedule = checkpoint.schedule
    if not isinstance(schedule, FlowSchedule):
        return {}
    shift = None if schedule.by_tokens else schedule.shift
    return {"timestep_distribution": schedule.distribution, "timestep_shift": shift}


def require_fitting_settings(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise ConfigError for settings with which this family cannot be trained."""
    for problem in refused(checkpoint.family, config):
        raise problem


def require_base_precision(config: RunConfig, device: torch.device) -> None:
    """Raise ConfigError for a number format that this device does not have."""
    if config.checkpoint.base_precision == "fp8" and device.type == "mps":
        raise ConfigError(
            "base_precision is fp8, which this device ({device}) does not have",
            hint="Use int8: it needs as little memory, and is more accurate.",
            device=device,
        )


def require_lora_dir(config: RunConfig) -> None:
    """Raise ConfigError before the training if the delivery folder does not exist."""
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
