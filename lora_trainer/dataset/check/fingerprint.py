"""A picture as a hundred numbers that stay nearly the same when it is saved again, scaled,
lightened, turned grey or cropped a little.

The low frequencies of the 32 x 32 grey picture's cosine transform, as in the perceptual hash pHash
(https://www.phash.org), but kept as numbers instead of signs: on the pictures of
tests/benchmark/check_quality that tells copies from merely similar pictures where 64 signs do not.
A mirrored picture's fingerprint follows from the picture's own. Called by check.measure
(`fingerprint`, `palette`) and check.alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""The picture is reduced to this many pixels each way."""
KEPT = 10
"""Frequencies kept each way."""
CELLS = 4
"""The palette has this many colours each way."""
COLOURLESS = 4.0
"""Below this mean chroma, of 255, a picture counts as grey."""

Numbers = NDArray[np.float32]

_STEPS = np.arange(SIDE)
_COSINES = np.cos(np.pi * (2 * _STEPS[None, :] + 1) * _STEPS[:KEPT, None] / (2 * SIDE)).astype(
    np.float32
)
_WEIGHTS = (np.hypot(*np.mgrid[:KEPT, :KEPT]) ** 0.5).astype(np.float32)
"""The lowest frequencies are the strongest in every picture, and say the least about it."""


def fingerprint(image: Image.Image) -> bytes:
    """KEPT x KEPT signed bytes, row by row; all zero for a picture of one colour."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    frequencies = (_COSINES @ grey @ _COSINES.T) * _WEIGHTS
    largest = float(np.abs(frequencies).max())
    scaled = frequencies * (127 / largest) if largest > 1 else frequencies * 0
    return bytes(np.rint(scaled).astype(np.int8).tobytes())


def palette(image: Image.Image) -> bytes:
    """The colours of CELLS x CELLS parts of the picture, three bytes each, row by row."""
    return np.asarray(image.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX)).tobytes()


def vectors(prints: list[bytes]) -> tuple[Numbers, Numbers]:
    """Fingerprints as rows of length 1, (count, 100), and those of the mirrored pictures. Products
    of rows are similarities, -1 to 1.
    """
    plain = np.frombuffer(b"".join(prints), np.int8).reshape(-1, KEPT, KEPT).astype(np.float32)
    # mirrored, the odd frequencies along a row change their sign
    mirrored = plain * np.where(np.arange(KEPT) % 2, -1, 1).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(plain.reshape(len(plain), -1), axis=1, keepdims=True), 1e-6)
    return plain.reshape(len(plain), -1) / lengths, mirrored.reshape(len(plain), -1) / lengths


def colours(palettes: list[bytes]) -> Numbers:
    """Palettes as numbers, (count, CELLS, CELLS, 3)."""
    return (
        np.frombuffer(b"".join(palettes), np.uint8).reshape(-1, CELLS, CELLS, 3).astype(np.float32)
    )


def colour_distance(one: Numbers, other: Numbers) -> float:
    """How differently two palettes are coloured: 0 equal, 1 nothing in common. A grey copy of a
    coloured picture has distance 0 if it is as light.
    """
    chroma, other_chroma = _chroma(one), _chroma(other)
    strength, other_strength = float(np.abs(chroma).mean()), float(np.abs(other_chroma).mean())
    if min(strength, other_strength) < COLOURLESS:
        difference = float(np.abs(_luminance(one) - _luminance(other)).mean())
        return min(1.0, difference / 64) if max(strength, other_strength) >= COLOURLESS else 0.0
    return float(np.abs(chroma - other_chroma).mean()) / (strength + other_strength)


def _chroma(palette: Numbers) -> Numbers:
    """Red against green and yellow against blue."""
    red, green, blue = palette[..., 0], palette[..., 1], palette[..., 2]
    return np.stack([red - green, (red + green) / 2 - blue], axis=-1)


def _luminance(palette: Numbers) -> Numbers:
    result: Numbers = palette @ np.array([0.299, 0.587, 0.114], np.float32)
    return result
