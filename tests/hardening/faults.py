"""File-system operations of this process, counted; and at a chosen one, its end or a full disk.

    watch(folder)                     in a child process: every operation below `folder` is noted,
                                      in order
    watch(folder, at=7, then=die)     the seventh does not happen: the process ends there, as by
                                      SIGKILL
    watch(folder, at=7, then=full)    the seventh fails, and every later one that needs room: the
                                      disk is full

An operation is: opening for writing, writing (Python's own streams), truncating, fsync, renaming,
removing, making a folder. The interpreter's audit events tell of them wherever they come from, but
for what torch and safetensors write in native code: there it is the opening of the finished file
that counts, and a real small disk (full_disk.py) that tells of the rest. Audit hooks cannot be
taken away: only for a process that ends afterwards.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
    "os.link": "link",
    "os.symlink": "link",
}
NEED_ROOM = {"create", "write", "fsync", "rename", "mkdir", "link"}
"""What a full disk refuses. Removing, truncating and opening what is there it does not."""

Then = Callable[[str], None]


def die(operation: str) -> None:
    """As SIGKILL does it: nothing is closed, flushed or said."""
    os._exit(137)


class Watch:
    """What happens below a folder, from the moment on that it is made."""

    def __init__(self, folder: Path, at: int | None, then: Then) -> None:
        self.noted: list[str] = []
        self._folder = os.fspath(folder.resolve())
        self._at = at
        self._then = then
        self._silent = False

    def note(self, kind: str, *places: Any) -> None:
        """An operation is about to happen. Raises or ends the process if it is the chosen one."""
        if self._silent:
            return
        inside = [place for place in map(self._below, places) if place is not None]
        if not inside:
            return
        self._silent = True
        try:
            operation = f"{kind} {inside[-1]}"
            self.noted.append(operation)
            if self._at is not None and len(self.noted) >= self._at:
                self._then(operation)
        finally:
            self._silent = False

    def _below(self, place: Any) -> str | None:
        try:
            path = os.path.normpath(Path.cwd() / os.fsdecode(place))
        except TypeError:
            return None
        return (
            os.path.relpath(path, self._folder) if path.startswith(self._folder + os.sep) else None
        )


def full(operation: str) -> None:
    """No room is left: what needs some fails, from the chosen operation on."""
    if operation.split(" ", 1)[0] in NEED_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def watch(folder: Path, at: int | None = None, then: Then = die) -> Watch:
    """Watch this process from now on, to its end."""
    watching = Watch(folder, at, then)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                watching.note("open" if _is_there(path) else "create", path)
        elif event in EVENTS:
            watching.note(EVENTS[event], *arguments[:2])

    _watch_streams(watching)
    sys.addaudithook(hear)
    return watching


def _watch_streams(watching: Watch) -> None:
    """fsync, and what Python's own streams write: no audit event tells of these."""
    real_open, real_fsync = io.open, os.fsync

    class Raw(io.FileIO):
        def write(self, data: Any, /) -> int | None:
            view = memoryview(data)
            try:
                watching.note("write", self.name)
            except OSError:
                # half of it found room
                super().write(view[: len(view) // 2])
                raise
            return super().write(view)

    def open_watched(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if (
            isinstance(file, int)
            or opener is not None
            or buffering != -1
            or not set(mode) & set("wxa+")
        ):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        stream: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return stream
        text = io.TextIOWrapper(stream, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text

    def fsync(descriptor: int) -> None:
        watching.note("fsync", _path_of(descriptor))
        real_fsync(descriptor)

    io.open = builtins.open = open_watched  # type: ignore[assignment]
    os.fsync = fsync  # type: ignore[assignment]


def _is_there(path: Any) -> bool:
    try:
        os.stat(path)  # noqa: PTH116  # may be bytes, or a descriptor
    except (OSError, ValueError, TypeError):
        return False
    return True


def _path_of(descriptor: Any) -> str:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    try:
        return os.fspath(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""
