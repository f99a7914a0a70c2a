"""Copies images cropped and resized: to squares of a size, or to their training buckets.

    crop_folder(settings, output, ...) -> Cropped     a dataset with captions and masks: the command
    line and the tab
    crop_mask(mask, size, box) -> Image               the same part of the image's mask
    choose_box(image, ratio, subject=...)             the part of an image to keep

Keeps the centre, or the subject: the bounding box of its mask (fox_mask.png, masks/fox.png), else
the part with the highest edge energy, which is no recognition: it prefers a face to a plain wall,
but a crowd to a single figure. Originals are not modified, and nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lora_trainer import files
from lora_trainer.dataset.buckets import Bucket, bucket_for, enlargement
from lora_trainer.dataset.check.image_findings import WANTED_SHARE, grown, mask_box
from lora_trainer.dataset.findings import Finding, from_error, warning
from lora_trainer.dataset.images import fit, image_size, read_image
from lora_trainer.dataset.listing import Listing, folded, list_folder
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.scan import unsupported, without_masks
from lora_trainer.dataset.sources import Captions, read_captions
from lora_trainer.errors import DatasetError
from lora_trainer.settings.training import DatasetSettings

ENERGY_SIDE = 96
"""Longest side of the image in which edge energy is measured; finer detail is texture."""
CENTRE_PULL = 0.35
"""Reduction of edge energy at the image's edge relative to its centre."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of the upright image, right and bottom exclusive."""
Energy = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cropped:
    """The written files, and findings about them."""

    written: tuple[Path, ...]
    findings: tuple[Finding, ...]
    """Unreadable images, and those that were enlarged."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    source: Path
    target: Path
    bucket: Bucket
    mask: Path | None
    mask_target: Path | None
    caption: str | None


def crop_folder(
    settings: DatasetSettings,
    output: Path,
    *,
    size: int,
    into_buckets: bool = False,
    subject: bool = False,
    only: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cropped:
    """Write PNG copies of the images in settings.train_data_dir to `output`, `size` x `size` or as
    large as their bucket of that size.

    Subfolders are kept; captions become .txt files beside the copies, and masks are cropped like
    their images. `subject`: keep the subject instead of the centre. `only`: names of images. Raises
    DatasetError, before writing anything, if a file exists or a name in `only` does not; and if a
    copy cannot be written.
    """
    listing = list_folder(settings.train_data_dir)
    captions = read_captions(listing, settings)
    plans, findings = _plans(listing, captions, settings, output, size, into_buckets, only)
    if not only:
        # report what is not copied, and unreadable captions
        findings += [
            *listing.findings,
            *(finding for finding in captions.findings if finding.severity != "info"),
            *unsupported(listing),
        ]
    _refuse_overwriting(plans)
    written = []
    for done, plan in enumerate(plans, 1):
        try:
            image = read_image(plan.source, settings.background)
        except DatasetError as error:
            findings.append(
                from_error("unreadable-image", error, plan.source, listing.name(plan.source))
            )
            continue
        ratio = plan.bucket.width / plan.bucket.height
        box = choose_box(
            image, ratio, subject=subject, mask=plan.mask, least_width=plan.bucket.width
        )
        findings += _enlarged(plan, box, listing)
        _save(fit(image.crop(box), plan.bucket).image, plan.target)
        if plan.caption is not None:
            with _explained(plan.target.with_suffix(".txt")) as text_file:
                files.write_text(text_file, plan.caption + "\n")
        findings += _mask_along(plan, image.size, box, listing)
        written.append(plan.target)
        if progress:
            progress(done, len(plans))
    return Cropped(written=tuple(written), findings=tuple(findings))


def choose_box(
    image: Image.Image,
    ratio: float,
    *,
    subject: bool = False,
    mask: Path | None = None,
    least_width: int = 1,
) -> Box:
    """The largest part of an image with width / height `ratio`: around the centre or the subject.

    With a mask, the part is smaller so that the subject fills about 60 %, but at least
    `least_width` pixels wide, to avoid enlarging it.
    """
    if not subject:
        return _around(image.size, ratio, image.width / 2, image.height / 2)
    marked = mask_box(mask, *image.size) if mask is not None else None
    if marked is not None:
        return _closer(image.size, ratio, marked, least_width)
    return _richest(image, ratio)


def shaped(image: Image.Image, longest: float, *, mask: Path | None = None) -> Box:
    """The part of a long image around its subject, with aspect ratio at most `longest`: for the
    fix {"do": "crop_subject", "ratio": ...}.
    """
    ratio = image.width / image.height
    return choose_box(image, min(longest, max(1 / longest, ratio)), subject=True, mask=mask)


def crop_mask(mask: Path, size: tuple[int, int], box: Box) -> Image.Image:
    """The part of a mask for `box` of its image of `size`, as a grey image without interpolation.

    The mask is resized to the image's size if needed. Raises DatasetError if unreadable.
    """
    image = read_image(mask, "black").convert("L")
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    return image.crop(box)


# --- choosing the box -----------------------------------------------------------------------------


def _largest(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    width, height = size
    if width / height > ratio:
        return max(1, min(width, round(height * ratio))), height
    return width, max(1, min(height, round(width / ratio)))


def _around(size: tuple[int, int], ratio: float, x: float, y: float) -> Box:
    """The largest box of this ratio, centred as close to (x, y) as possible."""
    width, height = _largest(size, ratio)
    left = min(max(0, round(x - width / 2)), size[0] - width)
    top = min(max(0, round(y - height / 2)), size[1] - height)
    return left, top, left + width, top + height


def _closer(size: tuple[int, int], ratio: float, marked: Box, least_width: int) -> Box:
    left, top, right, bottom = grown(marked, WANTED_SHARE, *size)
    wanted = max(right - left, (bottom - top) * ratio, least_width)
    most = _largest(size, ratio)
    width, height = min(round(wanted), most[0]), min(round(wanted / ratio), most[1])
    x, y = (marked[0] + marked[2]) / 2, (marked[1] + marked[3]) / 2
    start = (
        min(max(0, round(x - width / 2)), size[0] - width),
        min(max(0, round(y - height / 2)), size[1] - height),
    )
    return *start, start[0] + width, start[1] + height


def _richest(image: Image.Image, ratio: float) -> Box:
    """The largest box of this ratio with the highest edge energy."""
    energy, scale = edge_energy(image)
    width, height = _largest(image.size, ratio)
    rows, columns = energy.sum(axis=1), energy.sum(axis=0)
    left = _best_start(columns, width / scale) * scale
    top = _best_start(rows, height / scale) * scale
    return _around(image.size, ratio, left + width / 2, top + height / 2)


def _best_start(energies: Energy, length: float) -> float:
    """The start of the window with the highest sum; of nearly equal ones, the middle."""
    window = min(len(energies), max(1, round(length)))
    sums = np.convolve(energies, np.ones(window), "valid")
    best = np.nonzero(sums >= 0.995 * sums.max())[0]
    return float((best[0] + best[-1]) / 2)


def edge_energy(image: Image.Image) -> tuple[Energy, float]:
    """Gradient magnitudes, weighted by position, and the image's pixels per pixel of it."""
    scale = max(1.0, max(image.size) / ENERGY_SIDE)
    size = max(2, round(image.width / scale)), max(2, round(image.height / scale))
    small = (
        image.convert("L").resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1))
    )
    levels = np.asarray(small, np.float64)
    down, across = np.gradient(levels)
    y, x = np.linspace(-1, 1, size[1])[:, None], np.linspace(-1, 1, size[0])[None, :]
    return np.hypot(down, across) * (1 - CENTRE_PULL * np.maximum(np.abs(x), np.abs(y))), scale


