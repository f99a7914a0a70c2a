"""HEIC images as a phone writes them, for the tests of the tab; and a process that cannot decode
them, as a host's.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lora_trainer.dataset import images


def heic(
    colour: str | tuple[int, ...] = "red",
    size: tuple[int, int] = (64, 48),
    *,
    orientation: int = 1,
    where: bool = False,
) -> bytes:
    """`orientation` as EXIF has it; `where`: with the place it was taken at."""
    encoder = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    if where:
        exif.get_ifd(0x8825)[2] = (48.0, 51.0, 30.0)
    buffer = io.BytesIO()
    mode = "RGBA" if isinstance(colour, tuple) and len(colour) == 4 else "RGB"
    encoder.from_pillow(Image.new(mode, size, colour)).save(buffer, quality=95, exif=exif.tobytes())
    return buffer.getvalue()


def avif(colour: str = "red", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "AVIF", quality=90)
    return buffer.getvalue()


def without_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reads what A1111's does: neither HEIC nor AVIF."""
    plain = tuple(name for name in images._readable_formats() if name not in ("HEIF", "AVIF"))
    monkeypatch.setattr(images, "_readable_formats", lambda: plain)
