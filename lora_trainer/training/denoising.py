"""The objective of a diffusion model: predict what was added to the latents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_trainer.families.base import Family, NoiseProcess
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.batches import CaptionEncoder, TrainingData
from lora_trainer.training.losses import denoising_loss


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

    def losses(
        self, indices: Sequence[int], step: int, part: int, rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The loss of each of the `rows` (default: all) of these images."""
        batch = self.data.batch(indices, step, part, rows)
        latents, noise, timesteps = (
            tensor.to(self.device) for tensor in (batch.latents, batch.noise, batch.timesteps)
        )
        return denoising_loss(
            functools.partial(self.family.predict, self.unet),
            self.noise_process,
            latents,
            self.captions.states(batch.captions).to(self.device),
            noise,
            timesteps,
            batch.size_conditions.to(self.device),
            self.settings,
        )

    def names(self, indices: Sequence[int]) -> Sequence[str]:
        return [self.data.examples[index].path.name for index in indices]
