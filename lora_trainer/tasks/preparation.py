"""What every training does to prepare and assemble, whatever it trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_trainer import files
from lora_trainer.adapters.injected import Adapters
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training as settings
from lora_trainer.settings.training import RunConfig
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.report import Report
from lora_trainer.tasks.training_run import Prepared, Start
from lora_trainer.training.device import choose_precision
from lora_trainer.training.optimizers import make_optimizer
from lora_trainer.training.processes import ALONE, Processes
from lora_trainer.training.rates import make_rate_schedule
from lora_trainer.training.train import BatchSchedule, Objective, Trainer, make_scaler


class PreparationStage:
    """Checks everything that can be checked without loading a model."""

    def __init__(
        self,
        folder: RunFolder,
        report: Report,
        control: Control,
        start: Start,
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self.report = report
        self.control = control
        self.start = start
        self.processes = processes

    def choose_precision(
        self, config: RunConfig, device: torch.device, parameter_count: int
    ) -> torch.dtype:
        """The frozen model's dtype: the same in all processes. Raises ConfigError."""
        asked = config.checkpoint.mixed_precision
        return self.processes.first(lambda: choose_precision(asked, device, parameter_count))

    def write_resolved(self, config: RunConfig) -> None:
        """Write config.yaml, without `auto`, as the first process has it."""
        if self.processes.is_first:
            files.write_text(self.folder.config, settings.to_yaml(config))


def schedule_batches(
    config: RunConfig, buckets: Mapping[Any, Sequence[int]], repeats: Sequence[int]
) -> BatchSchedule:
    """The examples of each step. Raises ConfigError for a warm-up longer than the run."""
    training = config.training
    plan = BatchSchedule(
        buckets=buckets,
        repeats=repeats,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation_steps,
        seed=training.seed,
        step_count=0,
    )
    plan.step_count = settings.step_count_of(training, plan.steps_per_epoch)
    settings.require_warmup_fits(training, plan.step_count)
    return plan


def trainer_of(prepared: Prepared, adapters: Adapters, objective: Objective) -> Trainer:
    """The Trainer, with its optimizer, rates and loss scaling."""
    training, device = prepared.config.training, prepared.device
    optimizer = make_optimizer(adapters, training, device)
    return Trainer(
        adapters=adapters,
        objective=objective,
        optimizer=optimizer,
        rates=make_rate_schedule(optimizer, training, prepared.plan.step_count),
        plan=prepared.plan,
        settings=training,
        device=device,
        dtype=prepared.dtype,
        scaler=make_scaler(device, prepared.dtype),
        processes=prepared.processes,
    )
