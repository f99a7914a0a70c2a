"""The extension's data folder, and the only place where an id from the browser becomes a path.

    <data folder>/
      datasets/     uploaded datasets, one folder each
      runs/         run folders of trainings and captioners, also some of the command line
      tries/        images of "Try it"
      presets/      user presets, one YAML file each
      thumbnails/   by content hash
      trash/        what was deleted in the tab
      queue.json    queued runs; queue.lock, start.lock, keeper.lock: held while the queue is
                    changed, while a run is created, and by the scheduler
      datasets.json names of datasets, and folders opened by path
      checkpoints.json  images.json    caches of file facts; handover.json: what was paused for the
                                       host

Standard library only.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_trainer.errors import LoraTrainerError
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES, MAX_NAME_BYTES, RESERVED_ON_WINDOWS

Kind = Literal["datasets", "runs", "tries", "presets", "thumbnails", "trash"]


class NotFound(LoraTrainerError):
    """The requested thing does not exist, or its id is invalid."""


@dataclass(frozen=True)
class DataFolder:
    root: Path

    def folder(self, kind: Kind) -> Path:
        """The folder for one kind of data, created on first use. Raises LoraTrainerError if that
        fails.
        """
        path = self.root / kind
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = (
                "Check the disk and the folder's permissions, or choose another data folder in"
                " Settings, LoRA Trainer, and start the WebUI again."
            )
            reason = error.strerror or error
            raise LoraTrainerError(
                "the data folder {folder} cannot be written: {reason}",
                hint=hint,
                folder=self.root,
                reason=reason,
            ) from error
        return path

    @property
    def queue(self) -> Path:
        return self.root / "queue.json"

    def new(self, kind: Kind, name: str) -> Path:
        """The path for a new `name`. Raises LoraTrainerError if it is not a valid folder name."""
        if problem := name_problem(name):
            raise problem
        return self.folder(kind) / unicodedata.normalize("NFC", name)

    def child(self, kind: Kind, name: str) -> Path:
        """The existing `name` directly inside the folder for its kind. Raises NotFound for anything
        else.
        """
        parent = self.folder(kind)
        if name_problem(name):
            raise NotFound("there is no {name} here", name=name[:80])
        path = parent / unicodedata.normalize("NFC", name)
        # a symlink out of the folder would expose other files
        if not path.exists() or path.resolve().parent != parent.resolve():
            raise NotFound(
                "there is no {name} here",
                hint="It may have been deleted. Reload the page.",
                name=name,
            )
        return path


def name_problem(name: str, hint: str = "Use letters, digits, - and _.") -> LoraTrainerError | None:
    """Why `name` is not a valid folder name on every system; None if it is valid."""
    if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
        return LoraTrainerError(
            "the name {name!r} is empty, or starts or ends with a space or a dot",
            hint=hint,
            name=name,
        )
    if any(character in FORBIDDEN_IN_NAMES or not character.isprintable() for character in name):
        return LoraTrainerError(
            "the name {name!r} contains a character that is not allowed", hint=hint, name=name
        )
    if len(name.encode("utf-8", errors="surrogatepass")) > MAX_NAME_BYTES:
        return LoraTrainerError("the name {name!r} is too long", hint=hint, name=name)
    if name.split(".")[0].upper() in RESERVED_ON_WINDOWS:
        return LoraTrainerError(
            "the name {name!r} cannot be a folder's name on Windows", hint=hint, name=name
        )
    return None
