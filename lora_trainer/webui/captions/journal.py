"""The undo history of a dataset: one file per edit, in the dataset's own folder.

    <dataset>/.lora_trainer/edits/00000012.json      an edit: its title, and each caption before and
                                                     after
    <dataset>/.lora_trainer/originals/...            images that were cropped or converted; never
                                                     deleted by the trainer

An edit is written before it is carried out: after a crash it can be undone, although only some of
its captions have changed. The newest edits are kept, limited by number and size; trashed and
original images outlive their edits.

    journal.add(edit) -> Edit with its id      journal.undoable / redoable
    journal.mark(edit, undone=True)

Called by workbench.py, which holds the dataset's lock.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.dataset import caption_provenance
from lora_trainer.errors import DatasetError, Message
from lora_trainer.webui.common.safe_names import is_path_below

FOLDER = "edits"
ORIGINALS = "originals"
MOST_EDITS = 200
MOST_BYTES = 64 * 2**20
VERSION = 1
LOCK = "numbers.lock"
LOCK_PATIENCE = 10.0
"""Seconds to wait for another process's edit."""


@dataclass(frozen=True, kw_only=True)
class CaptionEdit:
    """A caption before and after, with both authors: `person`, or a captioner."""

    before: str
    after: str
    by: str = caption_provenance.PERSON
    """The author before."""
    now_by: str = caption_provenance.PERSON


@dataclass(frozen=True, kw_only=True)
class Swap:
    """An image that replaced another: `kept` is the path of the replaced one, relative to the
    dataset's folder; `digest` that of the current one.
    """

    kept: str
    digest: str
    mask_of: str = ""
    """For a mask: the name of its image."""
    was: str = ""
    """The former name, if different, as after a conversion."""


@dataclass(frozen=True, kw_only=True)
class FileEdit:
    """A small file of the dataset, such as its vocabulary, before and after; None: it did not
    exist.
    """

    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class TextEdit:
    """The text of an entry in a file of texts before and after; None: it did not exist, or was
    removed.
    """

    number: int
    """Its position in the file."""
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit with all its parts. Images are named by paths relative to the dataset's folder, with
    forward slashes.
    """

    title: Message
    time: float
    captions: Mapping[str, CaptionEdit] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    """Keys of images moved to the dataset's trash."""
    restored: tuple[str, ...] = ()
    """Keys of restored images."""
    swaps: Mapping[str, Swap] = field(default_factory=dict)
    files: Mapping[str, FileEdit] = field(default_factory=dict)
    texts: Mapping[str, tuple[TextEdit, ...]] = field(default_factory=dict)
    """Name of a file of texts -> its entries, in the order in which they were changed."""
    undone: bool = False
    id: int = 0

    @property
    def count(self) -> int:
        """Number of images, or of entries of texts; 0 for the vocabulary."""
        images = (name for name, swap in self.swaps.items() if not swap.mask_of)
        return (
            len({*self.captions, *images})
            + len(self.removed)
            + len(self.restored)
            + sum(map(len, self.texts.values()))
        )


@dataclass(frozen=True, kw_only=True)
class EditSummary:
    """An edit without its captions, for lists."""

    id: int
    title: Message
    count: int
    time: float
    undone: bool


