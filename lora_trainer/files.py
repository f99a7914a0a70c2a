"""Atomic file writes, untrusted JSON, and file locks that the operating system releases when a
process dies.

Temporary files of killed processes (`NAME.WRITER-NUMBER.part`) are deleted by the next process that
writes into the folder. Standard library only; every module may import this one.
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
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

T = TypeVar("T")

MAX_JSON_SIZE = 64 << 20
"""Bytes of a file, characters of a string. The metadata of 20,000 images takes a third of it."""
MAX_JSON_DEPTH = 100
"""Nesting of lists and objects. Deeper values exceed the recursion limit of code that walks them.
"""
MAX_DIGITS = 300
"""The most that still convert to a float."""
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading a file written by somebody else, and picking values from it, may raise."""

RESERVED_DISK_SPACE = 2**30
"""Bytes that uploads and downloads leave free: a full disk harms the system and a training."""
REPLACE_TIMEOUT = 3.0
"""Seconds to retry while another process has the target open (Windows)."""
ABANDONED_SECONDS = 86400.0
"""Age at which a temporary file is deleted, whoever wrote it: on a network share its process is
unknown.
"""

_PARTIAL = re.compile(r"\.(?P<writer>[0-9a-f]{8}-\d{1,10}|\d{1,10})(-\d+)?\.part$")
_writes = itertools.count(1)
"""Numbers temporary files: two threads may write the same target at once."""
_cleaned_folders: set[Path] = set()
"""Folders in which this process has deleted abandoned temporary files."""
_looking = threading.Lock()
"""Held while a lock file is looked at."""


def replace_file(target: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Write `target` atomically: `write` fills a temporary file beside it, which then replaces it.

    Readers see the old file or the new one. If `write` raises, the old file stays. durable: wait
    until the disk has it, so that it outlives a power cut; not needed for what can be made again
    and whose reader notices damage.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent not in _cleaned_folders:
        _cleaned_folders.add(target.parent)
        remove_abandoned(target.parent)
    partial = target.with_name(f"{target.name}.{writer_id()}-{next(_writes)}.part")
    try:
        write(partial)
        if durable:
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
        _replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    if durable:
        sync_folder(target.parent)


def _replace(partial: Path, target: Path) -> None:
    """os.replace, retried on Windows while a reader, an indexer or a virus scanner has the file
    open.
    """
    deadline = time.monotonic() + REPLACE_TIMEOUT
    while True:
        try:
            os.replace(partial, target)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def write_bytes(target: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `target` atomically; `durable` as for `replace_file`."""
    replace_file(target, lambda partial: partial.write_bytes(content), durable=durable)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically, in UTF-8 with plain newlines."""
    write_bytes(target, text.encode("utf-8"))


class NotJson(ValueError):
    """Not JSON, or beyond the limits above; str() says why."""


def read_json(path: Path, make: Callable[[Any], T], default: T, *, names: bool = False) -> T:
    """`make(content)` of a JSON file; `default` if it is missing, unreadable, invalid, or `make`
    fails.

    Never raises. names: see `parse_json`.
    """
    try:
        return make(load_json(path, names=names))
    except UNREADABLE:
        return default


def load_json(path: Path, *, names: bool = False, infinite: bool = False) -> Any:
    """The content of a JSON file. Raises OSError and NotJson."""
    details = path.stat()
    if not stat.S_ISREG(details.st_mode):
        # opening a named pipe would block
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    if details.st_size > MAX_JSON_SIZE:
        raise NotJson(f"it is larger than {MAX_JSON_SIZE >> 20} MB")
    return parse_json(path.read_bytes(), names=names, infinite=infinite)


def parse_json(
    text: str | bytes, *, names: bool = False, infinite: bool = False, unique: bool = False
) -> Any:
    """The content of untrusted JSON text. Raises NotJson only.

    names: strings may be file names, which may hold lone surrogates (names that are not UTF-8).
    infinite: accept NaN and Infinity. unique: refuse a repeated key instead of taking the last.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if len(text) > MAX_JSON_SIZE:
            raise NotJson(f"it is longer than {MAX_JSON_SIZE >> 20} million characters")
        if text.count("[") + text.count("{") > MAX_JSON_DEPTH:
            _check_depth(text)
        risky = _EXPONENT.search(text) or (len(text) > MAX_DIGITS and _DIGITS.search(text))
        decoder = _UNIQUE if unique else _INFINITE if infinite else _CHECKED if risky else _FAST
        values = decoder.decode(text)
        if not names and _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        return values
    except UnicodeEncodeError as error:
        raise NotJson("a string holds a lone surrogate") from error
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def json_spans(text: str) -> list[tuple[int, int]]:
    """Where the elements of a list stand in JSON text that parse_json accepts."""
    spans: list[tuple[int, int]] = []
    at = _SPACE.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]
    while text[at] != "]":
        _, end = _FAST.raw_decode(text, at)
        spans.append((at, end))
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[at] == ",":
            at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    return spans


_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# numbers that may be too large, or digits inside strings
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
        if depth > MAX_JSON_DEPTH - _USUAL_DEPTH:
            raise NotJson(f"it is nested more than {MAX_JSON_DEPTH} deep")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise NotJson(f"a number has {len(digits):,} digits")
    return int(digits)


def finite_number(value: Any) -> float | None:
    """A number of parsed JSON or YAML, or a text that is one, as a finite float; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        # integers in JSON and YAML may exceed the range of float
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise NotJson("a number is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no number")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise NotJson("a name occurs twice")
    return values


# a Python function called per number is three times slower, and files hold hundreds of thousands
_FAST = json.JSONDecoder(parse_constant=_refuse_constant)
_CHECKED = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_bounded_int, parse_float=_finite_float
)
_INFINITE = json.JSONDecoder(parse_int=_bounded_int)
_UNIQUE = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=_bounded_int,
    parse_float=_finite_float,
    object_pairs_hook=_refuse_repeats,
)


