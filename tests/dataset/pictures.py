"""Images drawn on the spot, and the file formats Pillow cannot write, written by hand."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from pathlib import Path

from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(
    path: Path,
    size: tuple[int, int] = (96, 64),
    colour: tuple[int, ...] | str = (200, 100, 50),
    **options: object,
) -> Path:
    """An image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)  # type: ignore[arg-type]
    return path


def noise(size: tuple[int, int] = (128, 96), seed: int = 1) -> Image.Image:
    """An image that does not compress, so that half its file is half of it."""
    return Image.frombytes("RGB", size, _noise(size[0] * size[1] * 3, seed))


@cache
def _noise(count: int, seed: int) -> bytes:
    state, data = seed, bytearray()
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        data.append(state >> 16 & 255)
    return bytes(data)


def corners(size: tuple[int, int] = (32, 16)) -> Image.Image:
    """Red, green / blue, white in the quarters: which way up it is can be seen."""
    width, height = size
    image = Image.new("RGB", size)
    for column, row, colour in ((0, 0, RED), (1, 0, GREEN), (0, 1, BLUE), (1, 1, WHITE)):
        image.paste(
            colour,
            (
                column * width // 2,
                row * height // 2,
                (column + 1) * width // 2,
                (row + 1) * height // 2,
            ),
        )
    return image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour_type: int, row: bytes) -> bytes:
    """A PNG of equal rows, of any depth (PNG specification, section 11.2)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )


def tiff(
    width: int, height: int, *, channels: int, bits: int, pixels: bytes, sample_format: int = 1
) -> bytes:
    """An uncompressed little-endian TIFF in one strip (TIFF 6.0)."""
    short, long = 3, 4
    bits_at = 8 + 2 + 12 * 10 + 4
    pixels_at = bits_at + 2 * channels
    tags = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, channels, bits if channels == 1 else bits_at),
        (259, short, 1, 1),
        (262, short, 1, 1 if channels == 1 else 2),
        (273, long, 1, pixels_at),
        (277, short, 1, channels),
        (278, long, 1, height),
        (279, long, 1, len(pixels)),
        (339, short, 1, sample_format),
    ]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + struct.pack("<I", 0)
    )
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<H", bits) * channels + pixels