class Journal:
    """The edits of a dataset."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / caption_provenance.FOLDER / FOLDER
        self._known: dict[int, tuple[tuple[int, int], EditSummary]] = {}

    def add(self, edit: Edit) -> Edit:
        """Write an edit. Undone edits can no longer be redone. Raises DatasetError."""
        with self._numbering():
            for line in self.lines():
                if line.undone:
                    self._forget(line.id)
            # from all file names: damaged files have numbers too
            edit = replace(edit, id=max((identity for identity, _ in self._files()), default=0) + 1)
            self._write(edit)
            self._prune()
        return edit

    @contextlib.contextmanager
    def _numbering(self) -> Iterator[None]:
        """Two WebUIs with one data folder must not use the same number. Raises DatasetError."""
        lock = self._folder / LOCK
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.lock(lock, patience=LOCK_PATIENCE))
            except files.Locked as error:
                hint = "Close other windows of the trainer, then try again."
                raise DatasetError(
                    "another process is changing the captions in {folder}",
                    hint=hint,
                    folder=self._root.name,
                ) from error
            except OSError as error:
                raise self._cannot_be_written(lock, error) from error
            yield

    def lines(self) -> list[EditSummary]:
        """Newest first."""
        return [line for _, line in sorted(self._lines(), reverse=True, key=lambda pair: pair[0])]

    def ends(self) -> tuple[EditSummary | None, EditSummary | None]:
        """(the newest edit that is not undone, the oldest that is)."""
        lines = self.lines()
        return (
            next((line for line in lines if not line.undone), None),
            next((line for line in reversed(lines) if line.undone), None),
        )

    @property
    def undoable(self) -> EditSummary | None:
        """The newest edit that is not undone."""
        return self.ends()[0]

    @property
    def redoable(self) -> EditSummary | None:
        """The oldest edit that is undone."""
        return self.ends()[1]

    def read(self, identity: int) -> Edit:
        """An edit with all parts. Raises DatasetError."""
        try:
            return _edit(files.load_json(self._file(identity), names=True), identity)
        except files.UNREADABLE as error:
            raise DatasetError(
                "this edit can no longer be undone: its record is gone",
                hint="Reload the page.",
            ) from error

    def mark(self, edit: Edit, *, undone: bool) -> Edit:
        """Record that an edit was undone or redone. Raises DatasetError."""
        edit = replace(edit, undone=undone)
        self._write(edit)
        return edit

    def drop(self, edit: Edit) -> None:
        """Remove an edit without effect."""
        self._forget(edit.id)

    def originals(self, edit_time: float) -> Path:
        """A new folder for images that are about to be replaced."""
        folder = self._root / caption_provenance.FOLDER / ORIGINALS
        number = 1
        while (target := folder / f"{int(edit_time)}-{number}").exists():
            number += 1
        target.mkdir(parents=True)
        return target

    # --- files ------------------------------------------------------------------------------------

    def _file(self, identity: int) -> Path:
        return self._folder / f"{identity:08d}.json"

    def _write(self, edit: Edit) -> None:
        values = {
            "version": VERSION,
            "time": edit.time,
            "undone": edit.undone,
            "title": edit.title.template,
            "values": {
                key: value if isinstance(value, (int, float)) else str(value)
                for key, value in edit.title.values.items()
            },
            "captions": {
                name: [change.before, change.after, change.by, change.now_by]
                for name, change in edit.captions.items()
            },
            "removed": edit.removed,
            "restored": edit.restored,
            "swaps": {name: asdict(swap) for name, swap in edit.swaps.items()},
            "files": {name: [change.before, change.after] for name, change in edit.files.items()},
            "texts": {
                name: [[one.number, one.before, one.after] for one in changes]
                for name, changes in edit.texts.items()
            },
        }
        target = self._file(edit.id)
        try:
            # ASCII: file names may contain lone surrogates, which survive only escaped
            files.write_text(target, json.dumps(values))
        except OSError as error:
            raise self._cannot_be_written(target, error) from error

    def _cannot_be_written(self, target: Path, error: OSError) -> DatasetError:
        hint = "Check the free space and the folder's permissions. Nothing was changed."
        # relative to the dataset's folder: remote users must not see absolute paths
        path = target.relative_to(self._root).as_posix()
        return DatasetError.cannot_write(path, error, hint)

    def _forget(self, identity: int) -> None:
        self._known.pop(identity, None)
        self._file(identity).unlink(missing_ok=True)

    def _prune(self) -> None:
        size = 0
        for kept, (identity, path) in enumerate(sorted(self._files(), reverse=True), 1):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
            # the newest is kept whatever its size
            if kept > 1 and (kept > MOST_EDITS or size > MOST_BYTES):
                self._forget(identity)

    def _lines(self) -> Iterator[tuple[int, EditSummary]]:
        for identity, path in self._files():
            try:
                details = path.stat()
                stamp = (details.st_mtime_ns, details.st_size)
                known = self._known.get(identity)
                if known is None or known[0] != stamp:
                    edit = self.read(identity)
                    line = EditSummary(
                        id=identity,
                        title=edit.title,
                        count=edit.count,
                        time=edit.time,
                        undone=edit.undone,
                    )
                    known = self._known[identity] = (stamp, line)
                yield identity, known[1]
            except (OSError, DatasetError):
                # incomplete after a crash
                continue

    def _files(self) -> list[tuple[int, Path]]:
        """The files of edits; others are ignored."""
        return (
            [
                (int(path.stem), path)
                for path in self._folder.glob("*.json")
                if path.stem.isdecimal()
            ]
            if self._folder.is_dir()
            else []
        )


def _edit(values: dict[str, Any], identity: int) -> Edit:
    paths = [
        *values["swaps"],
        *(swap["kept"] for swap in values["swaps"].values()),
        *values.get("files", {}),
        *values.get("texts", {}),
    ]
    paths += [swap["was"] for swap in values["swaps"].values() if swap.get("was")]
    if not all(is_path_below(str(path)) for path in paths):
        raise ValueError("a path leads out of the dataset")
    title = Message(str(values["title"]), dict(values["values"]))
    str(title)  # raises if a value is missing
    return Edit(
        id=identity,
        title=title,
        time=float(values["time"]),
        captions={
            name: CaptionEdit(before=was, after=now, by=by, now_by=now_by)
            for name, (was, now, by, now_by) in values["captions"].items()
        },
        removed=tuple(values["removed"]),
        restored=tuple(values["restored"]),
        swaps={name: Swap(**swap) for name, swap in values["swaps"].items()},
        files={
            name: FileEdit(before=was, after=now)
            for name, (was, now) in values.get("files", {}).items()
        },
        texts={
            name: tuple(
                TextEdit(number=int(number), before=was, after=now) for number, was, now in changes
            )
            for name, changes in values.get("texts", {}).items()
        },
        undone=bool(values["undone"]),
    )


Direction = Literal["undo", "redo"]
