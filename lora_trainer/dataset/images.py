"""Image files -> upright 8-bit RGB images, or a DatasetError that says what is wrong with the file.

    read_image(path)   the whole image, or a large one with as much detail as needed
    image_size(path)   its size, from the header
    examine(path)      its size and content hash, after decoding it completely
    fit(image, bucket) resized and cropped to a bucket, with the values for SDXL's size condition
    write_reduced(...) a thumbnail
    suffix_of(path)    the suffix for its content
    foreign_form(path) "HEIC" or "AVIF" for an image that only the worker can decode
    convert(path, ...) a copy that every Pillow and browser can read

Memory is bounded: large images are decoded one at a time, and images above a configurable limit are
refused. Works with Pillow 9.5 (A1111's) and later; the worker's Pillow and HEIF reader decode HEIC
and AVIF, a host's mostly do not.
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
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .tif .tiff .gif".split()
)
"""Suffixes of formats that every Pillow reads; `readable_suffixes` adds AVIF and HEIF if
available.
"""

OTHER_IMAGE_SUFFIXES = frozenset(
    (
        ".heic .heif .hif .avif .jxl .jp2 .j2k .tga .svg .eps .exr .hdr .psd .psb .xcf .kra"
        " .clip .sai .sai2 .mdp .ora .procreate .afphoto .raw .dng .cr2 .cr3 .nef .arw .orf .rw2"
        " .raf .pef .srw"
    ).split()
)
"""Image formats that are not read; each such file is reported."""

CONVERTIBLE_SUFFIXES = frozenset({".heic", ".heif", ".hif", ".avif"})
"""Of these, the formats that the worker reads, and can convert."""

MAX_MEGAPIXELS = 128
"""Larger images are not decoded: camera images are smaller, a header may claim anything, and each
pixel takes four bytes.
"""
LIMIT_VARIABLE = "LORA_TRAINER_MAX_MEGAPIXELS"
"""Environment variable that overrides the limit."""

_LARGE = 16 * 10**6
"""Larger images are decoded one at a time, and converted in strips."""
_STRIP = 4 * 10**6
_large_ones = threading.Lock()

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
"""Formats that are opened, by content; excludes Pillow's other plugins (one starts Ghostscript)."""

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
"""Brands of ISO media files (ISO/IEC 23008-12); an AVIF may have mif1 as well."""
_PILLOW_NAMES = {"AVIF": "AVIF", "HEIC": "HEIF"}

JPEG_QUALITY = 95
"""Higher values only make files larger."""

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
"""EXIF orientation -> the transposition to upright (EXIF 2.32, section 4.6.4)."""

_SAVE_AGAIN = "Open it in an image editor and save it as PNG, or remove it."
_COPY_AGAIN = "Copy or download it again, or remove it."


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A valid image file: size in pixels when upright, and hash of the content."""

    width: int
    height: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An image cropped to its bucket, and the values for SDXL's size condition (arXiv 2307.01952,
    section 2.2).
    """

    image: Image.Image
    original_size: tuple[int, int]
    """(width, height) of the upright image in the file."""
    crop_top_left: tuple[int, int]
    """(top, left) of the crop, in pixels of the resized image."""


def readable_suffixes() -> frozenset[str]:
    """The lower-case suffixes of readable files, with the dot."""
    return READABLE_SUFFIXES.union(
        *(suffixes for name, suffixes in _LATER_SUFFIXES.items() if name in _readable_formats())
    )


def max_megapixels() -> int:
    """The maximum size of an image in million pixels."""
    with suppress(ValueError):
        return max(1, int(os.environ.get(LIMIT_VARIABLE, "")))
    return MAX_MEGAPIXELS


def read_image(
    path: Path, background: str = "white", *, covering: tuple[int, int] | None = None
) -> Image.Image:
    """The first frame of an image file, upright, as 8-bit sRGB.

    `covering`: images of more than 16 million pixels may be reduced by an integer factor, to at
    least three times this size, so that resizing gives the same result. `background` (a colour name
    or #rrggbb) is used for transparency. 16-bit and floating-point greys are scaled to their full
    range; an embedded colour profile is applied. Raises DatasetError for unreadable files.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image, _room_for(image):
        wanted = (
            None
            if covering is None or image.width * image.height <= _LARGE
            else (3 * covering[0], 3 * covering[1])
        )
        return _decoded(image, background, wanted)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header. Raises DatasetError."""
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        if image.format == "PNG" and not _may_have_exif(image, file):
            return image.width, image.height
        return _upright_size(image)


