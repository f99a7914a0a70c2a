"""A fingerprint of an image: a hundred numbers that change little when it is saved again, scaled,
lightened, turned grey or cropped a little.

The low frequencies of the DCT of the 32 x 32 grey image, as in pHash (https://www.phash.org), but
as numbers instead of signs: on the images of tests/benchmark/check_quality that distinguishes
copies from similar images, which 64 signs do not. A mirrored image's fingerprint can be computed
from the original's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Side of the reduced image."""
KEPT = 10
"""Frequencies kept in each direction."""
CELLS = 4
"""Colours of the palette in each direction."""
COLOURLESS = 4.0
"""Mean chroma, of 255, below which an image counts as grey."""

Numbers = NDArray[np.float32]

_STEPS = np.arange(SIDE)
_COSINES = np.cos(np.pi * (2 * _STEPS[None, :] + 1) * _STEPS[:KEPT, None] / (2 * SIDE)).astype(
    np.float32
)
_WEIGHTS = (np.hypot(*np.mgrid[:KEPT, :KEPT]) ** 0.5).astype(np.float32)
"""Reduces the lowest frequencies, which are the strongest in every image and the least specific."""


def fingerprint(image: Image.Image) -> bytes:
    """KEPT x KEPT signed bytes, row by row; all zero for a uniform image."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    frequencies = (_COSINES @ grey @ _COSINES.T) * _WEIGHTS
    largest = float(np.abs(frequencies).max())
    scaled = frequencies * (127 / largest) if largest > 1 else frequencies * 0
    return bytes(np.rint(scaled).astype(np.int8).tobytes())


def palette(image: Image.Image) -> bytes:
    """The mean colours of CELLS x CELLS cells, three bytes each, row by row."""
    return np.asarray(image.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX)).tobytes()


def vectors(prints: list[bytes]) -> tuple[Numbers, Numbers]:
    """Fingerprints as normalized rows, (count, 100), and those of the mirrored images. Dot products
    are similarities, -1 to 1.
    """
    plain = np.frombuffer(b"".join(prints), np.int8).reshape(-1, KEPT, KEPT).astype(np.float32)
    # mirroring negates the odd horizontal frequencies
    mirrored = plain * np.where(np.arange(KEPT) % 2, -1, 1).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(plain.reshape(len(plain), -1), axis=1, keepdims=True), 1e-6)
    return plain.reshape(len(plain), -1) / lengths, mirrored.reshape(len(plain), -1) / lengths


def colours(palettes: list[bytes]) -> Numbers:
    """Palettes as numbers, (count, CELLS, CELLS, 3)."""
    return (
        np.frombuffer(b"".join(palettes), np.uint8).reshape(-1, CELLS, CELLS, 3).astype(np.float32)
    )


def colour_distance(one: Numbers, other: Numbers) -> float:
    """Difference of two palettes' colours: 0 equal, 1 nothing in common. A grey copy of equal
    brightness has distance 0.
    """
    chroma, other_chroma = _chroma(one), _chroma(other)
    strength, other_strength = float(np.abs(chroma).mean()), float(np.abs(other_chroma).mean())
    if min(strength, other_strength) < COLOURLESS:
        difference = float(np.abs(_luminance(one) - _luminance(other)).mean())
        return min(1.0, difference / 64) if max(strength, other_strength) >= COLOURLESS else 0.0
    return float(np.abs(chroma - other_chroma).mean()) / (strength + other_strength)


def _chroma(palette: Numbers) -> Numbers:
    """Red-green and yellow-blue differences."""
    red, green, blue = palette[..., 0], palette[..., 1], palette[..., 2]
    return np.stack([red - green, (red + green) / 2 - blue], axis=-1)


def _luminance(palette: Numbers) -> Numbers:
    result: Numbers = palette @ np.array([0.299, 0.587, 0.114], np.float32)
    return result
