"""Who wrote each caption, recorded by the image's content, so that no captioner replaces what a
person wrote.

    <dataset>/.lora_trainer/captions.json     {"version": 1, "images": {DIGEST: {"text", "by",
                                              "before"}}}
    <dataset>/.lora_trainer/captions.lock     held while captions of this dataset are changed

For each image (by `dataset.images.digest`, so that renaming changes nothing) the sidecar has the
last written text and its author: a captioner, or a person in the tab. The captions themselves are
in metadata.csv, .txt or both. A caption that differs from what the captioner wrote was edited by a
person, as was one without a record.

    read_authors(root) -> Authors     .author(digest, text): "machine", "person" or "nobody" (no
    text)
    record(root, {digest: CaptionRecord})   atomically
    settle(root, digests)             their captions are in their files now
    changing_captions(root)           the lock: take it, read again, record, write the captions,
                                      settle

Recorded before the caption is written, so that after a crash the old caption (`before`) is still
known as a captioner's. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.dataset.captions import caption_of
from lora_trainer.errors import DatasetError

FOLDER = ".lora_trainer"
"""The trainer's folder in a dataset. Folders that start with a dot are not searched for images."""
FILE = "captions.json"
LOCK = "captions.lock"
CAPTIONS_LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process's change."""
VERSION = 1
PERSON = "person"

Author = Literal["machine", "person", "nobody"]


@dataclass(frozen=True, kw_only=True)
class CaptionRecord:
    """The last text written for an image."""

    text: str
    by: str
    """"person", or the captioner's name and a digest of its settings
    (settings.captioning.fingerprint).
    """
    before: str | None = None
    """A captioner's text before that, until the new one is in its file."""


@dataclass(frozen=True)
class Authors:
    """The records of a dataset."""

    by_digest: Mapping[str, CaptionRecord] = field(default_factory=dict)

    def author(self, digest: str, text: str) -> Author:
        """Who wrote this caption of this image."""
        text = caption_of(text)
        if not text:
            return "nobody"
        written = self.by_digest.get(digest)
        if written is None or written.by == PERSON:
            return "person"
        return "machine" if text in (written.text, written.before) else "person"

    def is_done(self, digest: str, text: str, by: str) -> bool:
        """Whether this captioner, with these settings, wrote the caption."""
        written = self.by_digest.get(digest)
        return written is not None and written.by == by and written.text == caption_of(text)


def read_authors(root: Path) -> Authors:
    """The records of the dataset in `root`; none if the sidecar is missing or damaged, so that
    every caption counts as a person's.
    """

    def parsed(values: Any) -> Authors:
        return Authors(
            {str(digest): _written(written) for digest, written in values["images"].items()}
        )

    return files.read_json(root / FOLDER / FILE, parsed, Authors())


def record(root: Path, news: Mapping[str, CaptionRecord]) -> None:
    """Add these records. Raises DatasetError. Call it within `changing_captions`."""
    if not news:
        return
    known = dict(read_authors(root).by_digest)
    for digest, written in news.items():
        old, text = known.get(digest), caption_of(written.text)
        before = None
        if old is not None and old.text == text:
            before = old.before
        elif old is not None and old.by != PERSON:
            before = old.text
        known[digest] = replace(written, text=text, before=before)
    _write(root, known)


def settle(root: Path, digests: Iterable[str]) -> None:
    """Drop `before` of these: their new captions are in their files. Raises DatasetError."""
    known = read_authors(root).by_digest
    settled = {
        digest: replace(known[digest], before=None)
        for digest in digests
        if digest in known and known[digest].before is not None
    }
    if settled:
        _write(root, {**known, **settled})


def _write(root: Path, known: Mapping[str, CaptionRecord]) -> None:
    images = {
        digest: {
            "text": one.text,
            "by": one.by,
            **({"before": one.before} if one.before is not None else {}),
        }
        for digest, one in known.items()
    }
    target = root / FOLDER / FILE
    try:
        files.write_text(
            target,
            json.dumps({"version": VERSION, "images": images}, ensure_ascii=False, indent=0) + "\n",
        )
    except OSError as error:
        raise _cannot_be_written(target, error) from error


@contextlib.contextmanager
def changing_captions(root: Path, patience: float = CAPTIONS_LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock for changing this dataset's captions. Raises DatasetError if another process
    does for `patience` seconds.
    """
    lock = root / FOLDER / LOCK
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(lock, patience=patience))
        except files.Locked as error:
            hint = "Close other windows of the trainer, then try again."
            raise DatasetError(
                "another process is changing the captions in {folder}", hint=hint, folder=root
            ) from error
        except OSError as error:
            raise _cannot_be_written(lock, error) from error
        yield


def _written(values: Mapping[str, Any]) -> CaptionRecord:
    before = values.get("before")
    return CaptionRecord(
        text=str(values["text"]),
        by=str(values["by"]),
        before=None if before is None else str(before),
    )


def _cannot_be_written(path: Path, error: OSError) -> DatasetError:
    hint = "Check the free space and the folder's permissions."
    return DatasetError.cannot_write(path, error, hint)