def suffix_of(path: Path) -> str:
    """The suffix for the file's content, ".jpg" for a JPEG named .heic. Raises DatasetError."""
    with _explained(path), path.open("rb") as file, _open(file, path) as image:
        return _SUFFIXES[image.format or ""]


def foreign_form(path: Path) -> str:
    """The content's format, "HEIC" or "AVIF", if this process cannot decode it; else ""."""
    try:
        with path.open("rb") as file:
            form = _form(file.read(64))
    except OSError:
        return ""
    return "" if not form or _PILLOW_NAMES[form] in _readable_formats() else form


def convert(path: Path, stem: Path) -> Path:
    """Write an upright 8-bit sRGB copy to `stem`.jpg, or `stem`.png if transparent, without EXIF,
    which may contain a location. Raises DatasetError.
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
        raise DatasetError.cannot_write(path, problem, hint) from problem
    return target


def write_reduced(
    path: Path, target: Path, longest_side: int, quality: int = 82
) -> tuple[int, int]:
    """Write an upright thumbnail as WebP to `target`, on white. Returns the original's upright
    size. Raises DatasetError.
    """
    with _explained(path), path.open("rb") as file, _open(file, path) as image, _room_for(image):
        width, height = size = _upright_size(image)
        # decode at twice the size, for quality
        scale = min(1.0, 2 * longest_side / max(size))
        small = _decoded(
            image, "white", (max(1, round(width * scale)), max(1, round(height * scale)))
        )
    small.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.save(
        target, "WEBP", quality=quality, method=0
    )  # method 0: a tenth larger, in half the time
    return size


def examine(path: Path) -> Examined:
    """Decode the first frame completely. Raises DatasetError for truncated or damaged files."""
    with _explained(path), path.open("rb") as file:
        content = _hash(file)
        file.seek(0)
        with _open(file, path) as image, _room_for(image):
            width, height = _upright_size(image)
            # for JPEG: decodes every byte at an eighth of the size, three times as fast
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _require_finite(image)
    return Examined(width=width, height=height, digest=content)


def digest(path: Path) -> str:
    """A hash of the file's content (BLAKE2b, 40 hexadecimal digits), for cache keys. Raises
    DatasetError.
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
    """Resize an image to cover the bucket, and crop the rest equally at both ends.

    `resampling`: for masks. `whole`: the size of the image in its file if `image` was read reduced.
    """
    whole = whole or image.size
    scale = max(bucket.width / whole[0], bucket.height / whole[1])
    width = max(bucket.width, round(whole[0] * scale))
    height = max(bucket.height, round(whole[1] * scale))
    # Lanczos keeps detail when shrinking, but rings when enlarging
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    # reducing_gap averages pixels, which a mask must not have
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
    )


def _hash(file: BinaryIO) -> str:
    found = hashlib.blake2b(digest_size=20)
    while piece := file.read(2**20):
        found.update(piece)
    return found.hexdigest()


# --- opening, and errors --------------------------------------------------------------------------


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    if "AVIF" not in Image.OPEN:
        # A1111 ships this plugin for its Pillow 9.5, which has no AVIF
        with suppress(ImportError):
            importlib.import_module("pillow_avif")
    # requires Pillow 11.1; with older versions every HEIC would seem damaged
    for name in (
        ("pi_heif", "pillow_heif")
        if tuple(map(int, PILLOW_VERSION.split(".")[:2])) >= (11, 1)
        else ()
    ):
        # pi_heif only decodes, without a GPL encoder
        if "HEIF" not in Image.OPEN:
            with suppress(ImportError, AttributeError):
                importlib.import_module(name).register_heif_opener()
    avif = ".avif" in Image.registered_extensions()
    return tuple(name for name in _FORMATS if name in Image.OPEN and (name != "AVIF" or avif))


