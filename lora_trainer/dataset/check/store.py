"""A cache of measurements in a JSON file: content digest -> Measures, and file -> digest for
unchanged size and date.

A check of two thousand unchanged files then opens none. The file may be deleted at any time; an
unreadable one is replaced. Thread-safe.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer import files
from lora_trainer.dataset.caption_provenance import FOLDER
from lora_trainer.dataset.images import digest

if TYPE_CHECKING:
    from lora_trainer.dataset.check.measure import Measures

VERSION = 3
"""Increase when any measurement changes: older files are then ignored."""


def kept_measures(dataset: Path) -> Path:
    """The file that is kept with the dataset."""
    return dataset / FOLDER / "measures.json"


class Store:
    """Measures by content. `Store(None)` keeps nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._changed = False
        kept = _read(file) if file else {}
        self._measures: dict[str, dict[str, Any]] = kept.get("measures", {})
        self._digests: dict[str, list[Any]] = kept.get("digests", {})
        self._seen: dict[str, list[Any]] = {}

    def digest(self, path: Path) -> str:
        """The file's content digest, read again only if size or date differ. Raises
        DatasetError.
        """
        try:
            state = path.stat()
        except OSError:
            return digest(path)  # raises
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
        """Measures of this content as keyword arguments, not validated."""
        return self._measures.get(content)

    def put(self, measures: Measures) -> None:
        with self._lock:
            self._changed = True
            self._measures[measures.digest] = dataclasses.asdict(measures)

    def save(self) -> None:
        """Write the file atomically if anything is new, only with entries of files seen since it
        was opened. Raises OSError.
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
    def parsed(kept: Any) -> dict[str, Any]:
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

    return files.read_json(file, parsed, {}, names=True)


def _is_entry(entry: Any) -> bool:
    """Whether it is [size, date, digest]."""
    return isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]
