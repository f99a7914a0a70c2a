"""Finds a line of lettering near an edge of an image: a watermark, a signature, a date, a subtitle.
Grey levels -> a box.

Lettering is thin strokes side by side in one band, with nothing above and below. Thin strokes are
the top-hat transform of mathematical morphology: what an opening or a closing by a few pixels
removes. Leaves and grass are thin as well, but not in a separate band. So marks on textured ground
and large, translucent ones are missed, but false positives are rare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONG_SIDE = 640
"""Longest side of the analysed image."""
STROKE = 7
"""Maximum width of strokes in it."""
CONTRAST = 20
"""Minimum difference in grey levels between a stroke and its background."""
ZONE = 0.2
"""Height of the analysed zones at the upper and lower edge, relative to the image."""
HEIGHTS = (9, 12, 16, 22, 30)
"""Heights of a line of lettering, in pixels of the analysed image."""
WIDTH = 6
"""Minimum width of a line, relative to its height."""
MIN_FILLED, MAX_FILLED = 0.1, 0.6
"""Share of a line that is covered by strokes."""
MIN_RISES = 1.3
"""Minimum number of strokes per width equal to the line's height."""
QUIET = 0.1
"""Maximum strokes above and below a line, relative to those in it."""

MARGIN = 16
"""Rows beyond the zone that are analysed for the space around a line."""

MAX_INK_SPREAD = 0.195
"""Standard deviation of the strokes' brightness, relative to their contrast."""

TextLine = tuple[float, int, int, int]
"""(confidence, top, left, height)."""
Levels = NDArray[np.uint8]
Table = NDArray[np.int32]
Places = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """Position of lettering relative to width and height, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float


def find_mark(grey: Image.Image) -> Watermark | None:
    """The most likely line of lettering in the upper and lower zone of an "L" image, or None."""
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
    (_, top, left, height), number = max(found)
    top = top if number == 0 else grey.height - top - height
    right, bottom = (left + WIDTH * height) / grey.width, (top + height) / grey.height
    return Watermark(
        left=left / grey.width,
        top=top / grey.height,
        right=right,
        bottom=bottom,
    )


def _strokes(levels: Levels) -> Iterator[NDArray[np.bool_]]:
    """Masks of thin bright strokes and of thin dark ones, (height, width)."""
    opened = _extreme(_extreme(levels, np.minimum), np.maximum)
    yield (levels - opened) > CONTRAST
    closed = _extreme(_extreme(levels, np.maximum), np.minimum)
    yield (closed - levels) > CONTRAST


def _extreme(levels: Levels, choose: np.ufunc) -> Levels:
    """The minimum or maximum within a square of STROKE pixels around each pixel."""
    reach = STROKE // 2
    for _ in range(2):
        padded = np.pad(levels, ((reach, reach), (0, 0)), mode="edge")
        result = padded[: len(levels)].copy()
        for offset in range(1, STROKE):
            choose(result, padded[offset : offset + len(levels)], out=result)
        levels = np.ascontiguousarray(result.T)
    return levels


def _lines(strokes: NDArray[np.bool_], depth: int) -> Iterator[TextLine]:
    """The most likely line of each height within `depth` rows, clear of the image's edge."""
    inside, begins = _table(strokes), _table(strokes[:, 1:] & ~strokes[:, :-1])
    for height in HEIGHTS:
        width = WIDTH * height
        if width >= strokes.shape[1] - 1 or height >= depth:
            continue
        filled = _everywhere(inside[: depth + 1], height, width)[:, :-1] / (height * width)
        rises = _everywhere(begins[: depth + 1], height, width) / (height * WIDTH)
        fits = (filled >= MIN_FILLED) & (filled <= MAX_FILLED) & (rises >= MIN_RISES)
        fits[: _quiet(height)] = False
        tops, lefts = np.nonzero(fits)
        candidates = _Candidates(height, tops, lefts, filled[fits], rises[fits])
        best = _best(inside, candidates)
        if best is not None:
            yield best


