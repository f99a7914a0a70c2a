"""Measures previews: against the training images, and against their prompts.

    PreviewMeasures(prepared).measure(step, images, ...)   -> event PicturesMeasured

The encoder is loaded on the processor for each measurement: the graphics card is full of the
training.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_trainer.captioning import image_text
from lora_trainer.captioning.image_text import ImageTextEncoder
from lora_trainer.dataset.images import fit, read_image
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.runs import events
from lora_trainer.tasks.images import PreparedImages
from lora_trainer.training.device import is_out_of_memory
from lora_trainer.training.loop import Abandoned
from lora_trainer.training.preview import PreviewImage
from lora_trainer.training.randomness import number_generator
from lora_trainer.training.similarity import TrainingImages, signature

NEAREST = 8
MOST_ENCODED = 32
"""Training images whose mean embedding previews are compared with."""
IMAGES_AT_ONCE = 8
LORA_TAG = re.compile(r"<lora:[^<>]*>")


class PreviewMeasures:
    """Measures the previews of a run."""

    def __init__(self, prepared: PreparedImages) -> None:
        self._prepared = prepared
        self._centroid: torch.Tensor | None = None
        self._is_off = False
        self._stop_asked: Callable[[], bool] = lambda: False

    def measure(
        self, step: int, images: Sequence[PreviewImage], stop_asked: Callable[[], bool]
    ) -> Iterator[events.Event]:
        """Measure these previews; yields the event. An error is a warning, and ends all measuring.
        Raises Abandoned once `stop_asked`.
        """
        with_lora = [image.image for image in images if image.strength]
        if self._is_off or not with_lora:
            return
        self._stop_asked = stop_asked
        start = time.perf_counter()
        try:
            found = self._training_images.nearest(with_lora, NEAREST)
            encoded = self._encoded(images)
        except (LoraTrainerError, OSError, RuntimeError, MemoryError) as error:
            self._is_off = True
            yield self._warning(error)
            return
        yield events.PicturesMeasured(
            step=step,
            nearest=found.nearest,
            copied=found.copied,
            seconds=time.perf_counter() - start,
            **encoded,
        )

    def _warning(self, error: Exception) -> events.Warned:
        """The warning for an error that does not have to end the training; raises any other."""
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise error
        reason = error.message if isinstance(error, LoraTrainerError) else str(error)
        return events.Warned.of(
            Message("previews are no longer measured: {reason}", {"reason": reason}),
            Message("The training continues."),
        )

    # --- pixels -----------------------------------------------------------------------------------

    @cached_property
    def _training_images(self) -> TrainingImages:
        names, rows = [], []
        for name, image in self._read(range(len(self._prepared.dataset.examples))):
            names.append(name)
            rows.append(signature(image))
        return TrainingImages(names, np.stack(rows))

    def _read(self, indices: Collection[int]) -> Iterator[tuple[str, Image.Image]]:
        """Name and image, cropped as for training. Raises Abandoned; DatasetError."""
        background = self._prepared.config.dataset.background
        for bucket, members in self._prepared.buckets.items():
            for index in members:
                if index in indices:
                    self._stop_if_asked()
                    example = self._prepared.dataset.examples[index]
                    covering = (bucket.width, bucket.height)
                    read = read_image(example.path, background, covering=covering)
                    size = (example.width, example.height)
                    yield example.name, fit(read, bucket, whole=size).image

    def _stop_if_asked(self) -> None:
        if self._stop_asked():
            raise Abandoned

    # --- embeddings -------------------------------------------------------------------------------

    def _encoded(self, images: Sequence[PreviewImage]) -> dict[str, Any]:
        """The fields of PicturesMeasured that an encoder measures; none without one."""
        folder: Path | None = self._prepared.encoder
        if folder is None:
            return {}
        # autocast is on while previews are made
        with torch.autocast("cpu", enabled=False):
            encoder = image_text.load(folder, device=torch.device("cpu"), dtype=torch.float32)
            return self._compared(encoder, images)

    def _compared(
        self, encoder: ImageTextEncoder, images: Sequence[PreviewImage]
    ) -> dict[str, Any]:
        if self._centroid is None:
            self._centroid = self._mean_embedding(encoder)
        prompts = [self._described(image.prompt) for image in images]
        rows = self._embed(encoder, [image.image for image in images])
        likeness = rows @ self._centroid
        obedience = (rows * encoder.texts(prompts)).sum(1)
        strengths = torch.tensor([image.strength for image in images], dtype=torch.float64)
        by_strength = {
            strength: {
                "likeness": float(likeness[strengths == strength].mean()),
                "obedience": float(obedience[strengths == strength].mean()),
            }
            for strength in sorted(set(strengths.tolist()))
        }
        main = min(filter(None, by_strength), key=lambda strength: abs(strength - 1))
        base = by_strength[0.0]["likeness"] if 0.0 in by_strength else 0.0
        return {
            "encoder": encoder.name,
            "likeness": by_strength[main]["likeness"] - base,
            "obedience": by_strength[main]["obedience"],
            "variety": variety(rows[strengths == main]),
            "by_strength": {f"{strength:g}": one for strength, one in by_strength.items()},
        }

    def _mean_embedding(self, encoder: ImageTextEncoder) -> torch.Tensor:
        """Of up to MOST_ENCODED training images: (width,), of length 1."""
        count = len(self._prepared.dataset.examples)
        numbers = number_generator(self._prepared.config.training.seed, "encoded images")
        chosen = numbers.sample(range(count), min(count, MOST_ENCODED))
        images = (image for _, image in self._read(frozenset(chosen)))
        return torch.nn.functional.normalize(self._embed(encoder, images).mean(0), dim=0)

    def _embed(self, encoder: ImageTextEncoder, images: Iterable[Image.Image]) -> torch.Tensor:
        found, waiting = [], iter(images)
        while some := list(itertools.islice(waiting, IMAGES_AT_ONCE)):
            found.append(encoder.images(some))
            self._stop_if_asked()
        return torch.cat(found)

    def _described(self, prompt: str) -> str:
        """What the image should show, without LoRA tags and trigger word."""
        return described(prompt, self._prepared.config.dataset.trigger_word)


def described(prompt: str, trigger: str) -> str:
    """The prompt without LoRA tags and trigger word, and without the commas these leave."""
    text = LORA_TAG.sub("", prompt)
    if trigger:
        text = re.sub(re.escape(trigger), "", text, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def variety(rows: torch.Tensor) -> float | None:
    """1 - the mean cosine of different rows of length 1; None for a single one."""
    count = len(rows)
    if count < 2:
        return None
    total = float(rows.double().sum(0).square().sum())
    return 1 - (total - count) / (count * (count - 1))
