"""Deleted folders, kept in the data folder's trash until someone empties it.

    discard(folder, trash, kind="run")  -> Discarded      it moves to trash/20260131-154500-NAME,
                                                          with a note of where it was
                                           (on a full disk to trash/20260131-154500-run=NAME,
                                           without one)
    contents(trash, "run")              -> what can be restored, newest first
    restore(found, parent)              -> where it lies again
    measure(trash)                      -> Load           how much lies there, of whatever kind
    empty(trash)                        -> Load           deletes it for good; what is left, because
                                                          a program has it open

Used by the tab and by the scheduler, for runs beyond those to keep. Standard library only.
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
    """What it was called, and will be again."""
    time: float
    """When it was discarded, in seconds since 1970."""
    title: str = ""
    """What the user called it, where that is another name."""

    @property
    def id(self) -> str:
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Load:
    """What lies in the trash."""

    count: int = 0
    """Deleted folders: runs and datasets."""
    size: int = 0
    """Of their files, in bytes."""


def discard(folder: Path, trash: Path, *, kind: str, now: float, title: str = "") -> Discarded:
    """Move a folder into the trash. Raises RunError when it cannot be moved: on Windows, when a
    program has a file of it open.
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
            # who deletes because the disk is full has no room for a note: the folder's name says as
            # much
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
    """What of one kind lies in the trash, newest first. Folders without a readable note are left
    alone.
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
    """Put a folder back into `parent` under its name, or name-2 ... if that is taken. Raises
    RunError when it cannot be moved.
    """
    # a note is only text: it names one folder, never a way out of `parent`
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


def measure(trash: Path) -> Load:
    """How much lies in the trash. Links are counted as links."""
    count = size = 0
    for path in _children(trash):
        count += 1
        for folder, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):
                    size += Path(folder, name).lstat().st_size
    return Load(count=count, size=size)


def empty(trash: Path) -> Load:
    """Delete for good what lies in the trash; whatever a link points to stays. Returns what could
    not be deleted.
    """
    for path in _children(trash):
        if path.is_dir() and not path.is_symlink():
            # the note first: half a run is nothing to restore
            with contextlib.suppress(OSError):
                (path / NOTE).unlink()
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return measure(trash)


def _children(trash: Path) -> list[Path]:
    return sorted(trash.iterdir()) if trash.is_dir() else []
