"""Bars and frames of one colour around a picture: where the picture inside begins. Pixels come in,
a box goes out. Called by check.measure.

A border ends in a straight edge, at which most of a line changes at once. A subject on a plain
background does not: there a line changes where the subject first touches it. So neither a white
sheet with a drawing on it nor a product shot is taken for a picture with a border. Nor is a sky
that grows darker line by line, or ground of one colour below it: of borders at one side alone only
narrow ones are believed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom outside."""

TOLERANCE = 14
"""How far, of 255, a pixel may be from the border's colour: JPEG leaves no colour quite even."""
STRAY_SHARE = 0.02
"""This part of a border's line may be anything: dust, the halo of an edge."""
CHANGE_SHARE = 0.55
"""At least this part of the line behind a border is of another colour."""
LOOK_BEHIND = 3
"""Lines that a smoothed edge may take."""
NARROWEST = 0.012
"""Of the side: thinner borders are left alone."""
THICKEST = 0.45
THICKEST_ALONE = 0.15
"""Of the side: a border without one opposite to it is hardly wider; a flat drawing's ground or wall
often is.
"""


def inner_box(pixels: Pixels) -> Box:
    """What is left of (height, width, 3) pixels without their borders: the whole picture where
    there are none.
    """
    height, width = pixels.shape[:2]
    # a wide frame hides bars of another colour inside it only from the side that is looked at first
    top, bottom = _ends(pixels)
    left, right = _ends(pixels[top : height - bottom].transpose(1, 0, 2))
    if not top and not bottom and (left or right):
        top, bottom = _ends(pixels[:, left : width - right])
    return left, top, width - right, height - bottom


def _ends(lines: Pixels) -> tuple[int, int]:
    """The number of border lines at the beginning and at the end."""
    first, last = _border(lines), _border(lines[::-1])
    if not first or not last:
        most = THICKEST_ALONE * len(lines)
        return first if first <= most else 0, last if last <= most else 0
    return first, last


def _border(lines: Pixels) -> int:
    count = len(lines)
    limit, least = int(THICKEST * count), max(1, math.ceil(NARROWEST * count))
    colour = np.median(lines[0], axis=0).astype(np.int16)
    # most pictures have none, which their first lines tell
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
    # a gradient leaves the first line's colour all at once too, but not that of the lines just
    # before
    before = np.median(lines[max(0, first - LOOK_BEHIND)], axis=0).astype(np.int16)
    if _change(lines[first : first + LOOK_BEHIND], before).max() < CHANGE_SHARE:
        return 0
    # the lines of a smoothed edge belong to the border
    return first + int(np.argmax(behind >= CHANGE_SHARE))


def _change(lines: Pixels, colour: NDArray[np.int16]) -> NDArray[np.float64]:
    """Which part of each line is of another colour."""
    change: NDArray[np.float64] = (
        np.abs(lines.astype(np.int16) - colour).max(axis=2) > TOLERANCE
    ).mean(axis=1)
    return change
