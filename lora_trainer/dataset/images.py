"""Image files -> pixels: whatever the file holds, an upright 8-bit RGB picture comes out, or a DatasetError that says what is wrong with the file.

    read_image(path)   the whole picture
    image_size(path)   its size, from the header alone
    examine(path)      its size and content hash, after decoding all of it once: is the file sound?
    fit(image, bucket) resized and cropped to a bucket, with the numbers SDXL is told about it
    write_reduced(...) a small copy, to be looked at
    suffix_of(path)    what a file's name should end in, by its content

Called by dataset.scan, training.images and the tab. Works with Pillow 9.5 (what A1111 ships) and later.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, features

from lora_trainer.dataset.buckets import Bucket
from lora_trainer.errors import DatasetError

READABLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"})
"""Suffixes of the pictures every Pillow reads; `readable_suffixes` adds .avif where it can."""

OTHER_PICTURE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".tga", ".svg", ".eps", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)
"""Pictures that are not read here: each is named, so that none is missed silently."""

MAX_PIXELS = 178_956_970
"""Where Pillow by default refuses to decode: half a gigabyte of RGB. A header may claim anything."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
"""What is opened, by content; other plugins of Pillow (one of them starts Ghostscript) stay out of it."""

_SUFFIXES = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "DIB": ".dib", "TIFF": ".tif", "GIF": ".gif", "AVIF": ".avif",
}  # fmt: skip

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (EXIF 2.32, section 4.6.4)."""

_SAVE_AGAIN = "Open it in an image editor and save it as PNG, or remove it."
_COPY_AGAIN = "Copy or download it again, or remove it."


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A sound image file: the size in pixels of its upright picture, and the hash of the file's content."""

    width: int
    height: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A picture cut to its bucket, and what SDXL's size conditioning is told (arXiv 2307.01952, section 2.2)."""

    image: Image.Image
    original_size: tuple[int, int]
    """(width, height) of the upright picture in the file."""
    crop_top_left: tuple[int, int]
    """(top, left) of the crop, in pixels of the resized picture."""
    target_size: tuple[int, int]
    """(width, height) of the bucket."""


def readable_suffixes() -> frozenset[str]:
    """The lower-case suffixes of the files read here, with the dot."""
    return READABLE_SUFFIXES | {".avif"} if "AVIF" in _readable_formats() else READABLE_SUFFIXES


def read_image(path: Path, background: str = "white") -> Image.Image:
    """An image file -> its first frame, upright, as 8-bit RGB in sRGB.

    `background` (a colour name or #rrggbb) shows through where the picture is transparent. 16-bit and floating-point greys are scaled to their
    full range; an embedded colour profile is applied. Raises DatasetError for whatever is not a whole, readable picture.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        image.load()
        return _rgb(_upright(image), background)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, from the file's header. Raises DatasetError."""
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        if image.format == "PNG" and not _may_have_exif(image, file):
            return image.width, image.height
        return _upright_size(image)


def suffix_of(path: Path) -> str:
    """The suffix that tells what the file really is, ".jpg" for a JPEG called .heic. Raises DatasetError for what is not read here."""
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        return _SUFFIXES[image.format or ""]


def write_reduced(path: Path, target: Path, longest_side: int, quality: int = 82) -> tuple[int, int]:
    """Writes a picture to `target` as WebP, upright, on white, no side above `longest_side` pixels. Returns its own upright size in pixels.

    Raises DatasetError for whatever is not a whole, readable picture.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        size = _upright_size(image)
        # twice what is needed, so that the resizing still has something to average
        scale = 2 * longest_side / max(image.size)
        if scale < 1:
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()
        small = _rgb(_upright(image), "white")
    small.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.save(target, "WEBP", quality=quality, method=0)  # a tenth larger, in half the time
    return size


def examine(path: Path) -> Examined:
    """Decodes the whole first frame once. Raises DatasetError for a file that is cut off or otherwise damaged."""
    with _explained(path):
        data = path.read_bytes()
        with _open(io.BytesIO(data), path) as image:
            width, height = _upright_size(image)
            # JPEG: every byte is still decoded, at an eighth of the pixels; three times as fast
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _require_finite(image)
    return Examined(width=width, height=height, digest=_hash(data))


def digest(path: Path) -> str:
    """A hash of the file's content (BLAKE2b, 40 hexadecimal digits): the key of everything computed from it. Raises DatasetError."""
    with _explained(path):
        return _hash(path.read_bytes())


