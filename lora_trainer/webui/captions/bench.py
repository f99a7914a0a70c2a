"""Undo and redo of a dataset's edits: the base class of the workbenches for images and for texts.

    bench.undo(), .redo()       the newest edit, except for what has changed since

Each edit is conflict-checked, and recorded in the journal before it is carried out.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import DatasetError, Message
from lora_trainer.webui.captions import image_edits
from lora_trainer.webui.captions.journal import Direction, Edit, EditSummary, Journal

FILE_CHANGED_SINCE = Message("this file was changed elsewhere, and was left as it is")


@dataclass(frozen=True, kw_only=True)
class EditConflict:
    """What was not changed, and why."""

    key: str
    name: str
    current: str
    message: Message


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an edit."""

    title: Message
    changed: int
    unchanged: int = 0
    conflicts: tuple[EditConflict, ...] = ()
    edit: int | None = None
    """Its id in the journal, by which it can be undone, or redone if this was its undo; None if
    nothing was changed.
    """


class Bench(ABC):
    """The edits of one dataset. Changes are made under the lock."""

    def __init__(
        self, root: Path, lock: threading.RLock, clock: Callable[[], float] = time.time
    ) -> None:
        self.root = root
        self.journal = Journal(root)
        self._lock = lock
        self._clock = clock

    @abstractmethod
    def current_revision(self) -> str:
        """Changes whenever a page may have changed."""

    def settle(self) -> None:
        """Record changes made by other processes; there are none by default."""
        return

    def undo(self, identity: int | None = None) -> Outcome:
        """Undo an edit, by default the newest. Raises DatasetError if there is none."""
        with self._lock:
            line = self._line(identity, self.journal.undoable, wants_undone=False)
            return self._turn_back(self.journal.read(line.id), "undo")

    def redo(self, identity: int | None = None) -> Outcome:
        """Redo an edit, by default the oldest that is undone. Raises DatasetError if there is
        none.
        """
        with self._lock:
            line = self._line(identity, self.journal.redoable, wants_undone=True)
            return self._turn_back(self.journal.read(line.id), "redo")

    @abstractmethod
    def _turn_back(self, edit: Edit, direction: Direction) -> Outcome:
        """Undo or redo an edit, and mark it as such."""

    def _line(
        self, identity: int | None, newest: EditSummary | None, *, wants_undone: bool
    ) -> EditSummary:
        if identity is not None:
            newest = next(
                (
                    line
                    for line in self.journal.lines()
                    if line.id == identity and line.undone == wants_undone
                ),
                None,
            )
        if newest is None:
            raise DatasetError(
                "there is nothing to undo",
                hint="It may have been undone in another window.",
            )
        return newest

    def _turn_files(self, edit: Edit, backwards: bool, conflicts: list[EditConflict]) -> int:
        turned = 0
        for name, change in edit.files.items():
            expected, wanted = (
                (change.after, change.before) if backwards else (change.before, change.after)
            )
            path = self.root / name
            now = content_of(path)
            if now == wanted:
                continue
            if now != expected:
                conflicts.append(
                    EditConflict(key="", name=name, current=now or "", message=FILE_CHANGED_SINCE)
                )
                continue
            try:
                put_content(path, wanted)
            except OSError as problem:
                raise image_edits.cannot_replace(name, problem) from problem
            turned += 1
        return turned


def content_of(path: Path) -> str | None:
    """The text of a small file, with bytes that are not UTF-8 preserved; None without a file."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return None


def put_content(path: Path, content: str | None) -> None:
    """Write what content_of has read, or remove the file. Raises OSError."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        files.write_bytes(path, content.encode("utf-8", "surrogateescape"))
