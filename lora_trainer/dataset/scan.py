"""A folder of images -> the Examples to train on, and all problems with it.

    scan(settings) -> Dataset(examples, findings)

Layout and captions are detected: flat, nested and kohya folders ("10_name"); captions from
metadata.csv or metadata.jsonl, from .txt or .caption files beside the images, or from a kohya
folder's name. Precedence:

- A row of the metadata file, then .txt, .caption, .tags, .cap, .json, then a row of another table,
then a folder's name. Empty captions are ignored.
- An image without a caption is an error; but if a trigger word is set and no image has a caption,
every caption is the trigger word, unless there are files that examine_image like captions.
- Several lines of a caption are several captions of one image (dataset.captions).
- Class images ("reg" and the like) are left out.
- Masks ("fox_mask.png" or masks/fox.png for fox.jpg) without a caption are left out.

Only usable examples are returned; the findings report the rest, and dataset.findings.refuse decides
whether the run continues. Needs neither torch nor a tokenizer: counting tokens is passed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lora_trainer.dataset.captions import variants, with_trigger_word
from lora_trainer.dataset.findings import Finding, error, from_error, refuse_empty, warning
from lora_trainer.dataset.images import CONVERTIBLE_SUFFIXES, Examined, examine
from lora_trainer.dataset.index import Reading
from lora_trainer.dataset.listing import Listing, list_folder
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.sources import Captions, fill_in, read_captions
from lora_trainer.dataset.syntax import caption_syntax
from lora_trainer.dataset.unread_files import left_out
from lora_trainer.errors import DatasetError
from lora_trainer.settings import schema
from lora_trainer.settings.training import CheckpointSettings, DatasetSettings

LONGEST_SETTING = max(
    schema.choices_of(
        CheckpointSettings, schema.field_named(CheckpointSettings, "max_token_length")
    )
)
"""Tokens; the largest max_token_length."""

_THREADS = 8
_AT_ONCE = 64
"""Images per task of the thread pool, if none is decoded."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its caption."""

    path: Path
    name: str
    """The path relative to train_data_dir, with forward slashes: its name for the user and in
    metadata.csv.
    """
    caption: str
    """As trained, including the trigger word; never empty. Several captions are lines
    (dataset.captions.variants).
    """
    width: int
    """In pixels, when upright."""
    height: int
    digest: str
    """A hash of the file's content, for cache keys."""
    repeats: int
    """How often it is trained per epoch."""
    folder: str
    """Its folder: the path relative to train_data_dir, or train_data_dir's name."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The result of a scan: usable examples by name, and all findings."""

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]


def scan(
    settings: DatasetSettings,
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    examine_image: Callable[[Path], Examined] = examine,
    reading: Reading | None = None,
) -> Dataset:
    """Find, caption and decode every image of settings.train_data_dir.

    count_tokens, token_limit: report captions with more tokens. progress: receives (images
    examined, total). examine_image: for callers with a cache. reading: the folder as just read by
    dataset.index. Raises DatasetError only if nothing can be trained: no folder, a
    missing metadata file, no usable image.
    """
    if reading is None:
        listing = list_folder(settings.train_data_dir)
        captions = read_captions(listing, settings)
    elif reading.problem is not None:
        raise reading.problem
    else:
        listing, captions = reading.listing, reading.captions
    images, mask_findings = without_masks(listing, captions)
    repeats, repeat_findings = _repeats(images, listing, settings)
    images = [image for image in images if image in repeats]
    captions = fill_in(captions, images, listing, settings)
    examined, image_findings = _examined(images, listing, progress, examine_image)
    folders = {
        folder: listing.folder_name(folder)
        for folder in dict.fromkeys(image.parent for image in images)
    }
    examples = tuple(
        _example(image, examined[image], captions, repeats[image], listing, settings, folders)
        for image in images
        if image in captions.by_image and image in examined
    )
    findings = [
        *listing.findings,
        *captions.findings,
        *mask_findings,
        *repeat_findings,
        *unsupported(listing),
        *image_findings,
    ]
    findings += caption_syntax(
        {example.path: (example.name, example.caption) for example in examples}
    )
    if count_tokens and token_limit:
        findings += long_captions(examples, count_tokens, token_limit)
    if not examples:
        refuse_empty(findings, settings)
    return Dataset(examples=examples, findings=tuple(findings))


def long_captions(
    examples: Iterable[Example], count_tokens: Callable[[str], int], token_limit: int
) -> list[Finding]:
    """An error for each caption of more than `token_limit` tokens. With on_bad_data skip, it is
    truncated.
    """
    return [
        finding
        for example in examples
        for finding in long_caption(
            example.path, example.name, example.caption, count_tokens, token_limit
        )
    ]


def long_caption(
    path: Path, name: str, caption: str, count_tokens: Callable[[str], int], token_limit: int
) -> list[Finding]:
    """An error if the longest of a caption's variants has more than `token_limit` tokens."""
    template = "{name}: the caption has {count} tokens, {excess} more than max_token_length {limit}"
    hint = "Shorten it, or raise max_token_length (150 or 225)."
    if token_limit >= LONGEST_SETTING:
        hint = "Shorten it."
    if token_limit > LONGEST_SETTING:
        # the model's own, which no setting changes
        template = "{name}: the caption has {count} tokens, and the model reads {limit}"
    count = max(map(count_tokens, variants(caption)))
    if count <= token_limit:
        return []
    return [
        error(
            "long-caption",
            template,
            hint=hint,
            path=path,
            name=name,
            count=count,
            excess=count - token_limit,
            limit=token_limit,
        )
    ]


