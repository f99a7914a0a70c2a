"""Files that others may be reading: written whole or not at all; and locks that the operating system lets go when a process dies.

Standard library only; everything may import this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

REPLACE_PATIENCE = 3.0
"""Seconds for which a file that others hold is waited for."""


def replace_file(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `target`, then put it in its place: readers see the old file or the new one, never half of either.

    An exception, from a full disk for example, leaves the old file and nothing else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        write(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        _replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    sync_folder(target.parent)


def _replace(partial: Path, target: Path) -> None:
    """Windows refuses while a reader, an indexer or a virus scanner holds the old file, mostly for an instant: try again for a while."""
    deadline = time.monotonic() + REPLACE_PATIENCE
    while True:
        try:
            os.replace(partial, target)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def write_bytes(target: Path, content: bytes) -> None:
    """Replace `target` by `content`, whole or not at all."""
    replace_file(target, lambda partial: partial.write_bytes(content))


def write_text(target: Path, text: str) -> None:
    """Replace `target` by `text` in UTF-8 with plain newlines, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def place(path: Path) -> str:
    """What makes two ways of writing a path one: links followed, and no difference of case on Windows."""
    return os.path.normcase(os.path.realpath(path))


def stamp(path: Path) -> int:
    """A number that is another one when the file is, or when something came into the folder or left it; 0 where there is none."""
    try:
        details = path.stat()
    except OSError:
        return 0
    return hash((details.st_mtime_ns, details.st_size))


class Locked(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `path` as a lock file; raises Locked if another process still does after `patience` seconds.

    The system releases it when the holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("a+b")
    deadline = time.monotonic() + patience
    while True:
        try:
            _acquire(stream)
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                stream.close()
                raise Locked(f"{path} is held by another process") from error
            time.sleep(0.02)
    try:
        yield
    finally:
        stream.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    if not path.exists():
        return False
    try:
        with lock(path):
            return False
    except Locked:
        return True


def _acquire(stream: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_disk_full(error: BaseException | None) -> bool:
    """safetensors and torch.save tell of a full disk in words of their own ("unexpected pos 704 vs 598" is the latter's)."""
    while error is not None:
        text = str(error).lower()
        quota = getattr(errno, "EDQUOT", errno.ENOSPC)
        full = ("no space left", "os error 28", "os error 112", "not enough space on the disk", "file write failed", "unexpected pos")
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, quota)) or any(words in text for words in full):
            return True
        error = error.__cause__ or error.__context__
    return False
