"""The texts of one dataset: pairs, conversations and plain texts, always read from disk.

    store.view() -> TextView      every entry of its files, with the findings about them

A dataset of texts is a folder that was created as one (`mark`), or one opened by path that has text
files and no images. Files are read again when their size or modification time has changed. An
entry's key is a hash of its text: an entry that moves keeps its key, and the key of one that
someone else has changed is no longer found. Called by the routes and registry.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_trainer import files
from lora_trainer.dataset import caption_provenance
from lora_trainer.dataset.findings import Finding
from lora_trainer.dataset.images import READABLE_SUFFIXES
from lora_trainer.errors import DatasetError
from lora_trainer.language import conversations, text_files
from lora_trainer.language.conversations import FileTexts, TextExample
from lora_trainer.language.text_files import NoExample, TextField
from lora_trainer.webui.common.data_folder import NotFound

MARK = "texts.json"
"""A file in the .lora_trainer folder of a dataset of texts, which may be empty."""
MOST_LOOKED_AT = 2000
"""Maximum number of files to look for texts and images in."""


@dataclass(frozen=True, kw_only=True)
class TextItem:
    """An entry of a file."""

    key: str
    file: str
    """Its file, relative to the dataset's folder, with forward slashes."""
    name: str
    """For display: "pairs.jsonl, line 12"."""
    number: int
    """Its position in the file."""
    fields: tuple[TextField, ...]
    """Empty if it cannot be edited here."""
    raw: str
    """Its text in the file."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class TextView:
    """A snapshot of a dataset's texts."""

    revision: str
    """Changes with any of its files."""
    files: tuple[FileTexts, ...]
    items: tuple[TextItem, ...]
    findings: tuple[Finding, ...]
    """All findings, also those of the items."""

    @cached_property
    def by_key(self) -> dict[str, TextItem]:
        return {item.key: item for item in self.items}

    @cached_property
    def examples(self) -> tuple[TextExample, ...]:
        """The entries that can be trained on."""
        return tuple(
            example for file in self.files for example in file.examples if example is not None
        )

    def file(self, name: str) -> FileTexts:
        """A file by its name. Raises NotFound."""
        found = next((one for one in self.files if one.name == name), None)
        if found is None:
            raise NotFound(
                "there is no file {name}", hint="It may have been removed.", name=name[:80]
            )
        return found


class TextStore:
    """Reads a dataset's texts. Thread-safe: changes are made under `lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._known: dict[str, tuple[int, FileTexts]] = {}
        self._view: tuple[object, TextView] | None = None

    def view(self) -> TextView:
        """The current state of the files. Raises DatasetError if the folder cannot be read."""
        # under the lock, so that nobody removes a file between listing and reading it
        with self.lock:
            stamps = self._stamps()
            if self._view is None or self._view[0] != stamps:
                self._view = (stamps, self._read(stamps))
            return self._view[1]

    def _stamps(self) -> dict[str, int]:
        try:
            return {
                path.relative_to(self.path).as_posix(): files.stamp(path)
                for path in text_files.list_files(self.path)
            }
        except OSError as error:
            raise DatasetError(
                "{path} cannot be read: {reason}",
                hint="Check that the folder exists and may be read.",
                path=self.path,
                reason=error.strerror or error,
            ) from error

    def _read(self, stamps: dict[str, int]) -> TextView:
        known = {}
        for name, stamp in stamps.items():
            before = self._known.get(name)
            known[name] = (
                before
                if before and before[0] == stamp
                else (stamp, conversations.read_file(self.path / name, name))
            )
        self._known = known
        read = tuple(texts for _, texts in known.values())
        examples = [one for texts in read for one in texts.examples if one is not None]
        findings = (
            *(finding for texts in read for finding in texts.findings),
            *conversations.across(examples),
        )
        revision = hashlib.blake2b(repr(stamps).encode(), digest_size=12).hexdigest()
        return TextView(
            revision=revision,
            files=read,
            items=tuple(_items(read, findings)),
            findings=findings,
        )


def _items(read: tuple[FileTexts, ...], findings: tuple[Finding, ...]) -> Iterator[TextItem]:
    about: dict[str, list[Finding]] = {}
    for finding in findings:
        about.setdefault(str(finding.message.values.get("name", "")), []).append(finding)
    for texts in read:
        if texts.file is None:
            continue
        seen: Counter[str] = Counter()
        for number, (entry, raw) in enumerate(
            zip(texts.file.entries, texts.file.raws, strict=True)
        ):
            name = f"{texts.name}, {entry.place}" if entry.place else texts.name
            try:
                fields = entry.fields()
            except NoExample:
                fields = ()
            yield TextItem(
                key=text_files.key_of(texts.name, raw, seen[raw]),
                file=texts.name,
                name=name,
                number=number,
                fields=fields,
                raw=raw,
                findings=tuple(about.get(name, ())),
            )
            seen[raw] += 1


def mark(folder: Path) -> None:
    """Mark a folder as a dataset of texts."""
    inside = folder / caption_provenance.FOLDER
    inside.mkdir(exist_ok=True)
    files.write_text(inside / MARK, '{"version": 1}\n')


def holds_texts(folder: Path, *, external: bool) -> bool:
    """Whether a folder is a dataset of texts. external: it was opened by path, and counts as one if
    it has text files and no images.
    """
    if (folder / caption_provenance.FOLDER / MARK).is_file():
        return True
    if not external:
        return False
    has_texts = False
    try:
        for number, path in enumerate(folder.rglob("*")):
            suffix = path.suffix.lower()
            if suffix in READABLE_SUFFIXES or number >= MOST_LOOKED_AT:
                return False
            has_texts = has_texts or suffix in text_files.SUFFIXES
    except OSError:
        return False
    return has_texts
