"""Detects uniform borders around an image: pixels -> the box inside them.

A border ends in a straight edge, at which most of a line changes at once. A subject on a plain
background does not: its lines change where the subject begins. So neither a drawing on white paper
nor a product shot counts as having a border, nor a gradient sky, or ground of one colour: borders
on one side only must be narrow.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""

TOLERANCE = 14
"""Deviation from the border's colour, of 255, to allow for JPEG artefacts."""
STRAY_SHARE = 0.02
"""Share of a border's line that may differ: dust, the halo of an edge."""
CHANGE_SHARE = 0.55
"""Minimum share of the line after a border that has another colour."""
LOOK_BEHIND = 3
"""Lines that a smoothed edge may take."""
NARROWEST = 0.012
"""Relative to the side: thinner borders are ignored."""
THICKEST = 0.45
THICKEST_ALONE = 0.15
"""Relative to the side: for a border without an opposite one, which may be a flat drawing's ground
or wall.
"""


def inner_box(pixels: Pixels) -> Box:
    """The box inside the borders of (height, width, 3) pixels; the whole image if there are
    none.
    """
    height, width = pixels.shape[:2]
    # bars inside a frame of another colour are only visible from one direction at first
    top, bottom = _ends(pixels)
    left, right = _ends(pixels[top : height - bottom].transpose(1, 0, 2))
    if not top and not bottom and (left or right):
        top, bottom = _ends(pixels[:, left : width - right])
    return left, top, width - right, height - bottom


def _ends(lines: Pixels) -> tuple[int, int]:
    """Number of border lines at the start and the end."""
    first, last = _border(lines), _border(lines[::-1])
    if not first or not last:
        most = THICKEST_ALONE * len(lines)
        return first if first <= most else 0, last if last <= most else 0
    return first, last


def _border(lines: Pixels) -> int:
    count = len(lines)
    limit, least = int(THICKEST * count), max(1, math.ceil(NARROWEST * count))
    colour = np.median(lines[0], axis=0).astype(np.int16)
    # early exit: most images have no border
    if (_change(lines[:least], colour) > STRAY_SHARE).any():
        return 0
    change = _change(lines[: limit + LOOK_BEHIND], colour)
    inside = np.nonzero(change > STRAY_SHARE)[0]
    if not len(inside) or inside[0] > limit:
        return 0
    first = int(inside[0])
    behind = change[first : first + LOOK_BEHIND]
    if behind.max() < CHANGE_SHARE:
        return 0
    # a gradient also differs from the first line at once, but not from the lines just before
    before = np.median(lines[max(0, first - LOOK_BEHIND)], axis=0).astype(np.int16)
    if _change(lines[first : first + LOOK_BEHIND], before).max() < CHANGE_SHARE:
        return 0
    # include the lines of a smoothed edge
    return first + int(np.argmax(behind >= CHANGE_SHARE))


def _change(lines: Pixels, colour: NDArray[np.int16]) -> NDArray[np.float64]:
    """Share of each line that has another colour."""
    change: NDArray[np.float64] = (
        np.abs(lines.astype(np.int16) - colour).max(axis=2) > TOLERANCE
    ).mean(axis=1)
    return change
