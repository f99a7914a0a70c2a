"""Folders for what is made once a process, such as tiny models."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp


def scratch_folder(name: str) -> Path:
    """A new folder, deleted when the process ends."""
    folder = Path(mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
