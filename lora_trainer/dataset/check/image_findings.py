"""Measures of an image -> findings: every threshold of the check, and every message about a single
image.

    findings_of_image(image, measures, resolution)    all findings about an image
    is_blurred(measures, resolution)                   and similar predicates

The thresholds were chosen on one half of the images of tests/benchmark/check_quality; BENCHMARKS.md
has their accuracy on the other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_trainer.dataset.check.measure import Measures
from lora_trainer.dataset.findings import Finding, Kind, from_error, warning
from lora_trainer.dataset.images import read_image
from lora_trainer.errors import DatasetError

MAX_ENLARGEMENT = 1.25
"""Enlargement up to this factor is not reported."""
BLURRED = 1.15
"""Sigma of the sharpest edges, in pixels of the image as trained."""
FRAME_SHARE = 0.04
"""Share of border above which it is reported."""
MAX_ASPECT = 2.0
"""Long side / short side above which an image is cropped a lot, or trained as a strip."""
DARK, DARK_CONTRAST = 90.0, 90.0
BRIGHT, BRIGHT_MIDDLE, BRIGHT_CONTRAST = 110.0, 160.0, 140.0
BLOWN, BLOWN_SHADES, BLOWN_WHITE = 0.2, 150, 0.01
FLAT, EMPTY = 66.0, 8.0
PLAIN = 0.6
"""Share of one shade above which an image is a drawing on paper or an object on a backdrop, whose
brightness is not judged.
"""
SUBJECT_SHARE, WANTED_SHARE = 0.4, 0.6
"""Share of the image's area for the subject's bounding box: below which it is reported, and after
the crop.
"""


LEAVE_OUT = {"do": "leave_out"}


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """An image of a dataset, for the check."""

    path: Path
    name: str
    """Its name for the user."""
    caption: str | None = None
    """Its caption without anything added; "": it has none; None: do not check it."""
    mask: Path | None = None
    """An image that is white where the subject is."""


def findings_of_image(image: CheckedImage, measures: Measures, resolution: int) -> list[Finding]:
    """All findings about an image trained at `resolution`."""
    found = (check(image, measures, resolution) for check in _CHECKS)
    return [*itertools.chain.from_iterable(found), *_subject(image, measures)]


def _warning(image: CheckedImage, kind: Kind, template: str, **details: Any) -> Finding:
    return warning(kind, template, path=image.path, name=image.name, **details)


def unreadable(image: CheckedImage, problem: DatasetError) -> Finding:
    """The finding for an unreadable file."""
    return dataclasses.replace(
        from_error("unreadable-image", problem, image.path, image.name),
        fix={"do": "leave_out"},
    )


def enlargement(measures: Measures, resolution: int) -> float:
    """By how much the sides are scaled until the area is resolution x resolution."""
    return resolution / math.sqrt(measures.width * measures.height)


def training_edge_width(measures: Measures, resolution: int) -> float | None:
    """Width of the sharpest edges in pixels of the image as trained; of the image itself if it
    would be enlarged.
    """
    if measures.edge_width is None:
        return None
    return measures.edge_width * min(1.0, resolution / measures.analysed_side)


def is_blurred(measures: Measures, resolution: int) -> bool:
    width = training_edge_width(measures, resolution)
    # without any edge, but with light and dark parts: extremely blurred
    return width >= BLURRED if width is not None else measures.contrast >= FLAT


def border_share(measures: Measures) -> float:
    """Share of the image that is border, 0 to 1."""
    left, top, right, bottom = measures.inner
    return 1 - (right - left) * (bottom - top) / (measures.width * measures.height)


def is_dark(measures: Measures) -> bool:
    return measures.brightest < DARK and measures.contrast < DARK_CONTRAST


def is_bright(measures: Measures) -> bool:
    washed_out = (
        measures.darkest >= BRIGHT
        and measures.middle >= BRIGHT_MIDDLE
        and measures.contrast < BRIGHT_CONTRAST
    )
    # saturated colours clip one or two channels; blown-out highlights also have white
    blown_out = (
        measures.clipped >= BLOWN
        and measures.bright_shades >= BLOWN_SHADES
        and measures.white >= BLOWN_WHITE
    )
    return blown_out or (washed_out and measures.plain < PLAIN)


def is_flat(measures: Measures) -> bool:
    is_drawing = measures.plain >= PLAIN and measures.contrast >= EMPTY
    return (
        measures.contrast < FLAT
        and not is_drawing
        and not is_dark(measures)
        and not is_bright(measures)
    )


# --- checks ---------------------------------------------------------------------------------------


def _size(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    factor = enlargement(measures, resolution)
    if factor > MAX_ENLARGEMENT:
        yield _warning(
            image,
            "small-image",
            "{name} is only {width} x {height} pixels: for {resolution} it is enlarged {factor}"
            " times",
            hint="Use larger images, or a lower resolution; enlarged ones teach the model blur.",
            measured=round(factor, 2),
            fix=LEAVE_OUT,
            width=measures.width,
            height=measures.height,
            resolution=resolution,
            factor=f"{factor:.1f}",
        )


def _blur(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    if not is_blurred(measures, resolution):
        return
    width = training_edge_width(measures, resolution)
    hint = "Leave it out, or train at a lower resolution."
    if width is None:
        template = "{name} is blurred: it has no sharp edge"
        yield _warning(image, "blurred-image", template, hint=hint, fix=LEAVE_OUT)
    else:
        template = "{name} is blurred: its sharpest edges are {width} pixels wide at {resolution}"
        yield _warning(
            image,
            "blurred-image",
            template,
            hint=hint,
            # the 10 % to 90 % width of an edge blurred by sigma is 2.56 sigma
            measured=round(width, 2),
            fix=LEAVE_OUT,
            width=f"{2.56 * width:.1f}",
            resolution=resolution,
        )


def _border(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    share = border_share(measures)
    if share >= FRAME_SHARE:
        yield _warning(
            image,
            "wide-border",
            "{name} has a border of one colour: {percent} % of the image",
            hint="Crop it; otherwise the border is learned as well.",
            measured=round(share, 3),
            fix={"do": "crop", "box": list(measures.inner)},
            percent=round(100 * share),
        )


def _shape(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    ratio = max(measures.width, measures.height) / min(measures.width, measures.height)
    if ratio > MAX_ASPECT:
        yield _warning(
            image,
            "extreme-aspect",
            "{name} is {width} x {height} pixels: one side is {ratio} times the other",
            hint="Crop it to what matters.",
            measured=round(ratio, 2),
            fix={"do": "crop_subject", "ratio": MAX_ASPECT},
            width=measures.width,
            height=measures.height,
            ratio=f"{ratio:.1f}",
        )


def _lettering(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    if measures.mark is None:
        return
    _, top, _, bottom = measures.mark
    left, upper, right, lower = measures.inner
    # crop off the smaller side: above the lettering, or below it
    above = top - upper > lower - bottom
    box = (
        [left, upper, right, math.floor(top - 1)]
        if above
        else [left, math.ceil(bottom + 1), right, lower]
    )
    hint = (
        "Crop it or paint over it: text that many images share is learned first. If it belongs "
        "to the image, describe it in the caption."
    )
    fix = {"do": "crop", "box": box}
    share = round((bottom - top) / measures.height, 3)
    template = "{name} seems to have text at the top: a watermark, signature or date"
    if above:
        template = "{name} seems to have text at the bottom: a watermark, signature or date"
    yield _warning(image, "lettering", template, hint=hint, measured=share, fix=fix)


def _exposure(image: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    kind: Kind
    if is_dark(measures):
        kind, measured = "too-dark", measures.brightest
        hint = (
            "Brighten it in an image editor, or leave it out. If darkness is the style, say so "
            "in the captions."
        )
        template = "{name} is very dark: nearly all of it is below {percent} % brightness"
        percent = max(1, math.ceil(measured / 2.55))
    elif is_bright(measures):
        kind, measured = "too-bright", measures.clipped
        template = "{name} is very bright: {percent} % of it is blown out"
        hint = (
            "Darken it in an image editor, or leave it out; blown-out highlights cannot be"
            " recovered."
        )
        if measured < BLOWN:
            template = "{name} is very bright and has no dark areas"
            hint = "Raise its contrast in an image editor, unless pale colours are the style."
        percent = round(100 * measured)
    elif is_flat(measures):
        kind, measured = "low-contrast", measures.contrast
        hint = "Raise its contrast in an image editor, unless that is the style."
        template = (
            "{name} has little contrast: light and dark are only {percent} % of the full range"
            " apart"
        )
        percent = round(measured / 2.55)
    else:
        return
    yield _warning(
        image, kind, template, hint=hint, measured=measured, fix=LEAVE_OUT, percent=percent
    )


_CHECKS: tuple[Callable[[CheckedImage, Measures, int], Iterable[Finding]], ...] = (
    _size,
    _blur,
    _border,
    _shape,
    _lettering,
    _exposure,
)


# --- the subject, if there is a mask --------------------------------------------------------------


def _subject(image: CheckedImage, measures: Measures) -> Iterable[Finding]:
    if image.mask is None:
        return
    box = mask_box(image.mask, measures.width, measures.height)
    if box is None:
        template = "{name}: its mask {mask} is empty or cannot be read"
        yield _warning(image, "small-subject", template, measured=0.0, mask=image.mask.name)
        return
    share = (box[2] - box[0]) * (box[3] - box[1]) / (measures.width * measures.height)
    if share < SUBJECT_SHARE:
        larger = grown(box, WANTED_SHARE, measures.width, measures.height)
        yield _warning(
            image,
            "small-subject",
            "{name}: the subject takes up {percent} % of the image",
            hint="Crop closer: 60 % or more teaches a subject best.",
            measured=round(share, 3),
            fix={"do": "crop", "box": list(larger)},
            percent=round(100 * share),
        )


def mask_box(mask: Path, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Bounding box of the white in a mask, in pixels of its width x height image; None without
    white or an unreadable mask.
    """
    try:
        white = np.asarray(read_image(mask, "black").convert("L")) >= 128
    except DatasetError:
        return None
    rows, columns = np.nonzero(white.any(axis=1))[0], np.nonzero(white.any(axis=0))[0]
    if not len(rows):
        return None
    across, down = width / white.shape[1], height / white.shape[0]
    return (
        int(columns[0] * across),
        int(rows[0] * down),
        math.ceil((columns[-1] + 1) * across),
        math.ceil((rows[-1] + 1) * down),
    )


def grown(
    box: tuple[int, int, int, int], share: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """A box around `box`, scaled equally in both directions within the image, of which `box` has
    about `share` of the area.
    """
    left, top, right, bottom = box
    factor = (1 / math.sqrt(share) - 1) / 2
    aside, above = (right - left) * factor, (bottom - top) * factor
    start = max(0, math.floor(left - aside)), max(0, math.floor(top - above))
    return *start, min(width, math.ceil(right + aside)), min(height, math.ceil(bottom + above))
