"""Installs packages from a worker: install.py as a subprocess, whose output goes to the log."""

from __future__ import annotations

import subprocess
import time

from lora_trainer import environment
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import StopRequested

POLL_SECONDS = 0.2


def install(report: Report, control: Control, *arguments: str) -> None:
    """Run install.py with these arguments, as the phase "installing". Success is checked by the
    caller. Raises StopRequested.
    """
    report.phase("installing")
    command = environment.install_command(*arguments)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, creationflags=environment.NO_WINDOW
    ) as process:
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                control.raise_if_stopped()
        except StopRequested:
            # an incomplete set is never used
            process.terminate()
            raise
