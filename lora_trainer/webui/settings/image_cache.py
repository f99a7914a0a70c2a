"""Caches facts about image files on disk, because a plan is computed at each keystroke, and
decoding thousands of images takes minutes.

    known.examine(path)  -> Examined immediately: from the cache, else from the file's header,
                            while a thread decodes the image
    known.unchecked(paths) -> how many of them have not been decoded yet

Files are identified by path, size and modification time. preflight.py passes `examine` to
dataset.scan. Needs Pillow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.dataset.images import Examined, examine, image_size
from lora_trainer.errors import DatasetError
from lora_trainer.webui.common.fact_cache import FactCache

THREADS = 2
"""Leaves CPU time for the host."""
WRITE_EVERY = 200

log = logging.getLogger("lora_trainer.webui")


class ImageCache:
    """Thread-safe. `file`: the cache on disk; if it is lost, images are decoded again."""

    def __init__(self, file: Path, thorough: Callable[[Path], Examined] = examine) -> None:
        self._thorough = thorough
        self._lock = threading.Lock()
        self._cache = FactCache(file, _is_sound)
        # unreadable images are tried again after a start: limits or Pillow may have changed
        self._doubtful = self._cache.paths_with("problem")
        self._waiting: set[str] = set()
        self._unwritten = 0
        self.serial = 0
        """Incremented after each decoded image: results of `look` may have changed."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lora-trainer-images")

    def examine(self, path: Path) -> Examined:
        """Size and content hash of an image; until it is decoded, a hash that stands for this file
        only. Raises DatasetError.
        """
        mark = _mark(path)
        entry = self._cache.get(path, mark)
        if entry is not None:
            if str(path) in self._doubtful:
                self._doubtful.discard(str(path))
                self._look_later(path, mark)
            return _examined(entry, path)
        width, height = image_size(path)
        self._look_later(path, mark)
        return Examined(width=width, height=height, digest=f"{path}:{mark}")

    def unchecked(self, paths: Iterable[Path]) -> int:
        """How many of these have not been decoded yet."""
        with self._lock:
            return sum(str(path) in self._waiting for path in paths) if self._waiting else 0

    def close(self) -> None:
        """Drop pending work and write the cache. For tests: hosts do not shut down cleanly."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._cache.write()

    def wait(self) -> None:
        """Wait for all pending work."""
        self._pool.shutdown(wait=True)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lora-trainer-images")

    def _look_later(self, path: Path, mark: list[int]) -> None:
        with self._lock:
            if str(path) in self._waiting:
                return
            self._waiting.add(str(path))
        self._pool.submit(self._look_thoroughly, path, mark)

    def _look_thoroughly(self, path: Path, mark: list[int]) -> None:
        try:
            found = self._thorough(path)
            entry = {"width": found.width, "height": found.height, "digest": found.digest}
        except DatasetError as problem:
            entry = {
                "problem": problem.message.template,
                "hint": problem.hint.template,
                "values": _plain(problem.message.values),
            }
        except Exception:
            log.exception("looking at %s", path)
            entry = {}
        if entry:
            self._cache.put(path, mark, entry)
        with self._lock:
            self._waiting.discard(str(path))
            self.serial += 1
            self._unwritten += 1
            due = self._unwritten >= WRITE_EVERY or not self._waiting
            if due:
                self._unwritten = 0
        if due:
            self._cache.write()


def _is_sound(entry: Any) -> bool:
    """Whether the entry is valid: the cache file may be damaged."""
    try:
        try:
            found = _examined(entry, Path())
        except DatasetError as problem:
            return "mark" in entry and bool(problem.report())
        return (
            "mark" in entry
            and isinstance(found.digest, str)
            and all(type(side) is int and side > 0 for side in (found.width, found.height))
        )
    except files.UNREADABLE:
        return False


def _mark(path: Path) -> list[int]:
    """Changes with the file. Raises DatasetError."""
    try:
        details = path.stat()
    except OSError as error:
        raise DatasetError(
            "{path} cannot be read: {reason}",
            hint="Check the file and the disk.",
            path=path,
            reason=error.strerror,
        ) from error
    return [details.st_mtime_ns, details.st_size]


def _examined(entry: dict[str, Any], path: Path) -> Examined:
    if "problem" in entry:
        raise DatasetError(
            entry["problem"], hint=entry["hint"], **{**entry["values"], "path": path}
        )
    return Examined(width=entry["width"], height=entry["height"], digest=entry["digest"])


def _plain(values: Any) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
        for key, value in values.items()
    }
