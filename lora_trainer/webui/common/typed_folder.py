"""A folder of this machine, as a user types or pastes it."""

from __future__ import annotations

import os
from pathlib import Path

from lora_trainer.errors import LoraTrainerError


def typed_folder(text: str, error: type[LoraTrainerError]) -> Path:
    """The folder's path. Quotation marks around it, which file managers add, are removed, and ~ is
    expanded. Raises `error` if it is not an absolute path of an existing folder.
    """
    path = Path(os.path.normpath(Path(text.strip().strip("\"'")).expanduser()))
    if not path.is_absolute() or not path.is_dir():
        raise error(
            "there is no folder {path}",
            hint="Give the full path, as your file manager shows it.",
            path=path,
        )
    return path
