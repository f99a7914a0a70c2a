"""Crops or converts an image in place, reversibly.

    crop_in_place(root, image, fix, ...) -> {name: Swap}   replaces an image and its mask by crops,
                                                            and moves the originals into `folder`
    converted_in_place(root, original, copy, kept)          replaces an image by its converted copy
    swap_back(root, name, swap) -> (name, Swap)             exchanges the kept and current image

Uses dataset.crop. Called by workbench.py.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lora_trainer import files
from lora_trainer.dataset.crop import Box, crop_mask, shaped
from lora_trainer.dataset.images import JPEG_QUALITY, digest, read_image
from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions.journal import Swap

MASKS = "mask"
"""In the folder of a kept image: its mask, which may have the same name."""


def crop_in_place(
    root: Path, image: Path, fix: Mapping[str, Any], folder: Path, mask: Path | None = None
) -> dict[str, Swap]:
    """Replace an image by a crop, and its mask by the same crop. Raises DatasetError; then nothing
    has changed.

    fix: the check's fix: {"do": "crop", "box": ...} or {"do": "crop_subject", "ratio": ...}.
    folder: receives the originals. Returns the swaps by name relative to `root`.
    """
    picture = read_image(image)
    box = _box(picture, fix, image.name, mask)
    cropped = folder / f"new-{image.name}"
    _save(picture.crop(box), cropped)
    if mask is None:
        return {_name(root, image): _swap(root, image, cropped, folder / image.name)}
    aside = folder / MASKS
    aside.mkdir()
    cut = aside / f"new-{mask.name}"
    _save(crop_mask(mask, picture.size, box), cut)
    # the mask first: if the image fails, the mask is put back
    mask_swap = _swap(root, mask, cut, aside / mask.name, of=_name(root, image))
    try:
        image_swap = _swap(root, image, cropped, folder / image.name)
    except DatasetError:
        swap_back(root, _name(root, mask), mask_swap)
        raise
    return {_name(root, image): image_swap, _name(root, mask): mask_swap}


def _swap(root: Path, place: Path, new: Path, kept: Path, of: str = "") -> Swap:
    """Move a file to `kept`, and `new` to its place."""
    try:
        os.replace(place, kept)
        os.replace(new, place)
    except OSError as problem:
        if kept.exists() and not place.exists():
            os.replace(kept, place)
        raise cannot_replace(place.name, problem) from problem
    return Swap(kept=kept.relative_to(root).as_posix(), digest=digest(place), mask_of=of)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def converted_in_place(root: Path, original: Path, copy: Path, kept: Path) -> tuple[str, Swap]:
    """Replace an original by its converted `copy`, and keep it. Raises DatasetError; then nothing
    has changed.
    """
    place = original.with_name(original.stem + copy.suffix)
    if place.exists():
        raise _is_taken(_name(root, place))
    try:
        kept.parent.mkdir()
        os.replace(copy, place)
        try:
            os.replace(original, kept)
        except OSError:
            place.unlink()
            kept.parent.rmdir()
            raise
    except OSError as problem:
        raise cannot_replace(_name(root, original), problem) from problem
    return _name(root, place), Swap(
        kept=kept.relative_to(root).as_posix(), digest=digest(place), was=_name(root, original)
    )


def swap_back(root: Path, name: str, swap: Swap) -> tuple[str, Swap]:
    """Exchange the kept image and the current one; returns the name and swap of the latter.

    Raises DatasetError if the current one is not the expected one.
    """
    place, kept, target = root / name, root / swap.kept, root / (swap.was or name)
    if not kept.is_file():
        raise DatasetError(
            "the original of {name} no longer exists",
            hint="Look in your system's trash.",
            name=name,
        )
    if not place.is_file() or digest(place) != swap.digest:
        raise DatasetError("{name} was changed elsewhere, and was left as it is", name=name)
    if target != place and target.exists():
        raise _is_taken(swap.was)
    aside = kept.with_name(f"aside-{place.name}")
    try:
        os.replace(place, aside)
        os.replace(kept, target)
        os.replace(aside, kept.with_name(place.name))
    except OSError as problem:
        if aside.exists() and not place.exists():
            os.replace(aside, place)
        raise cannot_replace(name, problem) from problem
    turned = dataclasses.replace(
        swap, kept=kept.with_name(place.name).relative_to(root).as_posix(), digest=digest(target)
    )
    return swap.was or name, dataclasses.replace(turned, was=name if swap.was else "")


def _is_taken(name: str) -> DatasetError:
    return DatasetError(
        "there is another {name} in the folder now",
        hint="Rename or remove that one first.",
        name=name,
    )


def cannot_replace(name: str, problem: OSError) -> DatasetError:
    hint = "Close the programs that have it open, and check the folder's permissions."
    return DatasetError(
        "{name} cannot be replaced: {reason}",
        hint=hint,
        name=name,
        reason=problem.strerror or problem,
    )


def _box(picture: Image.Image, fix: Mapping[str, Any], name: str, mask: Path | None) -> Box:
    if fix.get("do") == "crop_subject":
        return shaped(picture, float(fix["ratio"]), mask=mask)
    left, top, right, bottom = (int(side) for side in fix["box"])
    left = max(0, left)
    top = max(0, top)
    right = min(picture.width, right)
    bottom = min(picture.height, bottom)
    if right <= left or bottom <= top:
        hint = "Its size is {width} x {height}."
        raise DatasetError(
            "the crop box of {path} lies outside the image",
            hint=hint,
            path=name,
            width=picture.width,
            height=picture.height,
        )
    return left, top, right, bottom


def _save(picture: Image.Image, target: Path) -> None:
    """Save in the format of the suffix. Raises DatasetError."""
    Image.init()
    form = Image.registered_extensions().get(target.suffix.lower(), "")
    if form not in Image.SAVE:
        hint = "Crop it in an image editor, or save it as PNG first."
        raise DatasetError(
            "{name} cannot be saved in its own format",
            hint=hint,
            name=target.name.removeprefix("new-"),
        )
    special: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": JPEG_QUALITY, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = special.get(form, {})
    try:
        files.replace_file(target, lambda partial: picture.save(partial, format=form, **options))
    except OSError as problem:
        hint = "Check the free space on the disk."
        raise DatasetError.cannot_write(target.name, problem, hint) from problem
