"""Adapters -> an optimizer with a rate for each part, and the schedule of the rates. Both come from
libraries.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.optimization import get_scheduler

from lora_trainer.errors import ConfigError
from lora_trainer.lora.adapters import Adapters
from lora_trainer.settings.training import TrainingSettings, require_warmup_fits


def make_optimizer(
    adapters: Adapters, settings: TrainingSettings, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over two groups: the UNet's adapters first, then the text encoders'. Raises ConfigError
    when adamw8bit cannot be had.
    """
    text_rate = (
        settings.learning_rate / 2 if settings.text_encoder_lr is None else settings.text_encoder_lr
    )
    groups: list[dict[str, Any]] = []
    for name, parameters, rate in (
        ("unet", adapters.parameters_unet(), settings.learning_rate),
        ("text_encoder", adapters.parameters_text_encoder(), text_rate),
    ):
        if parameters:
            groups.append(
                {"params": [parameter for _, parameter in parameters], "lr": rate, "name": name}
            )
    eight_bit = settings.optimizer == "adamw8bit"
    make = _adamw8bit(device) if eight_bit else torch.optim.AdamW
    optimizer: torch.optim.Optimizer = make(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    return optimizer


def make_rate_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, step_count: int
) -> Any:
    """diffusers' schedule of the name; warm-up works with each. Its step() is called once after
    every training step.
    """
    name = "constant_with_warmup" if settings.lr_scheduler == "constant" else settings.lr_scheduler
    require_warmup_fits(settings, step_count)
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=step_count,
        num_cycles=settings.lr_scheduler_num_cycles,
        power=settings.lr_scheduler_power,
    )


def require_optimizer(settings: TrainingSettings, device: torch.device) -> None:
    """Raises ConfigError when the optimizer asked for cannot be had here."""
    if settings.optimizer == "adamw8bit":
        _adamw8bit(device)


def _adamw8bit(device: torch.device) -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # bitsandbytes fails in many ways on a machine it does not fit
        raise ConfigError(
            "optimizer is adamw8bit, but the bitsandbytes package cannot be used: {reason}",
            hint="Use adamw: a LoRA's optimizer is small.",
            reason=error,
        ) from error
    if device.type != "cuda":
        raise ConfigError(
            "optimizer is adamw8bit, but training runs on {device}",
            hint="Use adamw: it needs no NVIDIA card.",
            device=device,
        )
    return AdamW8bit
