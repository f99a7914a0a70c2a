"""The values passed between the stages of a training.

Start         the step and state to resume from
Prepared      settings, checkpoint, dataset and plan are valid; no weights are loaded
Encoded       latents and text states exist
TrainingRun   the trainer exists: what the loop's hooks work with
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.adapters.continued import Continuation
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.scan import Dataset
from lora_trainer.errors import Message
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import RunConfig
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.lora_output import LoraOutput
from lora_trainer.tasks.report import Report
from lora_trainer.training import batches, resume
from lora_trainer.training.device import free_memory, move_optimizer
from lora_trainer.training.scalars import Scalars
from lora_trainer.training.train import BatchSchedule, Trainer


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
    """What to train, on what and for how long. `config` is resolved; `parts` has only
    tokenizers.
    """

    config: RunConfig
    checkpoint: Checkpoint
    parts: Parts
    dataset: Dataset
    buckets: Mapping[Bucket, list[int]]
    plan: BatchSchedule
    device: torch.device
    dtype: torch.dtype
    continuation: Continuation | None = None
    """The LoRA that the adapters begin with."""

    @property
    def name(self) -> str:
        return self.config.lora.name

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """The previews' prompts; without any, the first caption, for the LoRA's card."""
        return self.config.samples.sample_prompts or (
            variants(self.dataset.examples[0].caption)[0],
        )

    @contextlib.contextmanager
    def vae(self) -> Iterator[Any]:
        """The VAE, loaded into parts.vae for the block. float32: SDXL's overflows in fp16."""
        self.parts.vae = self.checkpoint.load_vae(torch.float32, self.device)
        try:
            yield self.parts.vae
        finally:
            self.parts.vae = None
            free_memory(self.device)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The encoded dataset."""

    captions: batches.CaptionEncoder
    images: batches.EncodedImages


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What exists while the loop runs, for its hooks."""

    folder: RunFolder
    report: Report
    control: Control
    prepared: Prepared
    captions: batches.CaptionEncoder
    output: LoraOutput
    scalars: Scalars
    trainer: Trainer


@dataclass(frozen=True)
class LoadedParts:
    """Moves the loaded models off the device during a pause."""

    parts: Parts
    device: torch.device

    def leave_device(self) -> None:
        self._move(torch.device("cpu"))

    def return_to_device(self) -> None:
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        if self.device.type == "cpu":
            return
        for model in (*self.parts.text_encoders, self.parts.vae, self.parts.unet):
            if model is not None:
                model.to(device)
        free_memory(self.device)


@dataclass(frozen=True)
class LoadedOptimizer:
    """Moves the optimizer's state off the device during a pause."""

    optimizer: torch.optim.Optimizer
    device: torch.device

    def leave_device(self) -> None:
        self._move(torch.device("cpu"))

    def return_to_device(self) -> None:
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        if self.device.type != "cpu":
            move_optimizer(self.optimizer, device)
            free_memory(self.device)
