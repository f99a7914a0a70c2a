"""Reports files in a dataset's folder that are not read but may have been meant to be.

    unread_captions(listing, images, read)   files that look like captions of images without one
    left_out(listing)                        images with other suffixes, texts without an image

Files are opened as far as needed to identify them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lora_trainer.dataset.findings import Finding, error, warning
from lora_trainer.dataset.images import suffix_of
from lora_trainer.dataset.json_rows import caption_in, parse
from lora_trainer.dataset.listing import Listing, folded
from lora_trainer.dataset.metadata import JSON_SUFFIX
from lora_trainer.dataset.text import read_text
from lora_trainer.errors import DatasetError
from lora_trainer.files import NotJson

_WORKBOOKS = frozenset({".xlsx", ".xls", ".ods", ".parquet", ".arrow", ".feather"})
_NO_CAPTIONS = frozenset(
    "readme license licence copying changelog requirements notes note 说明 许可".split()
)
"""Common names of texts that are no captions, without suffix."""
_PICTURES_BEGIN = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_SIGN = re.compile(r"[\W_]+")
_KEY_OF_CAPTIONS = re.compile(
    r'"[\w -]{0,40}(?:tag|caption|prompt|descri|text|label|标签|标注)[\w -]{0,40}"\s*:',
    re.IGNORECASE,
)
_HEAD = 2**16
_NAMES_SOUGHT = 20
_NAMED = 5


def unread_captions(
    listing: Listing, lacking: Sequence[Path], read: Collection[Path]
) -> list[Finding]:
    """One error with the files that look like captions of images `lacking` one; `read` are files
    that were read.
    """
    if not lacking:
        return []
    stems = {folded(name) for image in lacking for name in (image.stem, image.name)}
    names = [image.name for image in lacking[:_NAMES_SOUGHT]]
    beside = {text for image in listing.images for text in listing.texts_beside(image)}
    texts = [path for path in listing.texts.values() if path not in beside and path not in read]
    found = [path for path in texts if _is_named_like(path.stem, stems) or _mentions(path, names)]
    found += [
        path
        for image in lacking
        for path in listing.texts_beside(image)
        if path.suffix.lower() == JSON_SUFFIX and _is_unread_json(path)
    ]
    found += [path for path in listing.tables if path not in read and _mentions(path, names)]
    found += [path for path in listing.rest if _is_caption_like(path, stems, names)]
    if not found:
        return []
    shown = ", ".join(listing.name(path) for path in found[:_NAMED]) + (
        " ..." if len(found) > _NAMED else ""
    )
    template = "files that look like captions are not read ({count} of them: {names})"
    hint = (
        "Save each as a .txt file of its image's name beside the image, or all in one"
        " metadata.csv with the columns file_name and text."
    )
    return [
        error("unread-captions", template, hint=hint, path=found[0], count=len(found), names=shown)
    ]


def _is_caption_like(path: Path, stems: Collection[str], names: Sequence[str]) -> bool:
    if path.suffix.lower() in _WORKBOOKS:
        return True
    is_beside = _is_named_like(path.stem, stems)
    return (is_beside and _is_text(_head(path))) or (
        not is_beside and bool(path.suffix) and _mentions(path, names)
    )


def _is_named_like(stem: str, stems: Collection[str]) -> bool:
    """Whether a name is one of `stems`, optionally followed by words: a.png.caption, a_tags."""
    return any(
        folded(stem[:end]) in stems
        for end in (*(sign.start() for sign in _SIGN.finditer(stem)), len(stem))
    )


def _is_unread_json(path: Path) -> bool:
    """Whether the JSON beside an image has captions in an unknown form, such as a booru's tags by
    kind.
    """
    try:
        content = read_text(path).content
        return caption_in(parse(content)) is None and _KEY_OF_CAPTIONS.search(content) is not None
    except (DatasetError, NotJson):
        return False


def _mentions(path: Path, names: Sequence[str]) -> bool:
    head = _head(path)
    return _is_text(head) and any(os.fsencode(name) in head for name in names)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def is_text_file(path: Path) -> bool:
    """Whether a file's first bytes are text."""
    return _is_text(_head(path))


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and b"\0" not in head and not head.startswith(_PICTURES_BEGIN)


def left_out(listing: Listing) -> list[Finding]:
    """A warning for each image whose suffix does not say so, and one for texts without an image."""
    return [
        *(finding for path in listing.rest if (finding := _odd_image(path, listing))),
        *_without_image(listing),
    ]


def _odd_image(path: Path, listing: Listing) -> Finding | None:
    if not _head(path).startswith(_PICTURES_BEGIN):
        return None
    try:
        suffix = suffix_of(path)
    except DatasetError:
        return None
    template = "{name} is left out: it is an image, but its name does not end in {suffix}"
    return warning(
        "left-out",
        template,
        hint="Rename it, if it is to be trained.",
        path=path,
        name=listing.name(path),
        suffix=suffix,
    )


def _without_image(listing: Listing) -> list[Finding]:
    owned = {
        text for image in (*listing.images, *listing.others) for text in listing.texts_beside(image)
    }
    alone = [
        path
        for path in listing.texts.values()
        if path not in owned and folded(path.stem) not in _NO_CAPTIONS
    ]
    if not alone:
        return []
    template = "texts that belong to no image are left out ({count} of them, such as {name})"
    hint = "A text belongs to the image of its name in the same folder."
    return [
        warning(
            "left-out",
            template,
            hint=hint,
            path=alone[0],
            count=len(alone),
            name=listing.name(alone[0]),
        )
    ]
