"""Image files -> pixels: whatever the file holds, an upright 8-bit RGB picture comes out, or a
DatasetError that says what is wrong with the file.

    read_image(path)   the whole picture, or of a large one as much detail as is needed
    image_size(path)   its size, from the header alone
    examine(path)      its size and content hash, after decoding all of it once: is the file sound?
    fit(image, bucket) resized and cropped to a bucket, with the numbers SDXL is told about it
    write_reduced(...) a small copy, to be looked at
    suffix_of(path)    what a file's name should end in, by its content
    foreign_form(path) "HEIC" or "AVIF" for a picture that this process cannot decode, and the
    worker's can convert(path, ...) a copy of a picture that every Pillow and every browser reads

A picture's memory is bounded: that of its pixels, once, for one large picture at a time; no picture
above a limit that a variable lifts.

Called by dataset.scan, training.images and the tab. Works with Pillow 9.5 (what A1111 ships) and
later; the worker has a Pillow and a HEIF reader that decode HEIC and AVIF, a host's process mostly
has none.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, features
from PIL import __version__ as PILLOW_VERSION

from lora_trainer import files
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.errors import DatasetError

READABLE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
    }
)
"""Suffixes of the pictures every Pillow reads; `readable_suffixes` adds those of AVIF and HEIF
where they can be.
"""

OTHER_PICTURE_SUFFIXES = frozenset(
    {
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".tga",
        ".svg",
        ".eps",
        ".exr",
        ".hdr",
        ".psd",
        ".psb",
        ".xcf",
        ".kra",
        ".clip",
        ".sai",
        ".sai2",
        ".mdp",
        ".ora",
        ".procreate",
        ".afphoto",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
    }
)
"""Pictures that are not read here: each is named, so that none is missed silently."""

CONVERTIBLE_SUFFIXES = frozenset({".heic", ".heif", ".hif", ".avif"})
"""Those among them that the worker reads, and converts for a process that does not."""

MAX_MEGAPIXELS = 128
"""Pictures with more million pixels are not decoded: cameras' have fewer, a header may claim
anything, and each pixel takes four bytes.
"""
LIMIT_VARIABLE = "LORA_TRAINER_MAX_MEGAPIXELS"
"""The environment variable that sets another limit, for all our processes."""

_LARGE = 16 * 10**6
"""Pictures with more pixels are decoded one at a time, whoever asks, and converted strip by strip.
"""
_STRIP = 4 * 10**6
_large_ones = threading.Lock()

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
"""What is opened, by content; other plugins of Pillow (one of them starts Ghostscript) stay out of
it.
"""

_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "DIB": ".dib",
    "TIFF": ".tif",
    "GIF": ".gif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
_LATER_SUFFIXES = {"AVIF": {".avif"}, "HEIF": {".heic", ".heif", ".hif"}}
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
"""What an ISO media file calls itself (ISO/IEC 23008-12); an AVIF may name mif1 as well."""
_PILLOW_NAMES = {"AVIF": "AVIF", "HEIC": "HEIF"}

JPEG_QUALITY = 95
"""Above it files grow, and nobody sees why."""

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
    """A sound image file: the size in pixels of its upright picture, and the hash of the file's
    content.
    """

    width: int
    height: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A picture cut to its bucket, and what SDXL's size conditioning is told (arXiv 2307.01952,
    section 2.2).
    """

    image: Image.Image
    original_size: tuple[int, int]
    """(width, height) of the upright picture in the file."""
    crop_top_left: tuple[int, int]
    """(top, left) of the crop, in pixels of the resized picture."""
    target_size: tuple[int, int]
    """(width, height) of the bucket."""


def readable_suffixes() -> frozenset[str]:
    """The lower-case suffixes of the files read here, with the dot."""
    return READABLE_SUFFIXES.union(
        *(suffixes for name, suffixes in _LATER_SUFFIXES.items() if name in _readable_formats())
    )


def max_megapixels() -> int:
    """The most million pixels that a picture may have."""
    with suppress(ValueError):
        return max(1, int(os.environ.get(LIMIT_VARIABLE, "")))
    return MAX_MEGAPIXELS


