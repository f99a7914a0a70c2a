"""The settings draft of a dataset: trigger word, preset, changed settings, checkpoint, name, and
captioner options.

    <dataset>/.lora_trainer/draft.json      {"version": 1, "values": {...}}

    read(root) -> Draft                     empty if missing or unreadable
    write(root, values, was) -> Draft       raises Conflict if someone else has written meanwhile

Stored with the images, so that each dataset has its own and all browsers see the same. Called by
registry.py and the routes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from lora_trainer import files
from lora_trainer.dataset import caption_provenance
from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.webui.common import form
from lora_trainer.webui.http.routing import Conflict

FILE = "draft.json"
TEXTS = ("preset", "checkpoint", "init_lora", "name")
LONGEST = 64 * 1024
"""Size limit in bytes."""


class CaptionerDraft(TypedDict, total=False):
    """The chosen captioner, and the options of each."""

    captioner: str
    options: dict[str, dict[str, Any]]


class DraftValues(TypedDict, total=False):
    """`changes`: config keys -> values set by the user."""

    preset: str
    checkpoint: str
    init_lora: str
    name: str
    changes: dict[str, Any]
    captioner: CaptionerDraft


class DraftView(TypedDict):
    """A dataset's settings draft."""

    values: DraftValues
    revision: str
    changed: float


@dataclass(frozen=True)
class Draft:
    values: DraftValues = field(default_factory=DraftValues)
    """preset, checkpoint, init_lora, name: strings. changes: config key -> value set by the user.
    captioner: {captioner, options}.
    """
    revision: str = ""
    """Changes with the file's content; empty without a file."""
    changed: float = 0.0
    """Modification time."""

    def to_json(self) -> DraftView:
        return {"values": self.values, "revision": self.revision, "changed": self.changed}


def path_of(root: Path) -> Path:
    return root / caption_provenance.FOLDER / FILE


def read(root: Path) -> Draft:
    path = path_of(root)
    try:
        if path.stat().st_size > 2 * LONGEST:
            return Draft()
        content, changed = path.read_bytes(), path.stat().st_mtime
        values = files.parse_json(content)["values"]
    except (OSError, files.NotJson, KeyError, TypeError, IndexError):
        return Draft()
    revision = hashlib.blake2b(content, digest_size=12).hexdigest()
    return Draft(_known(values), revision, changed) if isinstance(values, dict) else Draft()


def write(root: Path, values: Mapping[str, Any], was: str) -> Draft:
    """`was`: the revision on which `values` are based. The caller holds the dataset's lock. Raises
    Conflict, or DatasetError.
    """
    now = read(root)
    if was != now.revision:
        raise Conflict(
            "someone else has changed these settings in the meantime",
            hint="Review them, and repeat your change.",
            current=now.to_json(),
        )
    try:
        content = (
            json.dumps(
                {"version": 1, "values": _known(values)},
                ensure_ascii=False,
                allow_nan=False,
                indent=1,
            )
            + "\n"
        )
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            "these settings cannot be saved: a number in them is not finite",
            hint="Look for nan or inf in the settings.",
        ) from error
    if len(content.encode("utf-8", "surrogatepass")) > LONGEST:
        hint = "Shorten the prompts for previews."
        raise DatasetError(
            "these settings are too long to be saved: more than {size} bytes",
            hint=hint,
            size=LONGEST,
        )
    path = path_of(root)
    try:
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, content)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = (
            "Check the free space and the folder's permissions. Until they are saved, they exist in"
            " this page only."
        )
        raise DatasetError(
            "the settings of this dataset cannot be saved in its folder: {reason}",
            hint=hint,
            reason=reason,
        ) from error
    return read(root)


def inherit(source: Path, target: Path) -> None:
    """Copy the draft of a dataset to its copy. Failures are ignored."""
    draft = read(source)
    if draft.revision:
        try:
            write(target, {**draft.values, "name": ""}, read(target).revision)
        except (DatasetError, Conflict):
            return


def _known(values: Mapping[str, Any]) -> DraftValues:
    """The known keys; those of other versions are dropped."""
    changes, captioner = values.get("changes"), values.get("captioner")
    changes = changes if isinstance(changes, dict) else {}
    # of a setting under two names, the current one counts
    with contextlib.suppress(ConfigError):
        changes = form.current(changes)
    texts = {key: values[key] for key in TEXTS if isinstance(values.get(key), str)}
    # `captioner` is opaque: written and read by the page
    return cast(
        DraftValues,
        {
            **texts,
            "changes": {key: value for key, value in changes.items() if key in form.KEYS},
            "captioner": captioner if isinstance(captioner, dict) else {},
        },
    )