def fit(image: Image.Image, bucket: Bucket, resampling: Image.Resampling | None = None) -> Fitted:
    """Resizes a picture until it just covers the bucket, and crops what is over, equally at both ends.

    `resampling`: for what is no picture, as a mask.
    """
    scale = max(bucket.width / image.width, bucket.height / image.height)
    width, height = max(bucket.width, round(image.width * scale)), max(bucket.height, round(image.height * scale))
    # Lanczos keeps detail when shrinking, and rings when enlarging
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    # reducing first would mix neighbours, which a mask must not have
    how: dict[str, Any] = {"resample": smooth, "reducing_gap": 3.0} if resampling is None else {"resample": resampling}
    resized = image if (width, height) == image.size else image.resize((width, height), **how)
    left, top = (width - bucket.width) // 2, (height - bucket.height) // 2
    return Fitted(
        image=resized.crop((left, top, left + bucket.width, top + bucket.height)),
        original_size=image.size,
        crop_top_left=(top, left),
        target_size=(bucket.width, bucket.height),
    )


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


# --- opening, and what can be wrong ------------------------------------------------------------------------------------------------------


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    if "AVIF" not in Image.OPEN:
        # A1111 ships this plugin beside its Pillow 9.5, which cannot read AVIF by itself
        with suppress(ImportError):
            importlib.import_module("pillow_avif")
    avif = ".avif" in Image.registered_extensions()
    return tuple(name for name in _FORMATS if name in Image.OPEN and (name != "AVIF" or avif))


def _open(file: io.BufferedReader | io.BytesIO, path: Path) -> Image.Image:
    try:
        image = Image.open(file, formats=_readable_formats())
    except UnidentifiedImageError:
        raise _not_a_picture(path, file) from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    if image.format == "TIFF" and (image.tag_v2.get(262), image.tag_v2.get(259, 1)) == (6, 1):  # type: ignore[attr-defined]
        # Pillow takes them for four bytes a pixel, and calls the file cut off
        raise _unread_tiff(path, "YCbCr without compression")
    # checked here as well: programs that import Pillow, hosts among them, take its own limit away
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path)
    return image


