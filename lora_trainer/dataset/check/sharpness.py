"""Measures sharpness: the width of an image's sharpest edges, in pixels.

Blurring an edge again reduces its gradient, the less the wider it is. From the ratio of the
gradients before and after, its sigma follows in closed form (Zhuo and Sim, "Defocus map estimation
from a single image", Pattern Recognition 44, 2011, equation 8). Here both are taken from smoothed
images, to reduce noise.

For training images: only edges count, so a flat drawing is as sharp as its outlines; the sharpest
tiles of an 8 x 8 grid count, so a blurred background (bokeh) does not matter, while a sharp
watermark in one corner is not enough. Horizontal and vertical edges are measured separately and the
worse counts, because motion blur affects one direction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

NARROW, WIDE = 0.8, 1.6
"""Sigmas of the two smoothings, in pixels."""
MIN_GRADIENT = 1.2
"""Grey levels per pixel: flatter slopes are noise or shading."""
SHARE_OF_STRONGEST = 0.6
"""Minimum gradient relative to the strongest (99.5th percentile), above noise."""
STRAIGHT = 2.5
"""Minimum ratio of gradients across and along an edge: oblique ones would be measured too wide."""
TILES = 8
EDGES_PER_TILE = 6
SHARPEST_SHARE = 0.15
"""Quantile of the tiles' widths that is the result."""
MAX_EDGE_WIDTH = 12.0
"""The result if the second smoothing has almost no effect."""


def edge_width(grey: Plane) -> float | None:
    """Sigma, in pixels, of the sharpest edges of a (height, width) image in 0..255; None if it has
    no edges.

    0.3 to 0.9: sharp. 2: half the resolution would be enough.
    """
    if min(grey.shape) < 4 * TILES:
        return None
    narrow = smooth(grey, NARROW)
    # two Gaussian blurs are equivalent to one of WIDE
    wide = smooth(narrow, float(np.sqrt(WIDE**2 - NARROW**2)))
    found = [_direction(narrow, wide), _direction(narrow.T, wide.T)]
    known = [(width, tiles) for width, tiles in found if width is not None]
    if not known:
        return None
    most = max(tiles for _, tiles in known)
    # ignore a direction with few edges: a sunset's horizon, a page of text
    return max(width for width, tiles in known if tiles >= 0.4 * most)


def smooth(plane: Plane, sigma: float) -> Plane:
    """Gaussian smoothing, (height, width) -> (height, width), with edge padding."""
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
    """(edge width, number of tiles with edges) for vertical edges."""
    across = (narrow[1:-1, 2:] - narrow[1:-1, :-2]) * np.float32(0.5)
    along = (narrow[2:, 1:-1] - narrow[:-2, 1:-1]) * np.float32(0.5)
    height = np.abs(across)
    floor = max(MIN_GRADIENT, SHARE_OF_STRONGEST * float(np.percentile(height[::2, ::2], 99.5)))
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
    return float(tiles[min(len(tiles) - 1, int(SHARPEST_SHARE * len(tiles)))]), len(tiles)


def _widths(before: Plane, after: Plane) -> Plane:
    """Each edge's sigma from its gradient in the two smoothed images."""
    # the central difference acts as a box filter of two pixels: variance 1/3
    narrow, wide = NARROW**2 + 1 / 3, WIDE**2 + 1 / 3
    squared = np.square(before / np.maximum(after, 1e-3))
    variance = (wide - squared * narrow) / np.maximum(squared - 1, 1e-3)
    widths: Plane = np.sqrt(np.clip(variance, 0.05, MAX_EDGE_WIDTH**2)).astype(np.float32)
    return widths
