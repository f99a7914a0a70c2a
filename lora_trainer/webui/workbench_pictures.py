"""Pictures cropped in the tab: one in its place, as a mend of the check that can be undone; or a whole selection into a new dataset.

    crop_in_place(root, image, mend, ...) -> {name: Swap}    the original goes into `folder`, the crop takes its place and name; its mask too
    copies.start(...) -> Copy                                a thread makes the copies; originals are not touched

Pillow, by way of dataset.crop. Called by workbench.py and the routes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from lora_trainer import files
from lora_trainer.config import DatasetSettings
from lora_trainer.dataset.crop import Box, crop_folder, crop_mask, shaped
from lora_trainer.dataset.findings import Finding
from lora_trainer.dataset.images import digest, read_image
from lora_trainer.errors import DatasetError, LoraTrainerError
from lora_trainer.webui.data_folder import NotFound
from lora_trainer.webui.workbench_journal import Swap

if TYPE_CHECKING:
    from lora_trainer.webui.datasets import Datasets

SIZES = (64, 4096)
MASKS = "mask"
"""Within the folder of a kept picture: its mask, which may have the same name."""
JPEG_QUALITY = 95
"""Above it files grow, and nobody sees why."""

log = logging.getLogger("lora_trainer.webui")


# --- one picture in its place ------------------------------------------------------------------------------------------------------------


def crop_in_place(root: Path, image: Path, mend: Mapping[str, Any], folder: Path, mask: Path | None = None) -> dict[str, Swap]:
    """Replaces a picture by a part of itself, and its mask by the same part. Raises DatasetError, and then nothing has changed.

    `mend` is the check's: {"mend": "crop", "box": ...} or {"mend": "crop_subject", "ratio": ...}; `folder` takes the originals. Returns what was
    swapped, by its name from `root`.
    """
    picture = read_image(image)
    box = _box(picture, mend, image.name, mask)
    cropped = folder / f"new-{image.name}"
    _save(picture.crop(box), cropped)
    if mask is None:
        return {_name(root, image): _swap(root, image, cropped, folder / image.name)}
    aside = folder / MASKS
    aside.mkdir()
    cut = aside / f"new-{mask.name}"
    _save(crop_mask(mask, picture.size, box), cut)
    # the mask first: if the picture cannot follow, it goes back
    mask_swap = _swap(root, mask, cut, aside / mask.name, of=_name(root, image))
    try:
        picture_swap = _swap(root, image, cropped, folder / image.name)
    except DatasetError:
        swap_back(root, _name(root, mask), mask_swap)
        raise
    return {_name(root, image): picture_swap, _name(root, mask): mask_swap}


def _swap(root: Path, place: Path, new: Path, kept: Path, of: str = "") -> Swap:
    """`new` takes the place of a file, which is kept."""
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


def swap_back(root: Path, name: str, swap: Swap) -> Swap:
    """Puts the kept picture in its place again, and keeps the one that was there. Raises DatasetError when that is not the one it should be."""
    place, kept = root / name, root / swap.kept
    if not kept.is_file():
        raise DatasetError("the original of {name} is not there any more", hint="Look into the trash of your system.", name=name)
    if not place.is_file() or digest(place) != swap.digest:
        raise DatasetError("{name} was changed since it was cropped, and stays as it is", name=name)
    aside = kept.with_name(f"aside-{kept.name}")
    try:
        os.replace(place, aside)
        os.replace(kept, place)
        os.replace(aside, kept)
    except OSError as problem:
        if aside.exists() and not place.exists():
            os.replace(aside, place)
        raise cannot_replace(name, problem) from problem
    return dataclasses.replace(swap, digest=digest(place))


def cannot_replace(name: str, problem: OSError) -> DatasetError:
    hint = "Close the programs that have it open, and check the folder's permissions."
    return DatasetError("{name} cannot be replaced: {reason}", hint=hint, name=name, reason=problem.strerror or problem)


def _box(picture: Image.Image, mend: Mapping[str, Any], name: str, mask: Path | None) -> Box:
    if mend.get("mend") == "crop_subject":
        return shaped(picture, float(mend["ratio"]), mask=mask)
    left, top, right, bottom = (int(side) for side in mend["box"])
    left, top, right, bottom = max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom)
    if right <= left or bottom <= top:
        hint = "Its size is {width} x {height}."
        raise DatasetError("nothing of {path} lies inside the box", hint=hint, path=name, width=picture.width, height=picture.height)
    return left, top, right, bottom


def _save(picture: Image.Image, target: Path) -> None:
    """In the format of the name, so that whatever names the picture still does. Raises DatasetError."""
    Image.init()
    form = Image.registered_extensions().get(target.suffix.lower(), "")
    if form not in Image.SAVE:
        hint = "Crop it in a picture editor, or save it as PNG first."
        raise DatasetError("{name} cannot be written in its own format", hint=hint, name=target.name.removeprefix("new-"))
    special: dict[str, dict[str, Any]] = {"JPEG": {"quality": JPEG_QUALITY, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = special.get(form, {})
    try:
        files.replace_file(target, lambda partial: picture.save(partial, format=form, **options))
    except OSError as problem:
        hint = "Check the free space on the disk."
        raise DatasetError("{path} cannot be written: {reason}", hint=hint, path=target.name, reason=problem.strerror or problem) from problem


# --- a selection into a new dataset ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Copy:
    """One making of copies, as it goes on."""

    id: str
    total: int
    state: Literal["running", "done", "failed", "stopped"] = "running"
    done: int = 0
    dataset: str | None = None
    """The id of the new dataset, once it is there."""
    notes: tuple[Finding, ...] = ()
    error: LoraTrainerError | None = None
    stop: bool = False


class _Stop(Exception):
    """The copying was stopped."""


@dataclass
class Copies:
    """The makings of copies of this process. Thread-safe."""

    datasets: Datasets
    _known: dict[str, Copy] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def start(self, source: Path, name: str, names: Sequence[str], *, size: int, buckets: bool, subject: bool) -> Copy:
        """Copies the images called `names` of the folder `source` into a new dataset. Raises DatasetError for a size or a name that cannot be."""
        low, high = SIZES
        if not low <= size <= high:
            hint = "Use {low} to {high}; 512, 768 and 1024 are usual."
            raise DatasetError("{size} is no size for pictures", hint=hint, size=size, low=low, high=high)
        if not names:
            raise DatasetError("no image was chosen", hint="Choose some, or choose all.")
        dataset = self.datasets.create(name)
        copy = Copy(id=uuid.uuid4().hex, total=len(names))
        self._known[copy.id] = copy
        settings = DatasetSettings(train_data_dir=source)

        def run() -> None:
            with self._turn:
                self._run(copy, dataset.id, lambda heard: crop_folder(
                    settings, dataset.path, size=size, into_buckets=buckets, subject=subject, only=names, progress=heard,
                ).findings)  # fmt: skip

        threading.Thread(target=run, name="lora-trainer-copies", daemon=True).start()
        return copy

    def find(self, identity: str) -> Copy:
        """Raises NotFound."""
        if identity not in self._known:
            raise NotFound("these copies are not being made any more", hint="Reload the page.")
        return self._known[identity]

    def _run(self, copy: Copy, identity: str, make: Any) -> None:
        def heard(done: int, total: int) -> None:
            copy.done, copy.total = done, total
            if copy.stop:
                raise _Stop

        try:
            copy.notes = make(heard)
            copy.state = "done"
        except _Stop:
            copy.state = "stopped"
        except LoraTrainerError as problem:
            copy.error, copy.state = problem, "failed"
        except Exception as problem:
            log.exception("while making copies")
            copy.error = LoraTrainerError("the copies could not be made: {reason}", hint="Check the free space on the disk.", reason=problem)
            copy.state = "failed"
        copy.dataset = identity
        if copy.state != "done" and copy.done == 0:
            # an empty dataset helps nobody
            copy.dataset = None
            self.datasets.delete(identity)
