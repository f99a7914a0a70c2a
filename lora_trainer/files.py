"""Files that others may be reading: written whole or not at all; JSON that may hold anything; locks
that the operating system lets go when a process dies.

What a killed process left half-written (`NAME.WRITER-NUMBER.part`) is cleared by the next process
that writes into the same folder.

Standard library only; everything may import this module.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

T = TypeVar("T")

LONGEST_JSON = 64 << 20
"""Bytes of a file, characters of a text. The notes on twenty thousand pictures need a third of it.
"""
DEEPEST_JSON = 100
"""Lists within lists. Python's own reader goes on until the stack ends, and what it read nobody
could walk through or write.
"""
MOST_DIGITS = 300
"""As many as still make a float."""
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RecursionError,
)
"""What reading a file, and picking values out of what it holds, may raise where somebody else wrote
it.
"""

KEPT_FREE = 2**30
"""Bytes that uploads and downloads leave on a disk: on one that is full, the system and a training
both suffer.
"""
REPLACE_PATIENCE = 3.0
"""Seconds for which a file that others hold is waited for."""
LEFT_SECONDS = 86400.0
"""What nobody has written to for so long is left behind, whoever the writer was: on a network share
it may be on another machine, under its clock.
"""

_PARTIAL = re.compile(r"\.(?P<writer>[0-9a-f]{8}-\d{1,10}|\d{1,10})(-\d+)?\.part$")
_writes = itertools.count(1)
"""Numbers what this process writes: two of its threads may write one file at once."""
_cleared: set[Path] = set()
"""Folders in which this process has cleared what others left."""


def replace_file(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `target`, then put it in its place: readers see the old file
    or the new one, never half of either.

    An exception, from a full disk for example, leaves the old file and nothing else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent not in _cleared:
        _cleared.add(target.parent)
        clear_left(target.parent)
    partial = target.with_name(f"{target.name}.{this_writer()}-{next(_writes)}.part")
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
    """Windows refuses while a reader, an indexer or a virus scanner holds the old file, mostly for
    an instant: try again for a while.
    """
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


class NotJson(ValueError):
    """What is no JSON, or more of it than anybody needs. Its text says why."""


def read_json(path: Path, make: Callable[[Any], T], default: T, *, names: bool = False) -> T:
    """What `make` makes of a JSON file; `default` where it is missing, unreadable, no JSON, or not
    what `make` looks for. Never raises.

    `names`: see `parse_json`.
    """
    try:
        return make(load_json(path, names=names))
    except UNREADABLE:
        return default


def load_json(path: Path, *, names: bool = False, infinite: bool = False) -> Any:
    """The values of a JSON file, for those who tell what is wrong with it. Raises OSError and
    NotJson.
    """
    details = path.stat()
    if not stat.S_ISREG(details.st_mode):
        # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    if details.st_size > LONGEST_JSON:
        raise NotJson(f"it is larger than {LONGEST_JSON >> 20} MB")
    return parse_json(path.read_bytes(), names=names, infinite=infinite)


def parse_json(
    text: str | bytes, *, names: bool = False, infinite: bool = False, unique: bool = False
) -> Any:
    """The values of a JSON text, which anybody may have written. Raises NotJson, and nothing else.

    names: texts may be names of files: of a name that is not UTF-8 Python makes half surrogates,
    which cannot be written as UTF-8. infinite: NaN and Infinity are taken, as other programs write
    them. unique: a key that comes twice is refused; otherwise the last one counts.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if len(text) > LONGEST_JSON:
            raise NotJson(f"it is longer than {LONGEST_JSON >> 20} million characters")
        if text.count("[") + text.count("{") > DEEPEST_JSON:
            _check_depth(text)
        risky = _EXPONENT.search(text) or (len(text) > MOST_DIGITS and _DIGITS.search(text))
        decoder = _UNIQUE if unique else _INFINITE if infinite else _CAREFUL if risky else _USUAL
        values = decoder.decode(text)
        if not names and _HALF.search(text):
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        return values
    except UnicodeEncodeError as error:
        raise NotJson("a text holds half a character") from error
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
# a number that may be too large, or digits of something else
_DIGITS = re.compile("[0-9]{50}")
_EXPONENT = re.compile(r"(?<=[0-9])[eE]\+?[0-9]{3}")
_USUAL_DEPTH = 5
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _check_depth(text: str) -> None:
    outside_texts = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = outside_texts.encode("ascii", "replace").translate(None, _NO_BRACKETS)
    for _ in range(_USUAL_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST_JSON - _USUAL_DEPTH:
            raise NotJson(f"it is nested more than {DEEPEST_JSON} deep")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise NotJson(f"a number has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise NotJson("a number is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise NotJson("a name occurs twice")
    return values


# a function called for each number takes three times as long, and there are files of hundreds of
# thousands
_USUAL = json.JSONDecoder(parse_constant=_no_constant)
_CAREFUL = json.JSONDecoder(parse_constant=_no_constant, parse_int=_whole, parse_float=_finite)
_INFINITE = json.JSONDecoder(parse_int=_whole)
_UNIQUE = json.JSONDecoder(
    parse_constant=_no_constant,
    parse_int=_whole,
    parse_float=_finite,
    object_pairs_hook=_without_repeats,
)


def this_writer() -> str:
    """Names this process, as the name of what it is writing carries it: its machine, and its number
    there.
    """
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    world = platform.node()
    with contextlib.suppress(OSError):
        # containers of one name count their processes apart
        world += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.blake2b(world.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def is_left(writer: str, age: float) -> bool:
    """Whether a process, named as by `this_writer`, has left what it was writing `age` seconds ago:
    it is dead, or this was too long ago.

    Nothing but the age tells that of another machine's process, or where a dead one's number is
    another's by now.
    """
    machine, _, number = writer.rpartition("-")
    return age > LEFT_SECONDS or (
        machine == _machine() and number.isdecimal() and not _lives(int(number))
    )


def _lives(process: int) -> bool:
    if os.name == "nt":
        return _lives_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is another user's
    return True


def _lives_on_windows(process: int) -> bool:
    # os.kill would end it
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return bool(ctypes.get_last_error() == 5)  # type: ignore[attr-defined,unused-ignore]  # ERROR_ACCESS_DENIED: it is another user's
    status = ctypes.c_ulong()
    kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(status))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return status.value == 259  # STILL_ACTIVE


def age(path: Path) -> float:
    """Seconds since a file was written; 0 where there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def clear_left(folder: Path, *, alone: bool = False) -> None:
    """Delete what dead processes left half-written in `folder`. alone: only the caller writes there
    and inside, so it takes them all.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    for entry in found:
        partial = _PARTIAL.search(entry.name)
        with contextlib.suppress(OSError):
            if partial is not None and (
                alone or is_left(partial["writer"], time.time() - entry.stat().st_mtime)
            ):
                Path(entry.path).unlink()
            elif alone and entry.is_dir(follow_symlinks=False):
                clear_left(Path(entry.path), alone=True)


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
    """What makes two ways of writing a path one: links followed, and no difference of case on
    Windows.
    """
    try:
        return os.path.normcase(os.path.realpath(path))
    except ValueError:
        # a null byte, which no path on the disk has
        return str(path)


def stamp(path: Path) -> int:
    """A number that is another one when the file is, or when something came into the folder or left
    it; 0 where there is none.
    """
    try:
        details = path.stat()
    except OSError:
        return 0
    return hash((details.st_mtime_ns, details.st_size))


class Locked(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `path` as a lock file; raises Locked if another process still does after `patience`
    seconds.

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
    """Whether it was for want of room, which safetensors tells in words of its own."""
    while error is not None:
        text = str(error).lower()
        quota = getattr(errno, "EDQUOT", errno.ENOSPC)
        full = ("no space left", "os error 28", "os error 112", "not enough space on the disk")
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, quota)) or any(
            words in text for words in full
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
