"""The objective of a diffusion model: predict what was added to the latents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.families.base import Family, NoiseProcess, TextStates
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.batches import Batch, CaptionEncoder, TrainingData
from lora_trainer.training.losses import denoising_loss
from lora_trainer.training.prefetch import moved


@dataclass(frozen=True, kw_only=True)
class ConditionedBatch:
    """Images and the states of their captions. text: None where a text encoder encodes them in
    every step.
    """

    images: Batch
    text: TextStates | None

    def pin_memory(self) -> ConditionedBatch:
        text = None if self.text is None else self.text.pin_memory()
        return ConditionedBatch(images=self.images.pin_memory(), text=text)


@dataclass(frozen=True, kw_only=True)
class DenoisingObjective:
    """The UNet and the encoded dataset."""

    family: Family
    unet: Any
    noise_process: NoiseProcess
    data: TrainingData
    captions: CaptionEncoder
    settings: TrainingSettings
    device: torch.device

    def batch(
        self, indices: Sequence[int], step: int, part: int, rows: Sequence[int] | None = None
    ) -> ConditionedBatch:
        """The `rows` (default: all) of this batch of images."""
        batch = self.data.batch(indices, step, part, rows)
        live = self.captions.live
        return ConditionedBatch(
            images=batch, text=None if live else self.captions.states(batch.captions)
        )

    def losses(self, batch: ConditionedBatch) -> torch.Tensor:
        """The loss of each image."""
        images, text = batch.images, batch.text
        if text is None:
            text = self.captions.states(images.captions)
        return denoising_loss(
            functools.partial(self.family.predict, self.unet),
            self.noise_process,
            moved(images.latents, self.device),
            text.to(self.device),
            moved(images.noise, self.device),
            moved(images.timesteps, self.device),
            moved(images.size_conditions, self.device),
            self.settings,
        )

    def names(self, indices: Sequence[int]) -> Sequence[str]:
        return [self.data.examples[index].path.name for index in indices]
