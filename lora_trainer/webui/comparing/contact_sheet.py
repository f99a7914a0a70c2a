"""Composes images into one sheet, with the strength above each column and the LoRA beside each row.
Pillow only. Called by generation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GROUND, INK = (250, 250, 250), (20, 20, 20)
GAP = 8
LONGEST_SIDE = 12_000
"""Pixels; larger sheets are scaled down, because browsers do not show them."""


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    names: Sequence[str],
    font_file: Path | None = None,
) -> Image.Image:
    """Compose images of one size, by row and column, with labels. names: of the rows; if all are
    empty, there is no column for them.
    """
    width, height = rows[0][0].size
    size = max(14, min(width, height) // 14)
    top = [_label(text, size, font_file) for text in columns]
    side = [_label(text, size, font_file) for text in names]
    left = max(label.width for label in side) + 2 * GAP if any(names) else GAP
    head = max(label.height for label in top) + 2 * GAP
    whole = Image.new(
        "RGB", (left + len(columns) * (width + GAP), head + len(rows) * (height + GAP)), GROUND
    )
    for column, label in enumerate(top):
        whole.paste(
            label, (left + column * (width + GAP) + max(0, (width - label.width) // 2), GAP)
        )
    for number, row in enumerate(rows):
        y = head + number * (height + GAP)
        if names[number]:
            whole.paste(side[number], (GAP, y + (height - side[number].height) // 2))
        for column, image in enumerate(row):
            whole.paste(image, (left + column * (width + GAP), y))
    if max(whole.size) > LONGEST_SIDE:
        whole.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return whole


def _label(text: str, size: int, font_file: Path | None) -> Image.Image:
    """Text on the sheet's background, about `size` pixels high."""
    font, scale = _font(size, font_file)
    # before Pillow 10.1 the default font is a bitmap of Latin-1 only
    text = text.encode("latin-1", "replace").decode("latin-1") if scale > 1 else text
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text or " "))
    image = Image.new("RGB", (right - left + 2, bottom - top + 2), GROUND)
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=INK, font=font)
    return (
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        if scale > 1
        else image
    )


def _font(
    size: int, font_file: Path | None
) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """(font, factor by which its text must be enlarged)"""
    try:
        if font_file is not None:
            return ImageFont.truetype(str(font_file), size), 1
    except (OSError, ImportError):
        pass
    try:
        return ImageFont.load_default(size), 1
    except (TypeError, OSError, ImportError):
        return ImageFont.load_default(), max(1, round(size / 11))
