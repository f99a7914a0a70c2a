"""Adds uploaded files to a dataset of texts.

    accept(store, incoming, name) -> Accepted, names of the files that were added

A file is read before it is accepted: one without anything to train on is left out, with the reason.
It is kept as it is, under a safe, unique name. Called by the routes.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lora_trainer.dataset.listing import folded
from lora_trainer.errors import DatasetError
from lora_trainer.language import conversations, text_files
from lora_trainer.webui.common.safe_names import free_name, safe_name
from lora_trainer.webui.datasets.text_store import TextStore
from lora_trainer.webui.images.uploads import Accepted

KINDS = (
    "Texts are read from .jsonl, .json and .csv (question and answer pairs, conversations), and"
    " from .txt and .md (plain texts)."
)


def accept(store: TextStore, incoming: Path, name: str) -> tuple[Accepted, list[str]]:
    """Add a received file to the dataset. Problems with its content are in `skipped`, never raised.
    The file is moved or removed.
    """
    accepted, added = Accepted(), []
    name = PurePosixPath(name.replace("\\", "/")).name or "unnamed"
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if suffix not in text_files.SUFFIXES:
            raise DatasetError("{path} is not in a format for texts", hint=KINDS, path=name)
        # read_file chooses the format by the suffix
        named = incoming.with_name(incoming.name + suffix)
        incoming = incoming.rename(named)
        found = conversations.read_file(incoming, name)
        count = sum(example is not None for example in found.examples)
        if not count:
            first = found.findings[0] if found.findings else None
            raise DatasetError(
                "{path} contains nothing to train on: {reason}"
                if first
                else "{path} contains nothing to train on",
                hint=str(first.hint) if first else KINDS,
                path=name,
                reason=first.message if first else "",
            )
        with store.lock:
            there = {folded(entry.name): entry for entry in store.path.iterdir()}
            twin = there.get(folded(safe_name(PurePosixPath(name).stem, suffix)))
            if twin is not None and twin.read_bytes() == incoming.read_bytes():
                raise DatasetError("{path} is already in this dataset", path=name)
            target = store.path / free_name(
                safe_name(PurePosixPath(name).stem, suffix),
                lambda candidate: folded(candidate) in there,
            )
            incoming.rename(target)
        accepted.texts = count
        added.append(target.name)
    except DatasetError as problem:
        accepted.skip(name, problem)
    except OSError as error:
        hint = "Check the free space and the folder's permissions."
        accepted.skip(name, DatasetError.cannot_write(Path(name), error, hint))
    finally:
        incoming.unlink(missing_ok=True)
    return accepted, added