# --- the folder -----------------------------------------------------------------------------------


def _plans(
    listing: Listing,
    captions: Captions,
    settings: DatasetSettings,
    output: Path,
    size: int,
    into_buckets: bool,
    only: Collection[str] | None,
) -> tuple[list[_Plan], list[Finding]]:
    images, _ = without_masks(listing, captions)
    masks = {image: mask for mask, image in find_masks(listing.images, captions.by_image).items()}
    taken: set[str] = set()
    plans: list[_Plan] = []
    findings: list[Finding] = []
    for image in _chosen(images, listing, only):
        try:
            width, height = image_size(image)
        except DatasetError as error:
            findings.append(from_error("unreadable-image", error, image, listing.name(image)))
            continue
        # without max_upscale, which is for training
        bucket = (
            bucket_for(width, height, _without_limit(settings), size)
            if into_buckets
            else Bucket(size, size)
        )
        caption = captions.by_image[image].text if image in captions.by_image else None
        target, mask = _target(output, listing.name(image), taken), masks.get(image)
        aside = _mask_target(target, image, mask) if mask else None
        plans.append(
            _Plan(
                source=image,
                target=target,
                bucket=bucket,
                mask=mask,
                mask_target=aside,
                caption=caption,
            )
        )
    return plans, findings


def _mask_target(target: Path, image: Path, mask: Path) -> Path:
    """The mask's path relative to the copy, as the original's to its image."""
    if mask.parent == image.parent:
        return target.with_name(f"{target.stem}_mask.png")
    return target.parent / mask.parent.name / target.name


