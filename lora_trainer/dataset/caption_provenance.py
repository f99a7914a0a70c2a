"""Who wrote a caption, remembered by the image's content: so that no captioner ever replaces what a
person wrote.

    <dataset>/.lora_trainer/captions.json     {"version": 1, "images": {DIGEST: {"text", "by",
                                              "before"}}}
    <dataset>/.lora_trainer/captions.lock     held by whoever changes captions of this dataset, for
                                              an instant

For each image (by `dataset.images.digest`, so that renaming or moving it changes nothing) the
sidecar holds the text that was written last, and by whom: a captioner, or a person in the tab. The
captions themselves stay where they are, in metadata.csv, .txt or both; nothing here names a file. A
caption that is not what the captioner wrote last was changed by a person, in whatever program. One
that nobody recorded is a person's too.

    read_authors(root) -> Authors     .author(digest, text): "machine", "person" or "nobody" (there
                                      is no text)
    record(root, {digest: Written})   whole or not at all
    settle(root, digests)             these are in their files now
    changing_captions(root)           the lock: take it, look again, record, write the captions,
                                      settle

Recorded before the caption is written, so that a process that dies in between leaves a caption that
is still known as a machine's (`before`). Once it is written that is forgotten: who puts an older
caption back afterwards is a person. Called by the caption job and by the tab's workbench. Standard
library only.
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
"""In a dataset's folder, for what the trainer keeps about it. Folders that begin with a dot are
never searched for images.
"""
FILE = "captions.json"
LOCK = "captions.lock"
LOCK_PATIENCE = 10.0
"""Seconds for which another process's change is waited for."""
VERSION = 1
PERSON = "person"

Author = Literal["machine", "person", "nobody"]


@dataclass(frozen=True, kw_only=True)
class CaptionRecord:
    """What was written last for one image."""

    text: str
    by: str
    """`person`, or the captioner's name and a digest of its settings
    (settings.captioning.fingerprint).
    """
    before: str | None = None
    """What a captioner had written before that, if one had; kept until the new text is in its file.
    """


@dataclass(frozen=True)
class Authors:
    """What is remembered of a dataset."""

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
        """Whether the caption is what this captioner, with these settings, wrote: it would write
        the same again.
        """
        written = self.by_digest.get(digest)
        return written is not None and written.by == by and written.text == caption_of(text)


def read_authors(root: Path) -> Authors:
    """What is remembered of the dataset in `root`. Where the sidecar is missing or damaged,
    nothing: every caption then counts as a person's.
    """

    def told(values: Any) -> Authors:
        return Authors(
            {str(digest): _written(written) for digest, written in values["images"].items()}
        )

    return files.read_json(root / FOLDER / FILE, told, Authors())


def record(root: Path, news: Mapping[str, CaptionRecord]) -> None:
    """Remember these besides what is remembered already. Raises DatasetError. Call it within
    `changing_captions`.
    """
    if not news:
        return
    known = dict(read_authors(root).by_digest)
    for digest, written in news.items():
        old, text = known.get(digest), caption_of(written.text)
        before = (
            old.before
            if old is not None and old.text == text
            else old.text
            if old is not None and old.by != PERSON
            else None
        )
        known[digest] = replace(written, text=text, before=before)
    _write(root, known)


def settle(root: Path, digests: Iterable[str]) -> None:
    """What was recorded for these is in their files: what stood there before is no captioner's any
    more. Raises DatasetError.
    """
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
def changing_captions(root: Path, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """Be the only one of our processes that changes captions of this dataset. Raises DatasetError
    when another is at it for `patience` seconds.
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
    return DatasetError(
        "{path} cannot be written: {reason}", hint=hint, path=path, reason=error.strerror or error
    )