def read_image(
    path: Path, background: str = "white", *, covering: tuple[int, int] | None = None
) -> Image.Image:
    """An image file -> its first frame, upright, as 8-bit RGB in sRGB.

    `covering`: a picture of more than 16 million pixels may come out reduced by a whole number, but
    with at least three times this width and height: what `fit` and `resize` then make of it is what
    they would make of the whole.

    `background` (a colour name or #rrggbb) shows through where the picture is transparent. 16-bit
    and floating-point greys are scaled to their full range; an embedded colour profile is applied.
    Raises DatasetError for whatever is not a whole, readable picture.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image, _room_for(image):
        wanted = (
            None
            if covering is None or image.width * image.height <= _LARGE
            else (3 * covering[0], 3 * covering[1])
        )
        return _decoded(image, background, wanted)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, from the file's header. Raises DatasetError."""
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        if image.format == "PNG" and not _may_have_exif(image, file):
            return image.width, image.height
        return _upright_size(image)


def suffix_of(path: Path) -> str:
    """The suffix that tells what the file really is, ".jpg" for a JPEG called .heic. Raises
    DatasetError for what is not read here.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        return _SUFFIXES[image.format or ""]


def foreign_form(path: Path) -> str:
    """ "HEIC" or "AVIF", by the content, for a picture that this process cannot decode; nothing for
    every other file.
    """
    try:
        with path.open("rb") as file:
            form = _form(file.read(64))
    except OSError:
        return ""
    return "" if not form or _PILLOW_NAMES[form] in _readable_formats() else form


def convert(path: Path, stem: Path) -> Path:
    """A picture -> `stem`.jpg, or `stem`.png where it is transparent: upright, 8 bits, in sRGB.
    EXIF, which may tell a place, stays behind.

    Raises DatasetError for whatever is not a whole, readable picture, or when the copy cannot be
    written.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image, _room_for(image):
        picture = _clear(image)
    picture.info.clear()
    form, suffix, options = (
        ("PNG", ".png", {})
        if picture.mode == "RGBA"
        else ("JPEG", ".jpg", {"quality": JPEG_QUALITY, "subsampling": 0})
    )
    target = stem.with_name(stem.name + suffix)
    try:
        files.replace_file(target, lambda partial: picture.save(partial, form, **options))
    except OSError as problem:
        hint = "Check the free space on the disk."
        raise DatasetError(
            "{path} cannot be written: {reason}",
            hint=hint,
            path=path,
            reason=problem.strerror or problem,
        ) from problem
    return target


