"""A line of lettering near an edge of a picture: a watermark, a signature, a date, a subtitle. Grey
levels come in, a box goes out.

Lettering is thin strokes side by side in one band, with quiet above and below it. Thin strokes are
what an opening or a closing by a few pixels takes away (the top-hat transform of mathematical
morphology). Leaves and grass are thin as well, but end in no quiet band. So this misses marks on
busy ground, and large, see-through ones; what it names is mostly there. Called by check.measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONG_SIDE = 640
"""Lettering is looked for in a picture of this size."""
STROKE = 7
"""Strokes are thinner than this many pixels there."""
CONTRAST = 20
"""Grey levels by which a stroke differs from its ground."""
ZONE = 0.2
"""How far from the upper or lower edge a line of lettering is looked for, as a part of the height.
"""
HEIGHTS = (9, 12, 16, 22, 30)
"""Heights of a line of lettering, in pixels of the reduced picture."""
WIDTH = 6
"""A line is at least this many times as wide as it is high."""
LEAST_FILLED, MOST_FILLED = 0.1, 0.6
"""Which part of a line strokes take up."""
LEAST_RISES = 1.3
"""How often, along a line, a stroke begins within a width equal to its height."""
QUIET = 0.1
"""Strokes above and below a line, as a part of those in it."""

MARGIN = 16
"""Rows behind the zone that are looked at as well: is it quiet there?"""

MOST_SPREAD = 0.195
"""Standard deviation of the strokes' brightness, as a part of their contrast."""

Line = tuple[float, int, int, int]
"""(sureness, top, left, height)."""
Levels = NDArray[np.uint8]
Table = NDArray[np.int32]
Places = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """Where lettering stands, as parts of width and height, 0 to 1; and how sure that is, 0 to
    1.
    """

    left: float
    top: float
    right: float
    bottom: float
    sureness: float


def find_mark(grey: Image.Image) -> Watermark | None:
    """What looks most like a line of lettering in the upper and the lower zone of an "L" picture,
    if anything does.
    """
    scale = LONG_SIDE / max(grey.size)
    if scale < 1:
        grey = grey.resize(
            (max(1, round(grey.width * scale)), max(1, round(grey.height * scale))),
            Image.Resampling.BOX,
        )
    if min(grey.size) < WIDTH * HEIGHTS[0] + 8:
        return None
    levels = np.asarray(grey)
    depth = int(ZONE * grey.height)
    upper, lower = levels[: depth + MARGIN], levels[grey.height - depth - MARGIN :][::-1]
    found = [
        (line, number)
        for number, zone in enumerate((upper, lower))
        for strokes in _strokes(zone)
        for line in _lines(strokes, depth)
        if _is_of_one_colour(zone, line)
    ]
    if not found:
        return None
    (sureness, top, left, height), number = max(found)
    top = top if number == 0 else grey.height - top - height
    right, bottom = (left + WIDTH * height) / grey.width, (top + height) / grey.height
    return Watermark(
        left=left / grey.width, top=top / grey.height, right=right, bottom=bottom, sureness=sureness
    )


def _strokes(levels: Levels) -> Iterator[NDArray[np.bool_]]:
    """Where there are thin bright strokes, and where thin dark ones: (height, width) each."""
    opened = _extreme(_extreme(levels, np.minimum), np.maximum)
    yield (levels - opened) > CONTRAST
    closed = _extreme(_extreme(levels, np.maximum), np.minimum)
    yield (closed - levels) > CONTRAST


def _extreme(levels: Levels, choose: np.ufunc) -> Levels:
    """The darkest or brightest level within a square of STROKE pixels around each."""
    reach = STROKE // 2
    for _ in range(2):
        padded = np.pad(levels, ((reach, reach), (0, 0)), mode="edge")
        result = padded[: len(levels)].copy()
        for offset in range(1, STROKE):
            choose(result, padded[offset : offset + len(levels)], out=result)
        levels = np.ascontiguousarray(result.T)
    return levels