class _NotFinite(Exception):
    """So many pixels of a floating-point picture are infinite or not a number."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns whatever reading an image raises into a DatasetError with a sentence of its own."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DatasetError("{path} does not exist", hint="Check the name.", path=path) from error
    except _NotFinite as error:
        hint = "The program that wrote it divided by zero, or marked empty places so. Save it again as 16-bit TIFF or PNG, or remove it."
        template = "{path} has pixels that are infinite or not a number ({count} of them)"
        raise DatasetError(template, hint=hint, path=path, count=error.count) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise DatasetError("{path} cannot be read: {reason}", hint="Check the file and the disk.", path=path, reason=error.strerror) from error
        # Pillow's decoders meet arbitrary bytes here, and fail with a dozen types: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        if "truncated" in str(error).lower():
            raise DatasetError("{path} is cut off: the file ends before the picture does", hint=_COPY_AGAIN, path=path) from error
        raise DatasetError("{path} is damaged ({reason})", hint=_COPY_AGAIN, path=path, reason=str(error) or type(error).__name__) from error


def _too_large(path: Path) -> DatasetError:
    return DatasetError("{path} claims more than {limit} million pixels", hint="Make it smaller, or remove it.", path=path, limit=MAX_PIXELS // 10**6)


def _not_a_picture(path: Path, file: io.BufferedReader | io.BytesIO) -> DatasetError:
    """What a file that no decoder knows really is."""
    file.seek(0)
    head = file.read(4096)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    start = head.lstrip()[:64].lower()
    if not head:
        return DatasetError("{path} is empty (0 bytes)", hint=_COPY_AGAIN, path=path)
    if not head.strip(b"\0"):
        return DatasetError("{path} holds nothing but zeros", hint=_COPY_AGAIN, path=path)
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return DatasetError("{path} is an HEIC picture, which is not read here", hint="Export it as JPEG or PNG.", path=path)
    if brand in (b"avif", b"avis"):
        hint = "Export it as PNG, or use Pillow 11.3 or later."
        return DatasetError("{path} is an AVIF picture, which this Pillow cannot read", hint=hint, path=path)
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return DatasetError("{path} is a JPEG XL picture, which is not read here", hint="Export it as JPEG or PNG.", path=path)
    if start.startswith((b"<!doctype html", b"<html")):
        return DatasetError("{path} is a web page, not a picture", hint="Download the picture itself, or remove it.", path=path)
    if start.startswith(b"version https://git-lfs"):
        return DatasetError("{path} is a Git LFS pointer, not the picture", hint="Run `git lfs pull` in its folder.", path=path)
    if head.startswith((b"II*\0", b"MM\0*")) and (kind := _kind_of_tiff(file)):
        return _unread_tiff(path, kind)
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return DatasetError("{path} is cut off or damaged: its header cannot be read", hint=_COPY_AGAIN, path=path)
    return DatasetError("{path} is not a picture in a format that is read here", hint=_SAVE_AGAIN, path=path)


def _unread_tiff(path: Path, kind: str) -> DatasetError:
    return DatasetError("{path} is a TIFF of a kind that is not read here ({kind})", hint=_SAVE_AGAIN, path=path, kind=kind)


def _kind_of_tiff(file: io.BufferedReader | io.BytesIO) -> str:
    """What the tags of a TIFF say that Pillow does not open, as "3 x 32 bits, floating point"; nothing where they cannot be read."""
    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, formats = tags[TiffImagePlugin.BITSPERSAMPLE], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        return f"{tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)} x {bits[0]} bits" + (", floating point" if 3 in formats else "")
    except Exception:  # what makes a TIFF unreadable is of a dozen types
        return ""


# --- upright -----------------------------------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # camera software writes EXIF of all kinds; a picture that decodes is not refused for it
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _may_have_exif(image: Image.Image, file: io.BufferedReader) -> bool:
    """Whether a PNG, just opened, may hold EXIF. It may lie behind the pixels, so Pillow decodes them all to find out; the chunks' names tell too."""
    if "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, io.SEEK_CUR)
    finally:
        file.seek(position)
    return False


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """The size the loaded picture will have when upright; call before loading."""
    width, height = image.size
    if image.format == "TIFF":
        # before Pillow 11.3 the size of an opened TIFF is as stored, from then on already upright
        width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _upright(image: Image.Image) -> Image.Image:
    """A loaded picture, turned as its EXIF orientation asks."""
    # Pillow turns a TIFF while it loads it
    method = None if image.format == "TIFF" else _TRANSPOSITIONS.get(_orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    turned.info = image.info
    return turned


# --- 8-bit RGB ---------------------------------------------------------------------------------------------------------------------------


def _rgb(image: Image.Image, background: str) -> Image.Image:
    """A loaded picture of any mode -> RGB in sRGB on the background."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _srgb(_eight_bits(image), profile)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La")
        opaque = image.convert("RGBA")
        picture = _srgb(opaque.getchannel("R") if grey else opaque.convert("RGB"), profile)
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(picture, mask=opaque.getchannel("A"))
        return canvas
    if image.mode in ("L", "CMYK", "RGB"):
        return _srgb(image, profile)
    return _srgb(image.convert("L" if image.mode == "1" else "RGB"), profile)


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, CMYK or RGB -> RGB in sRGB. A colour profile that is broken or meant for another mode is left aside, as browsers do."""
    if profile and features.check("littlecms2"):
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            meant_for = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip())
            if meant_for == image.mode and "sRGB" not in ImageCms.getProfileDescription(source):
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                if converted is not None:
                    return converted
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """I;16, I or F -> L, its full range onto 0..255 (Pillow's own conversion clips at 255)."""
    numbers = image.convert("I") if image.mode.startswith("I;16") else image
    scale = 255 / _full_scale(image)
    # half a step more, because the conversion to L cuts the fraction off
    return numbers.convert("F").point(lambda value: value * scale + 0.5).convert("L")


def _full_scale(image: Image.Image) -> float:
    """The number that means white in a grey picture of more than 8 bits."""
    bits = _bits(image)
    if image.mode != "F" and bits <= 16:
        return float(2**bits - 1)
    # 32-bit integers and floating point have no fixed white: take the smallest usual one that holds the brightest pixel
    brightest = _brightest(image)
    if image.mode == "F" and 1 < brightest <= 2:
        return brightest  # 0..1 with highlights, rather than a nearly black picture in 0..255
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    return next((white for white in usual if brightest <= white), brightest)


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        return int(image.tag_v2.get(258, (16,))[0])  # type: ignore[attr-defined]
    return 16


def _brightest(image: Image.Image) -> float:
    _require_finite(image)
    return float(image.getextrema()[1])  # type: ignore[arg-type]


def _require_finite(image: Image.Image) -> None:
    """Raises _NotFinite for a floating-point picture, loaded, with pixels that are not. Pillow's own extrema pass over what is not a number."""
    if image.mode == "F":
        count = int(numpy.count_nonzero(~numpy.isfinite(numpy.asarray(image))))
        if count:
            raise _NotFinite(count)
