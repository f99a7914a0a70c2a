"""The values passed between the stages of a training on images.

PreparedImages   checkpoint, dataset and plan are valid; no weights are loaded
Encoded          latents and text states exist
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.continued import Continuation
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.held_out import HeldOut
from lora_trainer.dataset.scan import Dataset, Example
from lora_trainer.tasks.training_run import DeviceOccupant, Prepared
from lora_trainer.training import batches
from lora_trainer.training.device import free_memory


@dataclass(frozen=True, kw_only=True)
class PreparedImages(Prepared):
    """What to train, and on what. `parts` has only tokenizers."""

    checkpoint: Checkpoint
    parts: Parts
    dataset: Dataset
    """The images to train on."""
    buckets: Mapping[Bucket, list[int]]
    held_out: HeldOut
    """The images to validate on."""
    held_out_buckets: Mapping[Bucket, list[int]]
    continuation: Continuation | None = None
    """The LoRA that the adapters begin with."""
    training_adapter: TrainingAdapter | None = None
    """What is part of the base while it is trained, and of no image."""
    encoder: Path | None = None
    """The image-text encoder that measures previews."""

    @property
    def examples(self) -> tuple[Example, ...]:
        """All images that are encoded."""
        return (*self.dataset.examples, *self.held_out.examples)

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """The previews' prompts; without any, the first caption, for the LoRA's card."""
        return self.config.samples.sample_prompts or (
            variants(self.dataset.examples[0].caption)[0],
        )

    def base_as_it_is(self) -> contextlib.AbstractContextManager[None]:
        """For the block, the UNet computes without the training adapter."""
        if self.training_adapter is None:
            return contextlib.nullcontext()
        return self.training_adapter.taken_out(self.parts.unet)

    def require_usable(self) -> None:
        """Raise CheckpointError for weights that cannot be used."""
        self.checkpoint.require_usable(self.dtype)

    @contextlib.contextmanager
    def vae(self, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
        """The VAE, loaded into parts.vae for the block."""
        self.parts.vae = self.checkpoint.load_vae(dtype, self.device)
        if self.config.training.vae_tiling:
            self.parts.family.tile(self.parts.vae)
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
    held_out: batches.EncodedImages


@dataclass(frozen=True)
class LoadedParts(DeviceOccupant):
    """The loaded models, off the device during a pause."""

    parts: Parts
    device: torch.device

    def move(self, device: torch.device) -> None:
        for model in (*self.parts.text_encoders, self.parts.vae, self.parts.unet):
            if model is not None:
                model.to(device)