@dataclass(frozen=True)
class _Candidates:
    """Boxes of one height in which a line could be: an entry of each array is one."""

    height: int
    tops: Places
    lefts: Places
    filled: Shares
    rises: Shares

    def __len__(self) -> int:
        return len(self.tops)

    def where(self, chosen: NDArray[np.bool_]) -> _Candidates:
        """Those at which `chosen` is set."""
        return _Candidates(
            self.height,
            self.tops[chosen],
            self.lefts[chosen],
            self.filled[chosen],
            self.rises[chosen],
        )

    def share(self, inside: Table, down: int, across: int, height: int, width: int) -> Shares:
        """Share of strokes in a part of each box, `down` rows and `across` columns from its
        corner.
        """
        return _share(inside, self.tops + down, self.lefts + across, height, width)


def _best(inside: Table, lines: _Candidates) -> TextLine | None:
    """The line with most, evenly spread strokes and none above and below, if there is one. What
    most boxes fail is asked first.
    """
    height, width = lines.height, WIDTH * lines.height
    quiet, third, quarter = _quiet(height), height // 3, width // 4
    for down in (-quiet, height):
        lines = lines.where(lines.share(inside, down, 0, quiet, width) <= QUIET * lines.filled)
    for part in range(3):
        shares = lines.share(inside, part * third, 0, third, width)
        lines = lines.where(shares >= 0.35 * lines.filled)
    for part in range(4):
        shares = lines.share(inside, 0, part * quarter, height, quarter)
        lines = lines.where(shares >= 0.4 * lines.filled)
    if not len(lines):
        return None
    loudest = np.maximum(
        lines.share(inside, -quiet, 0, quiet, width), lines.share(inside, height, 0, quiet, width)
    )
    confidences: Shares = np.minimum(1, lines.rises / (2 * MIN_RISES)) * (
        1 - loudest / (2 * QUIET * lines.filled)
    )
    best = int(np.argmax(confidences))
    return float(confidences[best]), int(lines.tops[best]), int(lines.lefts[best]), height


def _quiet(height: int) -> int:
    """Number of rows above and below a line that must be free of strokes."""
    return max(2, round(0.4 * height))


def _is_of_one_colour(levels: Levels, line: TextLine) -> bool:
    """Whether the strokes of a line have one brightness, as text does; grass and gravel do not."""
    _, top, left, height = line
    box = levels[top : top + height, left : left + WIDTH * height].astype(np.float32)
    ground = float(np.median(box))
    darker, brighter = ground - float(np.percentile(box, 3)), float(np.percentile(box, 97)) - ground
    ink = box[box > ground + brighter / 2] if brighter > darker else box[box < ground - darker / 2]
    return bool(len(ink)) and float(ink.std()) <= MAX_INK_SPREAD * max(brighter, darker)


def _table(map_: NDArray[np.bool_]) -> Table:
    """A summed-area table: the sum in any rectangle is then four look-ups."""
    sums = np.zeros((map_.shape[0] + 1, map_.shape[1] + 1), np.int32)
    sums[1:, 1:] = map_.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    return sums


def _everywhere(sums: Table, height: int, width: int) -> Table:
    """The sum in the rectangle of this size at each position."""
    result: Table = (
        sums[height:, width:]
        - sums[:-height, width:]
        - sums[height:, :-width]
        + sums[:-height, :-width]
    )
    return result


def _share(sums: Table, tops: Places, lefts: Places, height: int, width: int) -> Shares:
    """Share of set pixels in rectangles at these positions; outside the image there are none."""
    upper, lower = np.clip(tops, 0, len(sums) - 1), np.clip(tops + height, 0, len(sums) - 1)
    count = (
        sums[lower, lefts + width]
        - sums[upper, lefts + width]
        - sums[lower, lefts]
        + sums[upper, lefts]
    )
    result: Shares = count / (height * width)
    return result
