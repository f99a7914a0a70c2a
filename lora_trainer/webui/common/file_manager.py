"""Opens a folder in the system's file manager. For local users only: routes call
`request.require_local()` first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lora_trainer.errors import LoraTrainerError


def show(folder: Path) -> None:
    """Open a window with the folder. Raises LoraTrainerError if there is no file manager."""
    try:
        if sys.platform == "win32":
            os.startfile(folder)
        else:
            opener = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.Popen(
                [opener, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
    except OSError as error:
        raise LoraTrainerError(
            "no file manager could be opened: {reason}",
            hint="The folder is {folder}.",
            reason=error.strerror or error,
            folder=folder,
        ) from error