def write_reduced(
    path: Path, target: Path, longest_side: int, quality: int = 82
) -> tuple[int, int]:
    """Writes a picture to `target` as WebP, upright, on white, no side above `longest_side` pixels.
    Returns its own upright size in pixels.

    Raises DatasetError for whatever is not a whole, readable picture.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image, _room_for(image):
        width, height = size = _upright_size(image)
        # twice what is needed, so that the resizing still has something to average
        scale = min(1.0, 2 * longest_side / max(size))
        small = _decoded(
            image, "white", (max(1, round(width * scale)), max(1, round(height * scale)))
        )
    small.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.save(target, "WEBP", quality=quality, method=0)  # a tenth larger, in half the time
    return size


def examine(path: Path) -> Examined:
    """Decodes the whole first frame once. Raises DatasetError for a file that is cut off or
    otherwise damaged.
    """
    with _explained(path), path.open("rb") as file:
        content = _hash(file)
        file.seek(0)
        with _open(file, path) as image, _room_for(image):
            width, height = _upright_size(image)
            # JPEG: every byte is still decoded, at an eighth of the pixels; three times as fast
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _require_finite(image)
    return Examined(width=width, height=height, digest=content)


def digest(path: Path) -> str:
    """A hash of the file's content (BLAKE2b, 40 hexadecimal digits): the key of everything computed
    from it. Raises DatasetError.
    """
    with _explained(path), path.open("rb") as file:
        return _hash(file)


def fit(
    image: Image.Image,
    bucket: Bucket,
    resampling: Image.Resampling | None = None,
    *,
    whole: tuple[int, int] | None = None,
) -> Fitted:
    """Resizes a picture until it just covers the bucket, and crops what is over, equally at both
    ends.

    `resampling`: for what is no picture, as a mask. `whole`: the size of the picture in its file,
    where `image` was read reduced.
    """
    whole = whole or image.size
    scale = max(bucket.width / whole[0], bucket.height / whole[1])
    width = max(bucket.width, round(whole[0] * scale))
    height = max(bucket.height, round(whole[1] * scale))
    # Lanczos keeps detail when shrinking, and rings when enlarging
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    # reducing first would mix neighbours, which a mask must not have
    how: dict[str, Any] = (
        {"resample": smooth, "reducing_gap": 3.0}
        if resampling is None
        else {"resample": resampling}
    )
    resized = image if (width, height) == image.size else image.resize((width, height), **how)
    left, top = (width - bucket.width) // 2, (height - bucket.height) // 2
    return Fitted(
        image=resized.crop((left, top, left + bucket.width, top + bucket.height)),
        original_size=whole,
        crop_top_left=(top, left),
        target_size=(bucket.width, bucket.height),
    )


def _hash(file: BinaryIO) -> str:
    found = hashlib.blake2b(digest_size=20)
    while piece := file.read(2**20):
        found.update(piece)
    return found.hexdigest()


# --- opening, and what can be wrong ---------------------------------------------------------------


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    if "AVIF" not in Image.OPEN:
        # A1111 ships this plugin beside its Pillow 9.5, which cannot read AVIF by itself
        with suppress(ImportError):
            importlib.import_module("pillow_avif")
    # made for Pillow 11.1: with an older one, every such picture would pass for damaged
    for name in (
        ("pi_heif", "pillow_heif")
        if tuple(map(int, PILLOW_VERSION.split(".")[:2])) >= (11, 1)
        else ()
    ):
        # the first only decodes, and so brings no encoder under the GPL
        if "HEIF" not in Image.OPEN:
            with suppress(ImportError, AttributeError):
                importlib.import_module(name).register_heif_opener()
    avif = ".avif" in Image.registered_extensions()
    return tuple(name for name in _FORMATS if name in Image.OPEN and (name != "AVIF" or avif))


def _open(file: BinaryIO, path: Path) -> Image.Image:
    limit = max_megapixels()
    if Image.MAX_IMAGE_PIXELS and limit * 10**6 > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # ours is what was asked for
    try:
        image = Image.open(file, formats=_readable_formats())
    except UnidentifiedImageError:
        raise _not_a_picture(path, file) from None
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+", str(error))
        raise _too_large(path, int(claimed[0]) if claimed else 0, limit) from None
    if image.format == "TIFF" and (image.tag_v2.get(262), image.tag_v2.get(259, 1)) == (6, 1):  # type: ignore[attr-defined]
        # Pillow takes them for four bytes a pixel, and calls the file cut off
        raise _unread_tiff(path, "YCbCr without compression")
    # checked here as well: programs that import Pillow, hosts among them, take its own limit away
    if image.width * image.height > limit * 10**6:
        raise _too_large(path, image.width * image.height, limit)
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
        hint = (
            "The program that wrote it divided by zero, or marked empty places so. Save it again as"
            " 16-bit TIFF or PNG, or remove it."
        )
        template = "{path} has pixels that are infinite or not a number ({count} of them)"
        raise DatasetError(template, hint=hint, path=path, count=error.count) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise DatasetError(
                "{path} cannot be read: {reason}",
                hint="Check the file and the disk.",
                path=path,
                reason=error.strerror,
            ) from error
        # Pillow's decoders meet arbitrary bytes here, and fail with a dozen types: OSError,
        # SyntaxError, ValueError, struct.error, zlib.error ...
        if "truncated" in str(error).lower():
            raise DatasetError(
                "{path} is cut off: the file ends before the picture does",
                hint=_COPY_AGAIN,
                path=path,
            ) from error
        raise DatasetError(
            "{path} is damaged ({reason})",
            hint=_COPY_AGAIN,
            path=path,
            reason=str(error) or type(error).__name__,
        ) from error


def _too_large(path: Path, pixels: int, limit: int) -> DatasetError:
    return DatasetError(
        "{path} has {megapixels} million pixels, and no more than {limit} million are read",
        hint=(
            "Make it smaller. If its size is meant, set the environment variable {variable} to"
            " {megapixels} and start again."
        ),
        path=path,
        megapixels=-(-pixels // 10**6),
        limit=limit,
        variable=LIMIT_VARIABLE,
    )


def _room_for(image: Image.Image) -> AbstractContextManager[Any]:
    """What a large picture is decoded in: many at once would take as many times the memory."""
    return _large_ones if image.width * image.height > _LARGE else nullcontext()


def _not_a_picture(path: Path, file: BinaryIO) -> DatasetError:
    """What a file that no decoder knows really is."""
    file.seek(0)
    head = file.read(4096)
    form = _form(head)
    start = head.lstrip()[:64].lower()
    if not head:
        return DatasetError("{path} is empty (0 bytes)", hint=_COPY_AGAIN, path=path)
    if not head.strip(b"\0"):
        return DatasetError("{path} holds nothing but zeros", hint=_COPY_AGAIN, path=path)
    if form and _PILLOW_NAMES[form] in _readable_formats():
        return DatasetError(
            "{path} is cut off or damaged: its header cannot be read", hint=_COPY_AGAIN, path=path
        )
    if form == "HEIC":
        hint = (
            "Export it as JPEG or PNG. On an iPhone, Settings, Camera, Formats, Most Compatible"
            " takes JPEG pictures from now on."
        )
        return DatasetError(
            "{path} is an HEIC picture, which is not read here", hint=hint, path=path
        )
    if form == "AVIF":
        hint = "Export it as PNG, or use Pillow 11.3 or later."
        return DatasetError(
            "{path} is an AVIF picture, which this Pillow cannot read", hint=hint, path=path
        )
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return DatasetError(
            "{path} is a JPEG XL picture, which is not read here",
            hint="Export it as JPEG or PNG.",
            path=path,
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return DatasetError(
            "{path} is a web page, not a picture",
            hint="Download the picture itself, or remove it.",
            path=path,
        )
    if start.startswith(b"version https://git-lfs"):
        return DatasetError(
            "{path} is a Git LFS pointer, not the picture",
            hint="Run `git lfs pull` in its folder.",
            path=path,
        )
    if head.startswith((b"II*\0", b"MM\0*")) and (kind := _kind_of_tiff(file)):
        return _unread_tiff(path, kind)
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return DatasetError(
            "{path} is cut off or damaged: its header cannot be read", hint=_COPY_AGAIN, path=path
        )
    return DatasetError(
        "{path} is not a picture in a format that is read here", hint=_SAVE_AGAIN, path=path
    )


def _form(head: bytes) -> str:
    """ "HEIC", "AVIF" or nothing, by the first bytes of a file."""
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
    return next((form for form, known in _BRANDS.items() if brands & known), "")


def _unread_tiff(path: Path, kind: str) -> DatasetError:
    return DatasetError(
        "{path} is a TIFF of a kind that is not read here ({kind})",
        hint=_SAVE_AGAIN,
        path=path,
        kind=kind,
    )


def _kind_of_tiff(file: BinaryIO) -> str:
    """What the tags of a TIFF say that Pillow does not open, as "3 x 32 bits, floating point";
    nothing where they cannot be read.
    """
    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits = tags[TiffImagePlugin.BITSPERSAMPLE]
        formats = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        return f"{tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)} x {bits[0]} bits" + (
            ", floating point" if 3 in formats else ""
        )
    except Exception:  # what makes a TIFF unreadable is of a dozen types
        return ""


# --- upright --------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (
        Exception
    ):  # camera software writes EXIF of all kinds; a picture that decodes is not refused for it
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _may_have_exif(image: Image.Image, file: io.BufferedReader) -> bool:
    """Whether a PNG, just opened, may hold EXIF. It may lie behind the pixels, so Pillow decodes
    them all to find out; the chunks' names tell too.
    """
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


# --- decoding -------------------------------------------------------------------------------------


def _decoded(image: Image.Image, background: str, wanted: tuple[int, int] | None) -> Image.Image:
    """An opened picture -> upright, RGB in sRGB, reduced by a whole number as far as it stays at
    least `wanted` (its whole size without).
    """
    orientation = _orientation(image)
    if wanted is not None:
        # a JPEG is decoded at a half, a quarter or an eighth at once
        image.draft(None, wanted[::-1] if orientation >= 5 else wanted)
    image.load()
    # Pillow turns a TIFF while it loads it
    method = None if image.format == "TIFF" else _TRANSPOSITIONS.get(orientation)
    if wanted is not None and method is not None and orientation >= 5:
        wanted = wanted[::-1]
    factor = (
        1 if wanted is None else max(1, min(image.width // wanted[0], image.height // wanted[1]))
    )
    picture = _reduced_rgb(image, background, factor)
    return picture if method is None else picture.transpose(method)


def _reduced_rgb(image: Image.Image, background: str, factor: int) -> Image.Image:
    """A loaded picture -> RGB in sRGB at 1/factor of its size: in strips, so that a large one
    exists only once as it was.
    """
    white = _full_scale(image) if _is_deep(image) else 255.0
    if image.width * image.height <= _LARGE:
        whole = _rgb(image, background, white)
        return whole if factor == 1 else whole.reduce(factor)
    picture = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    height = max(1, _STRIP // image.width // factor) * factor
    for top in range(0, image.height, height):
        strip = _rgb(_strip(image, top, height), background, white)
        picture.paste(strip if factor == 1 else strip.reduce(factor), (0, top // factor))
    return picture


def _strip(image: Image.Image, top: int, height: int) -> Image.Image:
    return image.crop((0, top, image.width, min(image.height, top + height)))


def _clear(image: Image.Image) -> Image.Image:
    """An opened picture -> upright and in sRGB: RGB, or RGBA where something shows through."""
    image.load()
    opacity = (
        image.convert("RGBA").getchannel("A")
        if image.mode in _WITH_ALPHA or "transparency" in image.info
        else None
    )
    if opacity is None or opacity.getextrema()[0] == 255:
        return _decoded(image, "white", None)
    method = None if image.format == "TIFF" else _TRANSPOSITIONS.get(_orientation(image))
    picture = _srgb(image.convert("RGBA").convert("RGB"), image.info.get("icc_profile"))
    picture.putalpha(opacity)
    return picture if method is None else picture.transpose(method)


# --- 8-bit RGB ------------------------------------------------------------------------------------


_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def _is_deep(image: Image.Image) -> bool:
    """Whether it is a grey picture of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _rgb(image: Image.Image, background: str, white: float) -> Image.Image:
    """A loaded picture of any mode -> RGB in sRGB on the background. `white`: the number that means
    white in a deep one.
    """
    profile = image.info.get("icc_profile")
    if _is_deep(image):
        return _srgb(_eight_bits(image, white), profile)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
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
    """L, CMYK or RGB -> RGB in sRGB. A colour profile that is broken or meant for another mode is
    left aside, as browsers do.
    """
    if profile and features.check("littlecms2"):
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            meant_for = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(
                source.profile.xcolor_space.strip()
            )
            if meant_for == image.mode and "sRGB" not in ImageCms.getProfileDescription(source):
                converted = ImageCms.profileToProfile(
                    image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:
                    return converted
    return image.convert("RGB")


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """I;16, I or F -> L, its full range onto 0..255 (Pillow's own conversion clips at 255)."""
    numbers = image.convert("I") if image.mode.startswith("I;16") else image
    scale = 255 / white
    # half a step more, because the conversion to L cuts the fraction off
    return numbers.convert("F").point(lambda value: value * scale + 0.5).convert("L")


def _full_scale(image: Image.Image) -> float:
    """The number that means white in a grey picture of more than 8 bits."""
    bits = _bits(image)
    if image.mode != "F" and bits <= 16:
        return float(2**bits - 1)
    # 32-bit integers and floating point have no fixed white: take the smallest usual one that holds
    # the brightest pixel
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
    """Raises _NotFinite for a floating-point picture, loaded, with pixels that are not. Pillow's
    own extrema pass over what is not a number.
    """
    if image.mode == "F":
        height = max(1, _STRIP // image.width)
        strips = (_strip(image, top, height) for top in range(0, image.height, height))
        count = sum(
            int(numpy.count_nonzero(~numpy.isfinite(numpy.asarray(strip)))) for strip in strips
        )
        if count:
            raise _NotFinite(count)
