"""The trash of a dataset: each removed image has a folder with everything needed to restore it.

    trash = Trash(root, follow_links=False)
    trash.remove([Removal])          removes rows from tables, then moves masks, captions and, last,
                                     the image
    trash.listing() -> [Removed]     complete entries, newest first
    trash.restore(removed, there)    moves everything back; existing files are kept
    trash.settle(there)              rolls back what a crash or a full disk has interrupted

    <dataset>/.lora_trainer/removed/<key>/    removed.json: the original paths; and the files

The note is written before anything is moved and the image is moved last, so a folder without its
image is an unfinished removal. `there`: which images have rows; their rows are not restored. Paths
in notes are checked to be inside the dataset. Called by caption_store.py, which holds the dataset's
lock. Standard library only.
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
"""In the dataset's .lora_trainer folder: one folder per removed image."""
NOTE = "removed.json"

HasRows = Callable[[Path], bool]
"""Whether a table currently has rows for this image."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """An image to remove, with all files that belong to it."""

    key: str
    name: str
    """Path relative to the dataset's folder, with forward slashes."""
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
    """(file, rows as they were in it); files and masks by paths relative to the dataset's folder.
    """
    masks: tuple[str, ...] = ()

    @property
    def image(self) -> Path:
        return self.folder / PurePosixPath(self.name).name


class Trash:
    """The removed images of a dataset."""

    def __init__(self, root: Path, *, follow_links: bool) -> None:
        """follow_links: whether symlinks out of the dataset's folder are followed."""
        self._root = root
        self._follow_links = follow_links
        self._folder = root / caption_provenance.FOLDER / FOLDER

    def remove(
        self, removals: Sequence[Removal], remove_rows: Callable[[], object], has_rows: HasRows
    ) -> None:
        """Raises DatasetError if a file cannot be moved or written; the removal is then rolled
        back.
        """
        try:
            folders = [self._prepare(image) for image in removals]
            remove_rows()
            for image, folder in zip(removals, folders, strict=True):
                _move(image, folder)
        except BaseException as error:
            self.settle(has_rows)
            if isinstance(error, OSError):
                raise _cannot_move(
                    removals[0].name if len(removals) == 1 else self._root.name, error
                ) from error
            raise

    def listing(self) -> list[Removed]:
        """Images that can be restored, newest first."""
        return sorted(
            (entry for entry in self._all() if entry.image.is_file()), key=lambda entry: -entry.time
        )

    def restore(self, removed: Removed, has_rows: HasRows) -> None:
        """Move everything in a trash folder back. Raises DatasetError."""
        if not all(
            map(
                self._is_inside, (removed.name, *removed.masks, *(file for file, _ in removed.rows))
            )
        ):
            hint, name = "Remove the image from {folder} by hand.", removed.folder.name
            raise DatasetError(
                "{name} cannot be restored: its recorded path is outside the folder",
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
        """Roll back unfinished removals. Those that cannot be rolled back now, as on a full disk,
        are left for the next call.
        """
        for entry in self._unfinished():
            with contextlib.suppress(LoraTrainerError, OSError):
                self.restore(entry, has_rows)
        for folder in self._unbegun():
            shutil.rmtree(folder, ignore_errors=True)

    def is_settled(self) -> bool:
        """Whether there are no unfinished removals."""
        return not self._unfinished() and not self._unbegun()

    def _unfinished(self) -> list[Removed]:
        return [
            entry
            for entry in self._all()
            if not entry.image.exists() and (self._root / entry.name).is_file()
        ]

    def _unbegun(self) -> list[Path]:
        """Folders whose note is incomplete: nothing was moved into them."""
        return [
            folder
            for folder in _folders(self._folder)
            if all(name.endswith(".part") for name in _names(folder))
        ]

    def _is_inside(self, name: str) -> bool:
        """Whether a path of a note stays inside the dataset, symlinks resolved."""
        return is_path_below(name) and (
            self._follow_links or (self._root / name).resolve().is_relative_to(self._root.resolve())
        )

    def _all(self) -> list[Removed]:
        return [
            entry
            for folder in _folders(self._folder)
            if (entry := _read(folder, self._root)) is not None
        ]

    def _prepare(self, image: Removal) -> Path:
        """Create a folder with a note of everything needed to restore the image, before anything is
        moved.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / free_name(image.key, lambda name: (self._folder / name).exists())
        note = {
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
        # ASCII: file names may contain lone surrogates, which survive only escaped
        files.write_text(folder / NOTE, json.dumps(note))
        return folder


def _move(image: Removal, folder: Path) -> None:
    for number, mask in enumerate(image.masks):
        shutil.move(mask, folder / _kept_mask(number, mask.name))
    for text in image.texts:
        # images of the same stem share their text file
        if text.exists():
            shutil.move(text, folder / text.name)
    shutil.move(image.path, folder / image.path.name)


def _kept_mask(number: int, name: str) -> str:
    """A mask's name in the trash: masks/fox.png would conflict with its image fox.png."""
    return f"mask-{number}-{name}"


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def _names(folder: Path) -> list[str]:
    """The names in a folder; none if another process has just taken it away."""
    try:
        return [file.name for file in folder.iterdir()]
    except FileNotFoundError:
        return []


def _read(folder: Path, root: Path) -> Removed | None:
    """The note of a folder; None if it is damaged or names a path outside."""

    def parsed(values: Any) -> Removed | None:
        key, name, caption = (str(values[part]) for part in ("key", "name", "caption"))
        rows = tuple((str(row["file"]), str(row["text"])) for row in values["rows"])
        masks = tuple(str(mask) for mask in values.get("masks", ()))
        (root / name).exists()  # raises OSError for invalid file names
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

    return files.read_json(folder / NOTE, parsed, None, names=True)


def _cannot_move(name: str, problem: OSError) -> DatasetError:
    if files.is_disk_full(problem):
        return DatasetError(
            "{name} cannot be moved: the disk is full",
            hint="Free some disk space, then try again. Nothing was changed.",
            name=name,
        )
    hint = "Close the programs that have it open, and check the folder's permissions."
    return DatasetError(
        "{name} cannot be moved: {reason}", hint=hint, name=name, reason=problem.strerror or problem
    )
