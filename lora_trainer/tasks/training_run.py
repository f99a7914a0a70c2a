"""The values of a training, whatever it trains.

Start         the step and state to resume from
Prepared      settings, base model, dataset and plan are valid; no weights are loaded
Assembled     the trainer exists
TrainingRun   what the loop's hooks work with
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.errors import Message
from lora_trainer.runs.events import Event
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import RunConfig, SampleSettings
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.lora_output import LoraOutput
from lora_trainer.tasks.report import Report
from lora_trainer.training import resume
from lora_trainer.training.device import free_memory
from lora_trainer.training.processes import ALONE, Processes
from lora_trainer.training.scalars import Scalars
from lora_trainer.training.train import BatchSchedule, Trainer
from lora_trainer.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where this worker starts. `step` is 0 without a state; `notes` are about damaged states."""

    step: int
    state: dict[str, Any] | None
    notes: tuple[Message, ...]

    @classmethod
    def of(cls, folder: RunFolder) -> Start:
        """The newest intact resume point. Raises RunError if all are damaged."""
        if not resume.has_state(folder.state):
            return cls(step=0, state=None, notes=())
        state, notes = resume.read_state(folder.state)
        return cls(step=int(state["step"]), state=state, notes=notes)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """How long to train and where. `config` is resolved."""

    config: RunConfig
    plan: BatchSchedule
    device: torch.device
    dtype: torch.dtype
    processes: Processes = ALONE

    @property
    def name(self) -> str:
        return self.config.lora.name


class Samples(ABC):
    """Makes samples that show the effect of the adapters: previews, or answers."""

    memory_hint: Message
    """What needs less memory."""

    @property
    @abstractmethod
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the settings; without any, one from the dataset."""

    @abstractmethod
    def make(
        self, trainer: Trainer, settings: SampleSettings, stop_asked: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """Make and write a sample for each prompt at each strength of the settings; yields its
        event. Raises Abandoned once `stop_asked`.
        """


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """What a training consists of once its models are loaded."""

    prepared: Prepared
    output: LoraOutput
    samples: Samples
    trainer: Trainer
    validation: Validation | None = None
    """None in a run so short that measuring would take longer than training."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Assembled):
    """What exists while the loop runs, for its hooks."""

    folder: RunFolder
    report: Report
    control: Control
    scalars: Scalars


class DeviceOccupant(ABC):
    """Leaves its device during a pause: a control.Occupant."""

    device: torch.device

    def leave_device(self) -> None:
        self._move(torch.device("cpu"))

    def return_to_device(self) -> None:
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        if self.device.type != "cpu":
            self.move(device)
            free_memory(self.device)

    @abstractmethod
    def move(self, device: torch.device) -> None:
        """Move everything to `device`."""


@dataclass(frozen=True)
class LoadedModel(DeviceOccupant):
    """A language model, off the device during a pause."""

    model: Any
    device: torch.device

    def move(self, device: torch.device) -> None:
        self.model.to(device)


@dataclass(frozen=True)
class LoadedOptimizer(DeviceOccupant):
    """The optimizer's state and the averaged weights, off the device during a pause."""

    trainer: Trainer
    device: torch.device

    def move(self, device: torch.device) -> None:
        self.trainer.move_state(device)
