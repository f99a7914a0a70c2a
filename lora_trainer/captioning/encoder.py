"""Embeddings from a captioner's image encoder, and the scale to interpret their distances.

A captioner with an image encoder adds each image's embedding to its Caption, without encoding
twice, and is an ImageEncoder, which also embeds a few unrelated images once per job: how similar
unrelated images are differs between encoders. Used by blip, clip and tasks.caption;
dataset.embeddings stores the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lora_trainer.dataset.embeddings import Row, spread

SIDE = 224


@runtime_checkable
class ImageEncoder(Protocol):
    """A captioner with an image encoder whose embeddings can be compared."""

    encoder: str
    """Its name for the user: CLIP, BLIP."""

    def embed(self, images: Sequence[Image.Image]) -> list[Row | None]:
        """The embedding of each image, as in its Caption, without captioning."""
        ...


def rows(features: torch.Tensor) -> list[Row | None]:
    """(images, width) of any dtype -> a normalized row each; None where fp16 overflowed."""
    unit = (
        torch.nn.functional.normalize(features.detach().float(), dim=-1)
        .cpu()
        .numpy()
        .astype(np.float16)
    )
    return [row if bool(np.isfinite(row).all()) and bool(row.any()) else None for row in unit]


def unrelated_spread(encoder: ImageEncoder) -> float:
    """1 - mean cosine similarity of unrelated images; 0 if undefined."""
    # one by one, which needs less memory than a batch of captions
    seen = [
        row for image in unrelated_images() for row in encoder.embed([image]) if row is not None
    ]
    return max(0.0, spread(np.stack(seen))) if len(seen) > 1 else 0.0


def unrelated_images() -> list[Image.Image]:
    """Eight generated images without common subject, colours, shapes or texture; always the
    same.
    """
    draws = np.random.default_rng(0)
    across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    rings = np.sin(60 * np.hypot(across - 0.3, down - 0.6)) * 0.5 + 0.5
    squares = (np.floor(across * 7) + np.floor(down * 7)) % 2
    planes = (
        draws.random((SIDE, SIDE, 3)),  # noise
        np.stack([across, 0.3 + 0.3 * down, 1 - across], axis=-1),  # an evening sky
        np.stack([0.45 + 0.35 * rings, 0.25 + 0.25 * rings, 0.1 + 0.1 * rings], axis=-1),  # wood
        np.repeat(squares[..., None], 3, axis=-1),  # a chessboard
    )
    return [_image(plane) for plane in planes] + [
        _ball(),
        _night(draws),
        _sketch(draws),
        _patchwork(draws),
    ]


def _image(plane: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(plane * 255).astype(np.uint8))


def _ball() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).ellipse((60, 60, 164, 164), fill=(210, 30, 30))
    return image


def _night(draws: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (6, 8, 24))
    draw = ImageDraw.Draw(image)
    for left, top in draws.integers(0, SIDE, (60, 2)).tolist():
        draw.ellipse((left, top, left + 2, top + 2), fill=(255, 250, 210))
    return image


def _sketch(draws: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (244, 238, 222))
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in draws.integers(20, SIDE - 20, (14, 4)).tolist():
        draw.line((left, top, right, bottom), fill=(40, 40, 48), width=2)
    return image


def _patchwork(draws: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (60, 140, 70))
    draw = ImageDraw.Draw(image)
    for left, top, red, green, blue in draws.integers(0, 200, (24, 5)).tolist():
        draw.rectangle((left, top, left + 50, top + 40), fill=(red + 50, green + 50, blue + 50))
    return image
