"""Learning rate schedulers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.optimization import get_scheduler

from lora_trainer.settings.training import TrainingSettings, require_warmup_fits


def make_rate_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, step_count: int
) -> Any:
    """Make the scheduler `lr_scheduler` of diffusers.optimization, with warm-up; call its step()
    after every training step. Raises ConfigError if the warm-up is as long as the run.
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
