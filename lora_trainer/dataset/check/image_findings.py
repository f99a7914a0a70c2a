"""What was measured of a picture -> what is wrong with it: every threshold of the check, and every
sentence about one picture.

    picture_findings(picture, measures, resolution)    all there is to say about one picture
    is_blurred(measures, resolution)                   and the like: one question each

The thresholds were chosen on one half of the pictures of tests/benchmark/check_quality;
BENCHMARKS.md says how often they are right on the other. Called by `check`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_trainer.dataset.check.measure import Measures
from lora_trainer.dataset.findings import Finding, from_error, problem
from lora_trainer.dataset.images import read_image
from lora_trainer.errors import DatasetError

WORTH_ENLARGING = 1.25
"""An enlargement up to this factor is not told."""
BLURRED = 1.15
"""Sigma of the sharpest edges, in pixels of the picture as it is trained."""
FRAME_SHARE = 0.04
"""Part of the picture that is border, from which on it is told."""
LONGEST = 2.0
"""Long side over short side: the shapes beyond are cropped a lot, or trained as a strip."""
DARK, DARK_CONTRAST = 90.0, 90.0
BRIGHT, BRIGHT_MIDDLE, BRIGHT_CONTRAST = 110.0, 160.0, 140.0
BLOWN, BLOWN_SHADES, BLOWN_WHITE = 0.2, 150, 0.01
FLAT, EMPTY = 66.0, 8.0
PLAIN = 0.6
"""Part of the picture that is one shade: from here on it is a drawing on paper or a thing on a
backdrop, and its light is that of the paper.
"""
SUBJECT_SHARE, WANTED_SHARE = 0.4, 0.6
"""Of the picture's area, for the smallest box around the subject: what is told, and what a crop
aims at.
"""


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """One picture of a dataset, as the check is told of it."""

    path: Path
    name: str
    """How it is named to the user."""
    caption: str | None = None
    """Its caption without anything added; "" where there is none; None: say nothing about it."""
    mask: Path | None = None
    """A picture that is white where the subject is."""


def picture_findings(picture: CheckedImage, measures: Measures, resolution: int) -> list[Finding]:
    """Everything to tell about one picture that is trained at `resolution`."""
    return [finding for ask in _QUESTIONS for finding in ask(picture, measures, resolution)] + list(
        _subject(picture, measures)
    )


def unreadable(picture: CheckedImage, problem: DatasetError) -> Finding:
    """What is told of a file that is no whole picture."""
    return dataclasses.replace(
        from_error("unreadable-image", problem, picture.path, picture.name),
        mend={"mend": "leave_out"},
    )


def enlargement(measures: Measures, resolution: int) -> float:
    """How many times the sides grow until the area is resolution x resolution."""
    return resolution / math.sqrt(measures.width * measures.height)


def training_edge_width(measures: Measures, resolution: int) -> float | None:
    """The width of the sharpest edges in pixels of the picture as it is trained; of a picture that
    would have to grow, in its own.
    """
    if measures.edge_width is None:
        return None
    return measures.edge_width * min(1.0, resolution / measures.analysed_side)


def is_blurred(measures: Measures, resolution: int) -> bool:
    width = training_edge_width(measures, resolution)
    # no edge anywhere, though there are light and dark parts: blurred beyond measure
    return width >= BLURRED if width is not None else measures.contrast >= FLAT


def border_share(measures: Measures) -> float:
    """The part of the picture that is border, 0 to 1."""
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
    # vivid colours fill one channel or two; what is blown out is white somewhere
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


# --- the questions --------------------------------------------------------------------------------


def _size(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    factor = enlargement(measures, resolution)
    if factor > WORTH_ENLARGING:
        yield problem(
            "small-image",
            "{name} is only {width} x {height} pixels: for {resolution} it is enlarged {factor}"
            " times",
            hint="Use larger pictures, or a lower resolution; enlarged ones teach the model blur.",
            path=picture.path,
            measured=round(factor, 2),
            mend={"mend": "leave_out"},
            name=picture.name,
            width=measures.width,
            height=measures.height,
            resolution=resolution,
            factor=f"{factor:.1f}",
        )


def _blur(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    if not is_blurred(measures, resolution):
        return
    width = training_edge_width(measures, resolution)
    hint = "Leave it out, or train at a lower resolution."
    if width is None:
        template = "{name} is blurred: there is no edge in it"
        yield problem(
            "blurred-image",
            template,
            hint=hint,
            path=picture.path,
            mend={"mend": "leave_out"},
            name=picture.name,
        )
    else:
        yield problem(
            "blurred-image",
            "{name} is blurred: its sharpest edges are {width} pixels wide at {resolution}",
            hint=hint,
            path=picture.path,
            # from a tenth to nine tenths of an edge blurred by sigma there are 2.56 sigma
            measured=round(width, 2),
            mend={"mend": "leave_out"},
            name=picture.name,
            width=f"{2.56 * width:.1f}",
            resolution=resolution,
        )


def _border(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    share = border_share(measures)
    if share >= FRAME_SHARE:
        yield problem(
            "wide-border",
            "{name} has a border of one colour: {percent} % of the picture",
            hint="Crop it; otherwise the border is learned as well.",
            path=picture.path,
            measured=round(share, 3),
            mend={"mend": "crop", "box": list(measures.inner)},
            name=picture.name,
            percent=round(100 * share),
        )


def _shape(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    ratio = max(measures.width, measures.height) / min(measures.width, measures.height)
    if ratio > LONGEST:
        yield problem(
            "extreme-aspect",
            "{name} is {width} x {height} pixels: one side is {ratio} times the other",
            hint="Crop it to what matters.",
            path=picture.path,
            measured=round(ratio, 2),
            mend={"mend": "crop_subject", "ratio": LONGEST},
            name=picture.name,
            width=measures.width,
            height=measures.height,
            ratio=f"{ratio:.1f}",
        )


def _lettering(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    if measures.mark is None:
        return
    _, top, _, bottom = measures.mark
    left, upper, right, lower = measures.inner
    # the shorter way out: above the lettering, or below it
    above = top - upper > lower - bottom
    box = (
        [left, upper, right, math.floor(top - 1)]
        if above
        else [left, math.ceil(bottom + 1), right, lower]
    )
    hint = (
        "Crop or paint it over: lettering that many pictures share is learned first. Where it"
        " belongs to the picture, say it in the caption."
    )
    mend, share = {"mend": "crop", "box": box}, round((bottom - top) / measures.height, 3)
    template = (
        "{name} seems to have lettering at the bottom: a watermark, signature or date"
        if above
        else "{name} seems to have lettering at the top: a watermark, signature or date"
    )
    yield problem(
        "lettering",
        template,
        hint=hint,
        path=picture.path,
        measured=share,
        mend=mend,
        name=picture.name,
    )


def _exposure(picture: CheckedImage, measures: Measures, resolution: int) -> Iterable[Finding]:
    leave_out = {"mend": "leave_out"}
    if is_dark(measures):
        hint = (
            "Lighten it in an image editor, or leave it out. Is darkness the style, say so in the"
            " captions."
        )
        template = "{name} is very dark: nearly all of it lies below {percent} % brightness"
        percent = max(1, math.ceil(measures.brightest / 2.55))
        yield problem(
            "too-dark",
            template,
            hint=hint,
            path=picture.path,
            measured=measures.brightest,
            mend=leave_out,
            name=picture.name,
            percent=percent,
        )
    elif is_bright(measures):
        template = "{name} is very bright: {percent} % of it is blown out"
        hint = (
            "Darken it in an image editor, or leave it out; what is blown out to white cannot be"
            " won back."
        )
        if measures.clipped < BLOWN:
            template = "{name} is very bright, and nowhere dark"
            hint = "Raise its contrast in an image editor, unless pale colours are the style."
        yield problem(
            "too-bright",
            template,
            hint=hint,
            path=picture.path,
            measured=measures.clipped,
            mend=leave_out,
            name=picture.name,
            percent=round(100 * measures.clipped),
        )
    elif is_flat(measures):
        hint = "Raise its contrast in an image editor, unless that is the style."
        template = (
            "{name} has little contrast: light and dark are only {percent} % of the full range"
            " apart"
        )
        percent = round(measures.contrast / 2.55)
        yield problem(
            "low-contrast",
            template,
            hint=hint,
            path=picture.path,
            measured=measures.contrast,
            mend=leave_out,
            name=picture.name,
            percent=percent,
        )


_QUESTIONS: tuple[Callable[[CheckedImage, Measures, int], Iterable[Finding]], ...] = (
    _size,
    _blur,
    _border,
    _shape,
    _lettering,
    _exposure,
)


# --- the subject, where a mask says which it is ---------------------------------------------------


def _subject(picture: CheckedImage, measures: Measures) -> Iterable[Finding]:
    if picture.mask is None:
        return
    box = mask_box(picture.mask, measures.width, measures.height)
    if box is None:
        template = "{name}: its mask {mask} is empty or cannot be read"
        yield problem(
            "small-subject",
            template,
            path=picture.path,
            measured=0.0,
            name=picture.name,
            mask=picture.mask.name,
        )
        return
    share = (box[2] - box[0]) * (box[3] - box[1]) / (measures.width * measures.height)
    if share < SUBJECT_SHARE:
        mend = {
            "mend": "crop",
            "box": list(grown(box, WANTED_SHARE, measures.width, measures.height)),
        }
        yield problem(
            "small-subject",
            "{name}: the subject takes up {percent} % of the picture",
            hint="Crop closer: 60 % or more teaches a subject best.",
            path=picture.path,
            measured=round(share, 3),
            mend=mend,
            name=picture.name,
            percent=round(100 * share),
        )


def mask_box(mask: Path, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The smallest box around the white of a mask, in pixels of its width x height picture; None
    where there is no white, or no mask.
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
    """A box around `box`, as far as the picture goes the same factor larger both ways, of which
    `box` is about `share`.
    """
    left, top, right, bottom = box
    factor = (1 / math.sqrt(share) - 1) / 2
    aside, above = (right - left) * factor, (bottom - top) * factor
    start = max(0, math.floor(left - aside)), max(0, math.floor(top - above))
    return *start, min(width, math.ceil(right + aside)), min(height, math.ceil(bottom + above))
