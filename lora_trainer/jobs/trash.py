"""Deleted folders, kept in the data folder's trash until it is emptied.

    discard(folder, trash, kind="run")  moves it to trash/20260131-154500-NAME with a note of its
    origin (on a full disk to trash/20260131-154500-run=NAME, without one)
    contents(trash, "run")              what can be restored, newest first
    restore(found, parent)              moves it back; returns its path
    measure(trash)                      count and size of everything in it
    empty(trash)                        deletes it; returns what could not be deleted

Used by the tab, and by the scheduler for runs beyond those to keep. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.runs.folder import free_name

NOTE = "discarded.json"
_WITHOUT_NOTE = re.compile(r"[0-9]{8}-[0-9]{6}-([a-z]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Discarded:
    """A folder in the trash."""

    path: Path
    kind: str
    name: str
    """Its name before, and after restoring."""
    time: float
    """When it was discarded, in seconds since 1970."""
    title: str = ""
    """The user's name for it, if different."""

    @property
    def id(self) -> str:
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class TrashSize:
    """What the trash contains."""

    count: int = 0
    """Deleted folders of any kind."""
    size: int = 0
    """Bytes of their files."""


def discard(folder: Path, trash: Path, *, kind: str, now: float, title: str = "") -> Discarded:
    """Move a folder into the trash. Raises RunError if that fails: on Windows, while a file in it
    is open.
    """
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    target = free_name(trash / f"{moment}-{folder.name}")
    try:
        trash.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            files.write_text(
                folder / NOTE,
                json.dumps({"kind": kind, "name": folder.name, "title": title, "time": now}),
            )
        except OSError as error:
            # full disk, which may be why it is deleted: encode kind and name in the folder's name
            if not files.is_disk_full(error):
                raise
            target = free_name(trash / f"{moment}-{kind}={folder.name}")
        folder.rename(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / NOTE).unlink()
        raise RunError(
            "{name} cannot be moved to the trash: {reason}",
            hint="Close the programs that show its files, then try again.",
            name=folder.name,
            reason=error.strerror or error,
        ) from error
    return Discarded(path=target, kind=kind, name=folder.name, time=now, title=title)


def contents(trash: Path, kind: str) -> list[Discarded]:
    """The trash's folders of one kind, newest first. Folders without a readable note are
    ignored.
    """
    found = [item for path in _children(trash) if (item := _discarded(path)) and item.kind == kind]
    return sorted(found, key=lambda item: item.time, reverse=True)


def _discarded(path: Path) -> Discarded | None:
    def noted(note: Any) -> Discarded:
        return Discarded(
            path=path,
            kind=str(note["kind"]),
            name=str(note["name"]),
            time=float(note["time"]),
            title=str(note.get("title", "")),
        )

    without_note = _WITHOUT_NOTE.fullmatch(path.name)
    if without_note and not (path / NOTE).exists():
        kind, name = without_note.groups()
        return Discarded(path=path, kind=kind, name=name, time=_moved(path))
    return files.read_json(path / NOTE, noted, None, names=True)


def _moved(path: Path) -> float:
    try:
        return path.lstat().st_ctime
    except OSError:
        return 0.0


def restore(found: Discarded, parent: Path) -> Path:
    """Move a folder back into `parent` under its name, or NAME-2 ... Returns its path. Raises
    RunError.
    """
    # only the last component of the noted name, so that it stays inside `parent`
    try:
        target = free_name(parent / (Path(found.name.replace("\\", "/")).name or found.id))
        parent.mkdir(parents=True, exist_ok=True)
        found.path.rename(target)
        (target / NOTE).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            "{name} cannot be taken out of the trash: {reason}",
            hint="Close the programs that show its files, then try again.",
            name=found.name,
            reason=error.strerror or error,
        ) from error
    return target


def measure(trash: Path) -> TrashSize:
    """Count and size of what the trash contains. Links count as links."""
    folders = _children(trash)
    return TrashSize(count=len(folders), size=sum(map(files.folder_size, folders)))


def empty(trash: Path) -> TrashSize:
    """Delete the trash's content, not following links. Returns what could not be deleted."""
    for path in _children(trash):
        if path.is_dir() and not path.is_symlink():
            # the note first: a partly deleted folder must not be offered
            with contextlib.suppress(OSError):
                (path / NOTE).unlink()
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return measure(trash)


def _children(trash: Path) -> list[Path]:
    return sorted(trash.iterdir()) if trash.is_dir() else []