def _lines(strokes: NDArray[np.bool_], depth: int) -> Iterator[Line]:
    """(sureness, top, left, height) of the surest line of each height that lies within `depth`
    rows, clear of the picture's edge.
    """
    inside, begins = _table(strokes), _table(strokes[:, 1:] & ~strokes[:, :-1])
    for height in HEIGHTS:
        width = WIDTH * height
        if width >= strokes.shape[1] - 1 or height >= depth:
            continue
        filled = _everywhere(inside[: depth + 1], height, width)[:, :-1] / (height * width)
        rises = _everywhere(begins[: depth + 1], height, width) / (height * WIDTH)
        fits = (filled >= LEAST_FILLED) & (filled <= MOST_FILLED) & (rises >= LEAST_RISES)
        fits[: _quiet(height)] = False
        tops, lefts = np.nonzero(fits)
        if len(tops):
            surenesses = _sureness(
                inside, tops, lefts, height, filled[tops, lefts], rises[tops, lefts]
            )
            best = int(np.argmax(surenesses))
            if surenesses[best] > 0:
                yield float(surenesses[best]), int(tops[best]), int(lefts[best]), height


def _sureness(
    inside: Table, tops: Places, lefts: Places, height: int, filled: Shares, rises: Shares
) -> Shares:
    """0 where it is no line of lettering; up to 1 where strokes are many, spread evenly, and there
    are none above and below.
    """
    width, quiet, third = WIDTH * height, _quiet(height), height // 3
    thirds = [_share(inside, tops + part * third, lefts, third, width) for part in range(3)]
    quarters = [
        _share(inside, tops, lefts + part * (width // 4), height, width // 4) for part in range(4)
    ]
    loudest = np.maximum(
        _share(inside, tops - quiet, lefts, quiet, width),
        _share(inside, tops + height, lefts, quiet, width),
    )
    even = (np.minimum.reduce(thirds) >= 0.35 * filled) & (
        np.minimum.reduce(quarters) >= 0.4 * filled
    )
    surenesses: Shares = np.minimum(1, rises / (2 * LEAST_RISES)) * (
        1 - loudest / (2 * QUIET * filled)
    )
    return np.where(even & (loudest <= QUIET * filled), surenesses, 0)


def _quiet(height: int) -> int:
    """The rows above and below a line of lettering in which there is none."""
    return max(2, round(0.4 * height))


def _is_of_one_colour(levels: Levels, line: Line) -> bool:
    """Whether what stands out most in a line is of one brightness, as ink is; grass and gravel are
    not.
    """
    _, top, left, height = line
    box = levels[top : top + height, left : left + WIDTH * height].astype(np.float32)
    ground = float(np.median(box))
    darker, brighter = ground - float(np.percentile(box, 3)), float(np.percentile(box, 97)) - ground
    ink = box[box > ground + brighter / 2] if brighter > darker else box[box < ground - darker / 2]
    return bool(len(ink)) and float(ink.std()) <= MOST_SPREAD * max(brighter, darker)


def _table(map_: NDArray[np.bool_]) -> Table:
    """Sums of all that is set above and left of each corner: the sum in any rectangle is then four
    look-ups.
    """
    sums = np.zeros((map_.shape[0] + 1, map_.shape[1] + 1), np.int32)
    sums[1:, 1:] = map_.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    return sums


def _everywhere(sums: Table, height: int, width: int) -> Table:
    """What is set in the rectangle of this size at each place."""
    result: Table = (
        sums[height:, width:]
        - sums[:-height, width:]
        - sums[height:, :-width]
        + sums[:-height, :-width]
    )
    return result


def _share(sums: Table, tops: Places, lefts: Places, height: int, width: int) -> Shares:
    """Which part is set in rectangles at these places; outside the picture there is nothing."""
    upper, lower = np.clip(tops, 0, len(sums) - 1), np.clip(tops + height, 0, len(sums) - 1)
    count = (
        sums[lower, lefts + width]
        - sums[upper, lefts + width]
        - sums[lower, lefts]
        + sums[upper, lefts]
    )
    result: Shares = count / (height * width)
    return result
