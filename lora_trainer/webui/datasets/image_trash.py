"""Images that were taken out of a dataset: each in a folder of its own in the dataset's trash, with
all that brings it back.

    trash = Trash(root, follow_links=False)
    trash.take_out([Leaving])          rows out of their tables, then masks, captions and, last, the
                                       image to the trash
    trash.listing() -> [Removed]       newest first: what is there as a whole
    trash.bring_back(removed, there)   everything to its place; what is there already stays
    trash.settle(there)                what a dying process or a full disk left in the middle is
                                       taken back

    <dataset>/.lora_trainer/removed/<key>/    removed.json: what was where; then the files
                                              themselves

The note is written before anything moves and the image moves last, so a folder without its image is
a removal that did not come to its end. `there` says which images have rows: of those none are put
back. Notes are only text: what they name lies below the dataset, or they are none. Called by
caption_store.py, which holds the dataset's lock. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lora_trainer import files
from lora_trainer.dataset import caption_provenance, edits
from lora_trainer.dataset.edits import RemovedRow
from lora_trainer.errors import DatasetError, LoraTrainerError
from lora_trainer.webui.common.safe_names import free_name, is_path_below

FOLDER = "removed"
"""In the dataset's folder .lora_trainer: one folder for each removed image."""
NOTE = "removed.json"

HasRows = Callable[[Path], bool]
"""Whether a table has rows for this image now."""


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """An image that is to be taken out, with all that belongs to it."""

    key: str
    name: str
    """Its path from the dataset's folder, with forward slashes; as it is in Removed."""
    path: Path
    caption: str
    rows: tuple[RemovedRow, ...]
    masks: tuple[Path, ...]
    texts: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """An image in the trash."""

    key: str
    name: str
    caption: str
    time: float
    folder: Path
    rows: tuple[tuple[str, str], ...] = ()
    """(the file that they stood in, as they stood there); files and masks by their paths from the
    dataset's folder, as they were told.
    """
    masks: tuple[str, ...] = ()

    @property
    def image(self) -> Path:
        return self.folder / PurePosixPath(self.name).name


