"""How similar images are: pixel by pixel, and by an image-text encoder.

Pixels need no model: images are reduced to SIDE x SIDE, and correlated as they are and mirrored.
That finds copies: the same thing at the same place on the same ground. Embeddings compare what is
seen, and the texts that describe it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
COPIED = 0.95
"""Correlation from which an image is a copy. Measured with the embedded checkpoint: a LoRA that
was overfitted on three images reaches 0.91 to 0.97 with their own captions, and at most 0.72 with
other prompts.
"""
MARGIN = 0.002
ROWS_AT_ONCE = 512

Row = NDArray[np.float32]


def signature(image: Image.Image) -> Row:
    """(SIDE * SIDE * 3,), each colour without its mean, of length 1; zeros for an image of one
    colour.
    """
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    planes = np.asarray(small, dtype=np.float32) / 255
    values = (planes - planes.mean(axis=(0, 1))).ravel()
    length = float(np.linalg.norm(values))
    return values / length if length > 1e-3 else np.zeros_like(values)


def mirrored(rows: Row) -> Row:
    """The signatures of the mirrored images: (N, width) -> (N, width)."""
    return rows.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(rows), -1)


def correlations(ours: Row, theirs: Row) -> Row:
    """Of each of ours with each of theirs, mirrored or not: (M, width), (N, width) -> (M, N)."""
    found: Row = np.maximum(ours @ theirs.T, mirrored(ours) @ theirs.T)
    return found


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """nearest: training image -> its correlation with the most similar image, the highest first.
    copied: those of which an image is a copy.
    """

    nearest: dict[str, float]
    copied: list[str]


class TrainingImages:
    """The training images, to find copies of them."""

    def __init__(self, names: Sequence[str], rows: Row) -> None:
        """rows: their signatures, (N, width)."""
        self._names = tuple(names)
        self._rows = rows
        self._thresholds = self._own_thresholds()

    def _own_thresholds(self) -> Row:
        """From which correlation each image is copied: COPIED, but no less than its correlation
        with any other training image, and than that of nine in ten images with another: images of
        much the same thing are similar without being copies.
        """
        others = np.full(len(self._rows), -1.0, np.float32)
        for start in range(0, len(self._rows), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(self._rows)))
            table = correlations(self._rows[rows], self._rows)
            table[rows - start, rows] = -1.0
            others[rows] = table.max(axis=1)
        found: Row = np.maximum(others + MARGIN, max(COPIED, float(np.quantile(others, 0.9))))
        return found

    def nearest(self, images: Sequence[Image.Image], count: int) -> Nearest:
        """The `count` training images that are most similar to any of the images."""
        table = correlations(np.stack([signature(image) for image in images]), self._rows)
        best = table.max(axis=0)
        highest = heapq.nlargest(count, range(len(best)), key=best.__getitem__)
        return Nearest(
            nearest={self._names[index]: float(best[index]) for index in highest},
            copied=[
                self._names[index] for index in highest if best[index] > self._thresholds[index]
            ],
        )
