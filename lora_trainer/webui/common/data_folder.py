"""The extension's data folder: what the tab keeps, and the only way an id from the browser becomes
a path.

    <data folder>/
      datasets/     uploaded datasets, one folder each
      runs/         run folders, of trainings and of captioners; the command line may put some here
                    too
      tries/        pictures of "Try it"
      presets/      the visitor's own presets, one YAML file each
      thumbnails/   small pictures, by content
      trash/        what was deleted in the tab
      queue.json    runs that wait; queue.lock, start.lock, keeper.lock: who changes it, begins a
                    run, looks after the runs
      datasets.json names given to datasets, and folders opened by path
      checkpoints.json  images.json    what is known of files, from start to start; handover.json:
                                       what was paused for a picture

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
    """What was asked for is not there, or is not an id at all."""


@dataclass(frozen=True)
class DataFolder:
    root: Path

    def folder(self, kind: Kind) -> Path:
        """The folder of one kind of thing; made when it is first asked for. Raises LoraTrainerError
        when it cannot be made.
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
        """Where something called `name` may be made. Raises LoraTrainerError for a name that cannot
        be a folder's.
        """
        problem = name_problem(name)
        if problem:
            raise LoraTrainerError(problem, hint="Use letters, digits, - and _.", name=name)
        return self.folder(kind) / unicodedata.normalize("NFC", name)

    def child(self, kind: Kind, name: str) -> Path:
        """The existing `name` directly inside the folder of its kind. Raises NotFound for anything
        else, whatever it looks like.
        """
        parent = self.folder(kind)
        if name_problem(name):
            raise NotFound("there is nothing called {name} here", name=name[:80])
        path = parent / unicodedata.normalize("NFC", name)
        # a link that leads out of the folder would let a visitor read what lies behind it
        if not path.exists() or path.resolve().parent != parent.resolve():
            raise NotFound(
                "there is nothing called {name} here",
                hint="It may have been deleted. Reload the page.",
                name=name,
            )
        return path


def name_problem(name: str) -> str:
    """Why `name` cannot be one folder's name on every system, as a template with {name}; empty if
    it can.
    """
    if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
        return "the name {name!r} is empty, or starts or ends with a space or a dot"
    if any(character in FORBIDDEN_IN_NAMES or not character.isprintable() for character in name):
        return "the name {name!r} contains a character that a name cannot hold"
    if len(name.encode("utf-8", errors="surrogatepass")) > MAX_NAME_BYTES:
        return "the name {name!r} is too long"
    if name.split(".")[0].upper() in RESERVED_ON_WINDOWS:
        return "the name {name!r} cannot be a folder's name on Windows"
    return ""