class Trash:
    """The removed images of one dataset."""

    def __init__(self, root: Path, *, follow_links: bool) -> None:
        """follow_links: whether a link in the dataset's folder may lead out of it."""
        self._root = root
        self._follow_links = follow_links
        self._folder = root / caption_provenance.FOLDER / FOLDER

    def take_out(
        self, leaving: Sequence[Leaving], remove_rows: Callable[[], object], has_rows: HasRows
    ) -> None:
        """Raises DatasetError when a file cannot be moved or written; what was begun is then taken
        back.
        """
        try:
            folders = [self._prepare(image) for image in leaving]
            remove_rows()
            for image, folder in zip(leaving, folders, strict=True):
                _move(image, folder)
        except BaseException as error:
            self.settle(has_rows)
            if isinstance(error, OSError):
                raise _cannot_move(
                    leaving[0].name if len(leaving) == 1 else self._root.name, error
                ) from error
            raise

    def listing(self) -> list[Removed]:
        """What can be brought back, the newest first."""
        return sorted(
            (entry for entry in self._all() if entry.image.is_file()), key=lambda entry: -entry.time
        )

    def bring_back(self, removed: Removed, has_rows: HasRows) -> None:
        """Everything in a trash folder -> its place. Raises DatasetError."""
        if not all(
            map(
                self._is_inside, (removed.name, *removed.masks, *(file for file, _ in removed.rows))
            )
        ):
            hint, name = "Take the picture out of {folder} by hand.", removed.folder.name
            raise DatasetError(
                "{name} cannot be brought back: what is told of it leads out of the folder",
                hint=hint,
                name=name,
                folder=FOLDER,
            )
        target = self._root / removed.name
        masks = {
            removed.folder / _kept_mask(number, PurePosixPath(name).name): self._root / name
            for number, name in enumerate(removed.masks)
        }
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for kept, place in masks.items():
                if kept.exists() and not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(kept, place)
            for file in removed.folder.iterdir():
                if (
                    file.name != NOTE
                    and file not in masks
                    and not (target.parent / file.name).exists()
                ):
                    shutil.move(file, target.parent / file.name)
            if not has_rows(target):
                edits.restore_rows(
                    [RemovedRow(file=self._root / file, text=text) for file, text in removed.rows]
                )
        except OSError as problem:
            raise _cannot_move(removed.name, problem) from problem
        shutil.rmtree(removed.folder, ignore_errors=True)

    def settle(self, has_rows: HasRows) -> None:
        """Takes back removals that did not come to their end. Where that is not possible now, as on
        a full disk, the next call will.
        """
        for entry in self._unfinished():
            with contextlib.suppress(LoraTrainerError, OSError):
                self.bring_back(entry, has_rows)
        for folder in self._unbegun():
            shutil.rmtree(folder, ignore_errors=True)

    def is_settled(self) -> bool:
        """Whether nothing waits for `settle`."""
        return not self._unfinished() and not self._unbegun()

    def _unfinished(self) -> list[Removed]:
        return [
            entry
            for entry in self._all()
            if not entry.image.exists() and (self._root / entry.name).is_file()
        ]

    def _unbegun(self) -> list[Path]:
        """Folders whose note was never written whole: nothing was moved into them."""
        return [
            folder
            for folder in _folders(self._folder)
            if all(file.name.endswith(".part") for file in folder.iterdir())
        ]

    def _is_inside(self, name: str) -> bool:
        """Whether a path told by a note stays in the dataset, through its links too."""
        return is_path_below(name) and (
            self._follow_links or (self._root / name).resolve().is_relative_to(self._root.resolve())
        )

    def _all(self) -> list[Removed]:
        return [
            entry
            for folder in _folders(self._folder)
            if (entry := _read(folder, self._root)) is not None
        ]

    def _prepare(self, image: Leaving) -> Path:
        """A folder that knows all that is needed to bring the image back, before anything is
        moved.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / free_name(image.key, lambda name: (self._folder / name).exists())
        told = {
            "key": image.key,
            "name": image.name,
            "caption": image.caption,
            "time": time.time(),
            "rows": [
                {"file": row.file.relative_to(self._root).as_posix(), "text": row.text}
                for row in image.rows
            ],
            "masks": [mask.relative_to(self._root).as_posix() for mask in image.masks],
        }
        # in ASCII: a file's name may hold bytes that are no characters, and they survive only
        # escaped
        files.write_text(folder / NOTE, json.dumps(told))
        return folder


def _move(image: Leaving, folder: Path) -> None:
    for number, mask in enumerate(image.masks):
        shutil.move(mask, folder / _kept_mask(number, mask.name))
    for text in image.texts:
        # two images of one name share their text
        if text.exists():
            shutil.move(text, folder / text.name)
    shutil.move(image.path, folder / image.path.name)


def _kept_mask(number: int, name: str) -> str:
    """A mask's name in the trash: masks/fox.png would take the place of its picture fox.png
    there.
    """
    return f"mask-{number}-{name}"


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def _read(folder: Path, root: Path) -> Removed | None:
    """The note of a folder; None for one that is damaged, or whose image has its place
    elsewhere.
    """

    def told(values: Any) -> Removed | None:
        key, name, caption = (str(values[part]) for part in ("key", "name", "caption"))
        rows = tuple((str(row["file"]), str(row["text"])) for row in values["rows"])
        masks = tuple(str(mask) for mask in values.get("masks", ()))
        (root / name).exists()  # raises OSError for what no file can be called
        removed = Removed(
            key=key,
            name=name,
            caption=caption,
            time=float(values["time"]),
            folder=folder,
            rows=rows,
            masks=masks,
        )
        return removed if is_path_below(name) else None

    return files.read_json(folder / NOTE, told, None, names=True)


def _cannot_move(name: str, problem: OSError) -> DatasetError:
    if files.is_disk_full(problem):
        return DatasetError(
            "{name} cannot be moved: the disk is full",
            hint="Make room, then try again. Nothing was changed.",
            name=name,
        )
    hint = "Close the programs that have it open, and check the folder's permissions."
    return DatasetError(
        "{name} cannot be moved: {reason}", hint=hint, name=name, reason=problem.strerror or problem
    )