def writer_id() -> str:
    """This process in a temporary file's name: a hash of its machine, and its pid."""
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    machine = platform.node()
    with contextlib.suppress(OSError):
        # containers of one host name have separate pid namespaces
        machine += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.blake2b(machine.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def is_abandoned(writer: str, age: float) -> bool:
    """Whether the temporary file of a process (`writer_id`), last written `age` seconds ago, is
    left over: its process is dead, or the file is old. For a process on another machine, and for a
    reused pid, only the age tells.
    """
    machine, _, number = writer.rpartition("-")
    return age > ABANDONED_SECONDS or (
        machine == _machine() and number.isdecimal() and not _is_running(int(number))
    )


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return _is_running_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's process
    return True


def _is_running_on_windows(process: int) -> bool:
    # os.kill would terminate it
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return bool(ctypes.get_last_error() == 5)  # type: ignore[attr-defined,unused-ignore]  # ERROR_ACCESS_DENIED
    status = ctypes.c_ulong()
    kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(status))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return status.value == 259  # STILL_ACTIVE


def changed(path: Path) -> float:
    """When a file was modified, in seconds since 1970; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def age(path: Path) -> float:
    """Seconds since a file was modified; 0 if it does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary file of `replace_file`."""
    return _PARTIAL.search(name) is not None


def remove_abandoned(folder: Path, *, alone: bool = False) -> None:
    """Delete abandoned temporary files in `folder`. alone: the caller is the only writer there and
    below, so all of them are abandoned.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if alone or entry.name.endswith(".part")]
    except OSError:
        return
    for entry in found:
        partial = _PARTIAL.search(entry.name)
        with contextlib.suppress(OSError):
            if partial is not None and (
                alone or is_abandoned(partial["writer"], time.time() - entry.stat().st_mtime)
            ):
                Path(entry.path).unlink()
            elif alone and entry.is_dir(follow_symlinks=False):
                remove_abandoned(Path(entry.path), alone=True)


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; links count as links."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += Path(parent, name).lstat().st_size
    return size


def sync_folder(folder: Path) -> None:
    """fsync a folder, which makes a rename in it durable. Windows has no such call."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def place(path: Path) -> str:
    """A path's canonical form: links resolved, and lower case on Windows."""
    try:
        return os.path.normcase(os.path.realpath(path))
    except ValueError:
        # a null byte
        return str(path)


def stamp(path: Path) -> int:
    """A number that changes when a file or a folder's entries do; 0 if it does not exist."""
    try:
        details = path.stat()
    except OSError:
        return 0
    return hash((details.st_mtime_ns, details.st_size))


class Locked(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `path` as a lock file. Raises Locked if another process still has it after `patience`
    seconds. The operating system releases it when the holder dies.
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


def is_locked(path: Path, *, shared: bool = False) -> bool:
    """Whether a living process holds the lock file; with `shared`, also if it shares it, as several
    that use a folder do. Takes the lock for an instant, without `shared` beside others who look;
    Windows has no shared lock, so there another process that looks at that instant counts as well.
    """
    with contextlib.suppress(FileNotFoundError), _looking, path.open("rb") as stream:
        try:
            _acquire(stream, shared=not shared)
        except OSError:
            return True
    return False


def _acquire(stream: IO[bytes], *, shared: bool = False) -> None:
    if os.name == "nt":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a write failed for lack of space; safetensors raises its own class for that."""
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
