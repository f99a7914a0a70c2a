"""A cache of facts about files, by path, in a JSON file that survives restarts. Used by
checkpoints.py and image_cache.py.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_trainer import files

log = logging.getLogger("lora_trainer.webui")

CAPACITY = 50_000
"""Maximum number of entries; the oldest ones are dropped."""


class FactCache:
    """Thread-safe. is_valid: whether an entry of the file, which may be damaged, can be used."""

    def __init__(self, file: Path, is_valid: Callable[[Any], bool]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._entries: dict[str, dict[str, Any]] = files.read_json(
            file,
            lambda entries: {path: entry for path, entry in entries.items() if is_valid(entry)},
            {},
            names=True,
        )

    def get(self, path: Path, mark: list[int]) -> dict[str, Any] | None:
        """The entry of a file with this `mark`, which changes with the file."""
        with self._lock:
            entry = self._entries.get(str(path))
        return entry if entry is not None and entry["mark"] == mark else None

    def put(self, path: Path, mark: list[int], entry: dict[str, Any]) -> None:
        with self._lock:
            self._entries[str(path)] = {"mark": mark, **entry}

    def paths_with(self, key: str) -> set[str]:
        """The paths whose entries have this key."""
        with self._lock:
            return {path for path, entry in self._entries.items() if key in entry}

    def write(self) -> None:
        """Write the file. A failure is logged."""
        # serialized, or an older state may overwrite a newer one
        with self._writing:
            with self._lock:
                while len(self._entries) > CAPACITY:
                    del self._entries[next(iter(self._entries))]
                content = json.dumps(self._entries, ensure_ascii=True, separators=(",", ":"))
            try:
                files.write_text(self._file, content)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._file, error)