def _example(
    image: Path,
    examined: Examined,
    captions: Captions,
    repeats: int,
    listing: Listing,
    settings: DatasetSettings,
    folders: Mapping[Path, str],
) -> Example:
    caption = captions.by_image[image]
    return Example(
        path=image,
        name=listing.name(image),
        caption="\n".join(
            with_trigger_word(line, settings.trigger_word) for line in variants(caption.text)
        ),
        width=examined.width,
        height=examined.height,
        digest=examined.digest,
        repeats=repeats,
        folder=folders[image.parent],
    )


def without_masks(listing: Listing, captions: Captions) -> tuple[list[Path], list[Finding]]:
    """The images to train, without masks, and a finding about those."""
    masks = find_masks(listing.images, captions.by_image)
    images = [image for image in listing.images if image not in masks]
    if not masks:
        return images, []
    first = min(masks)
    template = "masks are not trained on ({count} of them, such as {name})"
    return images, [
        warning("left-out", template, path=first, count=len(masks), name=listing.name(first))
    ]


def _repeats(
    images: Sequence[Path], listing: Listing, settings: DatasetSettings
) -> tuple[dict[Path, int], list[Finding]]:
    """Image -> its repeats, without those in a kohya folder with 0 repeats."""
    counts, findings = {}, []
    for folder in dict.fromkeys(image.parent for image in images):
        kohya = listing.kohya_folder_of(folder)
        counts[folder] = kohya.repeats if kohya else settings.repeats
        if kohya and not kohya.repeats:
            findings.append(
                warning(
                    "left-out",
                    "{folder} is left out: its name asks for 0 repeats",
                    path=folder,
                    folder=listing.folder_name(folder),
                )
            )
        elif kohya and kohya.name.startswith("0"):
            once = (
                "{folder}: the number in its name is taken for repeats, so each image in it is seen"
                " once an epoch"
            )
            often = (
                "{folder}: the number in its name is taken for repeats, so each image in it is seen"
                " {count} times an epoch"
            )
            hint = "If it is only a number, put a letter in front of it."
            values: dict[str, Any] = {"folder": listing.folder_name(folder), "count": kohya.repeats}
            findings.append(
                warning(
                    "repeats",
                    once if kohya.repeats == 1 else often,
                    hint=hint,
                    path=folder,
                    **values,
                )
            )
    return {image: counts[image.parent] for image in images if counts[image.parent]}, findings


def unsupported(listing: Listing) -> list[Finding]:
    """An error for each image in an unsupported format, and warnings about other files that are
    left out.
    """
    hint = "Export them as PNG or JPEG, or move them out of the folder."
    template = "{name} is in a format that is not supported"
    named = [
        (
            _unconverted(path, listing.name(path))
            if path.suffix.lower() in CONVERTIBLE_SUFFIXES
            else error(
                "unsupported-format", template, hint=hint, path=path, name=listing.name(path)
            )
        )
        for path in listing.others
    ]
    return [*named, *left_out(listing)]


def _unconverted(path: Path, name: str) -> Finding:
    hint = (
        "Press Convert under Images: JPEG copies (PNG where transparent) take their places, and the"
        " originals are kept."
    )
    found = error(
        "unconverted-image",
        "{name} cannot be read directly, but can be converted",
        hint=hint,
        path=path,
        name=name,
    )
    return dataclasses.replace(found, fix={"do": "convert"})


def _examined(
    images: Sequence[Path],
    listing: Listing,
    progress: Callable[[int, int], None] | None,
    examine_image: Callable[[Path], Examined],
) -> tuple[dict[Path, Examined], list[Finding]]:
    """Decode every image once, in parallel (Pillow releases the GIL)."""
    examined: dict[Path, Examined] = {}
    findings: list[Finding] = []
    originals: dict[str, Path] = {}
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        contextlib.ExitStack() as stack,
    ):
        # closing: if `progress` raises, pending images are not examined
        size = 1 if examine_image is examine else _AT_ONCE
        pieces = [images[start : start + size] for start in range(0, len(images), size)]
        looked_at = pool.map(
            lambda some: [_attempt(examine_image, image) for image in some], pieces
        )
        results = stack.enter_context(
            contextlib.closing(cast("Generator[list[Examined | DatasetError]]", looked_at))
        )
        each = itertools.chain.from_iterable(results)
        for done, (image, result) in enumerate(zip(images, each, strict=True), 1):
            if isinstance(result, DatasetError):
                findings.append(from_error("unreadable-image", result, image, listing.name(image)))
            else:
                examined[image] = result
                original = originals.setdefault(result.digest, image)
                if original != image:
                    hint = "Remove the copies, unless they are meant to count twice."
                    names: dict[str, Any] = {
                        "name": listing.name(image),
                        "original": listing.name(original),
                    }
                    findings.append(
                        warning(
                            "duplicate-image",
                            "{name} is a copy of {original}",
                            hint=hint,
                            path=image,
                            **names,
                        )
                    )
            if progress:
                progress(done, len(images))
    return examined, findings


def _attempt(examine_image: Callable[[Path], Examined], image: Path) -> Examined | DatasetError:
    try:
        return examine_image(image)
    except DatasetError as problem:
        return problem
