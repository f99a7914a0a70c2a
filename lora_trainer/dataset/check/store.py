"""What was measured before, kept in one JSON file: content digest -> Measures, and file -> digest
as long as its size and date stay.

A check of two thousand unchanged files then opens none of them. The file may be deleted at any
time; one that cannot be read is begun anew. Called by check.measure, from several threads.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer import files
from lora_trainer.dataset.images import digest

if TYPE_CHECKING:
    from lora_trainer.dataset.check.measure import Measures

VERSION = 3
"""Raised when anything is measured differently: older files are then begun anew."""


class Store:
    """Measures by content. `Store(None)` forgets everything."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._changed = False
        kept = _read(file) if file else {}
        self._measures: dict[str, dict[str, Any]] = kept.get("measures", {})
        self._digests: dict[str, list[Any]] = kept.get("digests", {})
        self._seen: dict[str, list[Any]] = {}

    def digest(self, path: Path) -> str:
        """The file's content digest; read only if its size or date is not the one known. Raises
        DatasetError.
        """
        try:
            state = path.stat()
        except OSError:
            return digest(path)  # which says why
        known = self._digests.get(str(path))
        same = known is not None and known[:2] == [state.st_size, state.st_mtime_ns]
        entry: list[Any] = (
            known if known and same else [state.st_size, state.st_mtime_ns, digest(path)]
        )
        with self._lock:
            self._changed |= entry is not known
            self._seen[str(path)] = entry
        return str(entry[2])

    def known(self, content: str) -> dict[str, Any] | None:
        """The Measures of this content, as keyword arguments; whether they are that is for the
        caller to see.
        """
        return self._measures.get(content)

    def put(self, measures: Measures) -> None:
        with self._lock:
            self._changed = True
            self._measures[measures.digest] = dataclasses.asdict(measures)

    def save(self) -> None:
        """Writes the file, whole or not at all, if anything is new. Only what belongs to files seen
        since it was opened is kept.

        Raises OSError.
        """
        if self._file is None or not (self._changed or len(self._seen) != len(self._digests)):
            return
        used = {entry[2] for entry in self._seen.values()}
        kept = {
            "version": VERSION,
            "digests": self._seen,
            "measures": {key: value for key, value in self._measures.items() if key in used},
        }
        files.write_text(self._file, json.dumps(kept, separators=(",", ":")))


def _read(file: Path) -> dict[str, Any]:
    def told(kept: Any) -> dict[str, Any]:
        if kept["version"] != VERSION:
            return {}
        measures = {
            content: measures
            for content, measures in kept["measures"].items()
            if isinstance(measures, dict)
        }
        return {
            "measures": measures,
            "digests": {path: entry for path, entry in kept["digests"].items() if _is_entry(entry)},
        }

    return files.read_json(file, told, {}, names=True)


def _is_entry(entry: Any) -> bool:
    """Whether it is [size, date, digest]."""
    return isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]