def _open(file: BinaryIO, path: Path) -> Image.Image:
    limit = max_megapixels()
    if Image.MAX_IMAGE_PIXELS and limit * 10**6 > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # our limit applies
    try:
        image = Image.open(file, formats=_readable_formats())
    except UnidentifiedImageError:
        raise _not_an_image(path, file) from None
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+", str(error))
        raise _too_large(path, int(claimed[0]) if claimed else 0, limit) from None
    if image.format == "TIFF" and (image.tag_v2.get(262), image.tag_v2.get(259, 1)) == (6, 1):  # type: ignore[attr-defined]
        # Pillow misreads them as four bytes per pixel, and as truncated
        raise _unread_tiff(path, "YCbCr without compression")
    # checked here as well: hosts may disable Pillow's own limit
    if image.width * image.height > limit * 10**6:
        raise _too_large(path, image.width * image.height, limit)
    return image


class _NotFinite(Exception):
    """The number of pixels of a floating-point image that are not finite."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise exceptions of reading an image as DatasetError."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DatasetError("{path} does not exist", hint="Check the name.", path=path) from error
    except _NotFinite as error:
        hint = (
            "The program that wrote it may have divided by zero. Save it again as 16-bit TIFF "
            "or PNG, or remove it."
        )
        template = "{path} has NaN or infinite pixels ({count} of them)"
        raise DatasetError(template, hint=hint, path=path, count=error.count) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise DatasetError(
                "{path} cannot be read: {reason}",
                hint="Check the file and the disk.",
                path=path,
                reason=error.strerror,
            ) from error
        # Pillow's decoders raise many types for damaged files: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error ...
        if "truncated" in str(error).lower():
            raise DatasetError(
                "{path} is cut off: the file ends before the image does",
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
            "Make it smaller. If its size is intended, set the environment variable {variable} "
            "to {megapixels} and start again."
        ),
        path=path,
        megapixels=-(-pixels // 10**6),
        limit=limit,
        variable=LIMIT_VARIABLE,
    )


def _room_for(image: Image.Image) -> AbstractContextManager[Any]:
    """A lock for decoding a large image: in parallel they would need too much memory."""
    return _large_ones if image.width * image.height > _LARGE else nullcontext()


def _not_an_image(path: Path, file: BinaryIO) -> DatasetError:
    """The error for a file that no decoder recognizes."""
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
            " takes JPEG images from now on."
        )
        return DatasetError(
            "{path} is an HEIC image, which cannot be read here", hint=hint, path=path
        )
    if form == "AVIF":
        hint = "Export it as PNG, or use Pillow 11.3 or later."
        return DatasetError(
            "{path} is an AVIF image, which this Pillow cannot read", hint=hint, path=path
        )
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return DatasetError(
            "{path} is a JPEG XL image, which is not supported",
            hint="Export it as JPEG or PNG.",
            path=path,
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return DatasetError(
            "{path} is a web page, not an image",
            hint="Download the image itself, or remove it.",
            path=path,
        )
    if start.startswith(b"version https://git-lfs"):
        return DatasetError(
            "{path} is a Git LFS pointer, not the image",
            hint="Run `git lfs pull` in its folder.",
            path=path,
        )
    if head.startswith((b"II*\0", b"MM\0*")) and (kind := _kind_of_tiff(file)):
        return _unread_tiff(path, kind)
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return DatasetError(
            "{path} is cut off or damaged: its header cannot be read", hint=_COPY_AGAIN, path=path
        )
    return DatasetError("{path} is not an image in a supported format", hint=_SAVE_AGAIN, path=path)


def _form(head: bytes) -> str:
    """The content's format, "HEIC", "AVIF" or "", from a file's first bytes."""
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
    return next((form for form, known in _BRANDS.items() if brands & known), "")


def _unread_tiff(path: Path, kind: str) -> DatasetError:
    return DatasetError(
        "{path} is a TIFF of a kind that is not supported ({kind})",
        hint=_SAVE_AGAIN,
        path=path,
        kind=kind,
    )


def _kind_of_tiff(file: BinaryIO) -> str:
    """Description of a TIFF that Pillow does not open, as "3 x 32 bits, floating point"; "" if
    unreadable.
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
    except Exception:  # malformed EXIF is no reason to refuse an image
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _may_have_exif(image: Image.Image, file: io.BufferedReader) -> bool:
    """Whether an opened PNG may have EXIF. It may follow the pixels, so Pillow decodes them to find
    it; reading the chunk names is faster.
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
    """The size of the image when upright; call before loading."""
    width, height = image.size
    if image.format == "TIFF":
        # before Pillow 11.3 the size of an opened TIFF is as stored, later already upright
        width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    return (height, width) if _orientation(image) >= 5 else (width, height)


# --- decoding -------------------------------------------------------------------------------------


def _decoded(image: Image.Image, background: str, wanted: tuple[int, int] | None) -> Image.Image:
    """An opened image -> upright sRGB, reduced by an integer factor to at least `wanted` (default:
    not reduced).
    """
    orientation = _orientation(image)
    if wanted is not None:
        # JPEG can be decoded at a half, a quarter or an eighth
        image.draft(None, wanted[::-1] if orientation >= 5 else wanted)
    image.load()
    # Pillow rotates a TIFF when loading it
    method = None if image.format == "TIFF" else _TRANSPOSITIONS.get(orientation)
    if wanted is not None and method is not None and orientation >= 5:
        wanted = wanted[::-1]
    factor = (
        1 if wanted is None else max(1, min(image.width // wanted[0], image.height // wanted[1]))
    )
    picture = _reduced_rgb(image, background, factor)
    return picture if method is None else picture.transpose(method)


def _reduced_rgb(image: Image.Image, background: str, factor: int) -> Image.Image:
    """A loaded image -> sRGB at 1/factor of its size, in strips to save memory."""
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
    """An opened image -> upright sRGB, RGBA if transparent."""
    image.load()
    opacity = None
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        opacity = image.convert("RGBA").getchannel("A")
    if opacity is None or opacity.getextrema()[0] == 255:
        return _decoded(image, "white", None)
    method = None if image.format == "TIFF" else _TRANSPOSITIONS.get(_orientation(image))
    picture = _srgb(image.convert("RGBA").convert("RGB"), image.info.get("icc_profile"))
    picture.putalpha(opacity)
    return picture if method is None else picture.transpose(method)


# --- 8-bit RGB ------------------------------------------------------------------------------------


_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def _is_deep(image: Image.Image) -> bool:
    """Whether it is greyscale with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _rgb(image: Image.Image, background: str, white: float) -> Image.Image:
    """A loaded image of any mode -> sRGB on the background. `white`: the white level of a deep
    one.
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
    """L, CMYK or RGB -> sRGB. Invalid colour profiles, or for another mode, are ignored, as in
    browsers.
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
    """I;16, I or F -> L, scaling `white` to 255 (Pillow's conversion clips at 255)."""
    numbers = image.convert("I") if image.mode.startswith("I;16") else image
    scale = 255 / white
    # + 0.5, because the conversion to L truncates
    return numbers.convert("F").point(lambda value: value * scale + 0.5).convert("L")


def _full_scale(image: Image.Image) -> float:
    """The white level of a greyscale image with more than 8 bits."""
    bits = _bits(image)
    if image.mode != "F" and bits <= 16:
        return float(2**bits - 1)
    # 32-bit integers and floats have no fixed white: the smallest usual one above the brightest
    # pixel
    brightest = _brightest(image)
    if image.mode == "F" and 1 < brightest <= 2:
        return brightest  # 0..1 with highlights, rather than nearly black in 0..255
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
    """Raise _NotFinite for a loaded floating-point image with pixels that are not finite. Pillow's
    extrema ignore NaN.
    """
    if image.mode == "F":
        height = max(1, _STRIP // image.width)
        strips = (_strip(image, top, height) for top in range(0, image.height, height))
        count = sum(
            int(numpy.count_nonzero(~numpy.isfinite(numpy.asarray(strip)))) for strip in strips
        )
        if count:
            raise _NotFinite(count)