def _without_limit(settings: DatasetSettings) -> DatasetSettings:
    return dataclasses.replace(settings, max_upscale=16.0)


def _chosen(images: Sequence[Path], listing: Listing, only: Collection[str] | None) -> list[Path]:
    if only is None:
        return list(images)
    by_name = {folded(listing.name(image)): image for image in images}
    chosen = []
    for name in only:
        image = by_name.get(folded(Path(name).as_posix()))
        if image is None:
            raise DatasetError(
                "there is no image {name} in {folder}",
                hint=(
                    "Give image paths relative to the folder, such as fox.png or portraits/fox.png."
                ),
                name=name,
                folder=listing.root,
            )
        chosen.append(image)
    return chosen


def _target(output: Path, name: str, taken: set[str]) -> Path:
    """fox.jpg becomes fox.png, or fox-jpg.png if that is taken."""
    target = output / Path(name).with_suffix(".png")
    if folded(target.as_posix()) in taken:
        target = target.with_name(f"{Path(name).stem}-{Path(name).suffix.lstrip('.').lower()}.png")
    taken.add(folded(target.as_posix()))
    return target


def _refuse_overwriting(plans: Sequence[_Plan]) -> None:
    texts = [plan.target.with_suffix(".txt") for plan in plans if plan.caption is not None]
    targets = [
        *(plan.target for plan in plans),
        *texts,
        *(plan.mask_target for plan in plans if plan.mask_target),
    ]
    existing = [target for target in targets if target.exists()]
    if existing:
        hint = "Choose a new folder, or move them away. Nothing was written."
        raise DatasetError(
            "{path} exists already ({count} such files in all)",
            hint=hint,
            path=existing[0],
            count=len(existing),
        )


def _enlarged(plan: _Plan, box: Box, listing: Listing) -> list[Finding]:
    width, height = box[2] - box[0], box[3] - box[1]
    factor = enlargement(width, height, plan.bucket)
    if factor <= 1.0:
        return []
    template = (
        "{name} was enlarged {factor} times: its part of {width} x {height} pixels became {bucket}"
    )
    values: dict[str, Any] = {
        "name": listing.name(plan.source),
        "width": width,
        "height": height,
        "bucket": str(plan.bucket),
        "factor": f"{factor:.2f}",
    }
    hint = "Use larger images, or a smaller size; enlarged ones teach the model blur."
    measured = round(factor, 2)
    return [
        warning("small-image", template, hint=hint, path=plan.source, measured=measured, **values)
    ]


def _mask_along(plan: _Plan, size: tuple[int, int], box: Box, listing: Listing) -> list[Finding]:
    if plan.mask is None or plan.mask_target is None:
        return []
    try:
        mask = crop_mask(plan.mask, size, box)
    except DatasetError as error:
        return [from_error("unreadable-image", error, plan.mask, listing.name(plan.mask))]
    _save(fit(mask, plan.bucket, Image.Resampling.NEAREST).image, plan.mask_target)
    return []


def _save(image: Image.Image, target: Path) -> None:
    with _explained(target):
        files.replace_file(target, lambda partial: image.save(partial, format="PNG"))


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[Path]:
    """Raise OSError as DatasetError."""
    try:
        yield target
    except OSError as error:
        hint = "Check the free space and the folder's permissions."
        raise DatasetError.cannot_write(target, error, hint) from error
