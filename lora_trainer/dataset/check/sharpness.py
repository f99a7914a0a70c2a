"""How sharp a picture is: the width of its sharpest edges, in pixels. Grey levels come in, one
number goes out.

An edge blurred by sigma loses height when it is blurred again, the less the wider it is already.
From the ratio R of its gradient before and after, sigma follows in closed form (Zhuo and Sim,
"Defocus map estimation from a single image", Pattern Recognition 44, 2011, equation 8). Here both
gradients are taken from smoothed pictures, so that noise counts little.

What makes it fit for training pictures: only edges are asked, so a flat drawing is as sharp as its
outlines; and of an 8 x 8 grid of tiles the sharpest ones speak, so a blurred background (bokeh)
does not count, while a sharp watermark in one corner is not enough. Edges of either direction are
measured apart and the worse counts, since motion leaves those alone that lie along it. Called by
check.measure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

NARROW, WIDE = 0.8, 1.6
"""Sigmas of the two smoothings, in pixels."""
FAINTEST = 1.2
"""Grey levels per pixel: flatter slopes are noise or shading, not edges."""
SHARE_OF_STRONGEST = 0.6
"""Edges count down to this part of the strongest (the 99.5th percentile): noise does not reach it.
"""
STRAIGHT = 2.5
"""How much steeper than along it an edge is across: oblique ones would be measured too wide."""
TILES = 8
EDGES_PER_TILE = 6
SPEAKING_SHARE = 0.15
"""The sharpest 15 % of the tiles that hold edges speak for the picture."""
WIDEST = 12.0
"""What is returned where the second blur changes next to nothing."""


def edge_width(grey: Plane) -> float | None:
    """The sigma, in pixels, of the sharpest edges of a picture, (height, width) in 0..255; None
    where there is no edge at all.

    0.3 to 0.9: sharp. 2: half the pixels would hold as much.
    """
    if min(grey.shape) < 4 * TILES:
        return None
    narrow = smooth(grey, NARROW)
    # blurring once more by the difference comes to the same as blurring by WIDE at once
    wide = smooth(narrow, float(np.sqrt(WIDE**2 - NARROW**2)))
    found = [_direction(narrow, wide), _direction(narrow.T, wide.T)]
    known = [(width, tiles) for width, tiles in found if width is not None]
    if not known:
        return None
    most = max(tiles for _, tiles in known)
    # a direction that hardly occurs says nothing: a sunset's horizon, a page of text
    return max(width for width, tiles in known if tiles >= 0.4 * most)


def smooth(plane: Plane, sigma: float) -> Plane:
    """Gaussian smoothing, (height, width) -> (height, width); the edges are repeated outwards."""
    reach = max(1, int(np.ceil(3 * sigma)))
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    weights = np.exp(-(steps**2) / np.float32(2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(
            plane, [(reach, reach) if axis == each else (0, 0) for each in (0, 1)], mode="edge"
        )
        length = plane.shape[axis]
        plane = weights[reach] * _slice(padded, axis, reach, length)
        for offset in range(reach):
            pair = _slice(padded, axis, offset, length) + _slice(
                padded, axis, 2 * reach - offset, length
            )
            plane += weights[offset] * pair
    return plane


def _slice(plane: Plane, axis: int, start: int, length: int) -> Plane:
    return plane[start : start + length] if axis == 0 else plane[:, start : start + length]


def _direction(narrow: Plane, wide: Plane) -> tuple[float | None, int]:
    """(edge width, tiles that hold edges) for the edges across which one walks along a row."""
    across = (narrow[1:-1, 2:] - narrow[1:-1, :-2]) * np.float32(0.5)
    along = (narrow[2:, 1:-1] - narrow[:-2, 1:-1]) * np.float32(0.5)
    height = np.abs(across)
    floor = max(FAINTEST, SHARE_OF_STRONGEST * float(np.percentile(height[::2, ::2], 99.5)))
    peak = height >= floor
    peak &= height > STRAIGHT * np.abs(along)
    peak[:, 1:] &= height[:, 1:] >= height[:, :-1]
    peak[:, :-1] &= height[:, :-1] > height[:, 1:]
    peak[:, [0, -1]] = False
    rows, columns = np.nonzero(peak)
    if len(rows) < EDGES_PER_TILE:
        return None, 0
    before = height[rows, columns]
    after = np.abs(wide[rows + 1, columns + 2] - wide[rows + 1, columns]) * np.float32(0.5)
    widths = _widths(before, after)
    tile = (rows * TILES // height.shape[0]) * TILES + columns * TILES // height.shape[1]
    tiles = [
        np.median(widths[tile == number])
        for number in np.unique(tile)
        if np.count_nonzero(tile == number) >= EDGES_PER_TILE
    ]
    if not tiles:
        return None, 0
    tiles.sort()
    return float(tiles[min(len(tiles) - 1, int(SPEAKING_SHARE * len(tiles)))]), len(tiles)


def _widths(before: Plane, after: Plane) -> Plane:
    """The blur of each edge from its gradient in the narrowly and in the widely smoothed
    picture.
    """
    # the central difference is itself a smoothing, by a box two pixels wide: variance 1/3
    narrow, wide = NARROW**2 + 1 / 3, WIDE**2 + 1 / 3
    squared = np.square(before / np.maximum(after, 1e-3))
    variance = (wide - squared * narrow) / np.maximum(squared - 1, 1e-3)
    widths: Plane = np.sqrt(np.clip(variance, 0.05, WIDEST**2)).astype(np.float32)
    return widths
