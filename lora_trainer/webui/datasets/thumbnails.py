"""Thumbnails, created on first use and cached by content.

    thumbnails.image(path) -> Path of a WebP, upright, no side above 384 pixels

A few images are decoded at a time; concurrent requests for one image share the result. Thumbnails
unused for a month are deleted. Called by the routes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset.images import digest, write_reduced
from lora_trainer.errors import DatasetError

LONGEST_SIDE = 384
"""In pixels: sharp on the cards at a device pixel ratio of 2."""
LARGE_SIDE = 2048
"""For formats that browsers cannot display."""
THREADS = 4
KEPT_SECONDS = 30 * 86400.0
"""A thumbnail is kept this long after its last use."""
TIDY_SECONDS = 86400.0
_REMEMBERED = 20_000

_Stamp = tuple[str, int, int]


class Thumbnails:
    """Thread-safe. `folder`: the cache, whose files may be deleted at any time."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._tidied = 0.0
        self._lock = threading.Lock()
        self._digests: OrderedDict[_Stamp, str] = OrderedDict()
        self._making: dict[tuple[Path, int], Future[Path]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lora-trainer-thumbnails")

    def image(self, path: Path, longest_side: int = LONGEST_SIDE) -> Path:
        """The thumbnail of an image, created if needed. Raises DatasetError if the image is
        unreadable or the disk is full.
        """
        key = (path, longest_side)
        now = self._clock()
        with self._lock:
            if now - self._tidied >= TIDY_SECONDS:
                self._tidied = now
                self._pool.submit(self._tidy, now)
            future = self._making.get(key)
            if future is None:
                future = self._making[key] = self._pool.submit(self._make, path, longest_side)
        try:
            return future.result()
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _make(self, path: Path, longest_side: int) -> Path:
        name = self._digest(path)
        target = self._folder / name[:2] / f"{name}-{longest_side}.webp"
        if target.exists():
            self._note_use(target)
            return target
        try:
            files.replace_file(target, lambda partial: write_reduced(path, partial, longest_side))
        except OSError as error:
            values = {"name": path.name, "reason": error.strerror or error}
            hint = "Check the free space on the disk of the data folder."
            raise DatasetError(
                "the thumbnail of {name} cannot be written: {reason}", hint=hint, **values
            ) from error
        return target

    def _note_use(self, target: Path) -> None:
        """Set the modification time to now: the time of last use. At most once a day, to avoid a
        write per request.
        """
        now = self._clock()
        with contextlib.suppress(OSError):
            if now - target.stat().st_mtime >= TIDY_SECONDS:
                os.utime(target, (now, now))

    def _tidy(self, now: float) -> None:
        for path in self._folder.rglob("*.webp"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime >= KEPT_SECONDS:
                    path.unlink()

    def _digest(self, path: Path) -> str:
        try:
            details = path.stat()
        except OSError as error:
            values = {"path": path.name, "reason": error.strerror}
            raise DatasetError(
                "{path} cannot be read: {reason}", hint="Check the file and the disk.", **values
            ) from error
        stamp = (str(path), details.st_mtime_ns, details.st_size)
        with self._lock:
            known = self._digests.get(stamp)
        if known is None:
            known = digest(path)
            with self._lock:
                self._digests[stamp] = known
                while len(self._digests) > _REMEMBERED:
                    self._digests.popitem(last=False)
        return known
