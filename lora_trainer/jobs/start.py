"""A run folder -> a worker process at work on it. The command line and the tab both start workers here."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from lora_trainer import environment
from lora_trainer.runs.events import Failed
from lora_trainer.runs.folder import RunFolder


def start_worker(folder: RunFolder, *, device_id: str | None = None) -> subprocess.Popen[bytes]:
    """Start a worker; everything it prints goes to worker.log.

    It shares the starter's terminal, so Ctrl-C reaches it: it takes that as a request to stop.
    """
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            environment.worker_command(folder.path),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment.worker_environ(os.environ, device_id),
        )


def note_death(folder: RunFolder, status: int) -> Failed | None:
    """When a worker ended without saying how (killed, crashed), the failure to show: its last words and what to do. None if it spoke."""
    state = folder.read_state()
    if state.ended:
        return None
    signal_name = f"signal {-status}" if status < 0 else f"exit status {status}"
    last_words = tail(folder.log) or "it said nothing"
    killed = status in (-9, 137)
    hint = (
        "The system ended it, most likely because memory ran out. Lower batch_size or resolution, close other programs, then continue with `resume`."
        if killed
        else "Continue with `resume`. If it happens again, please report it with worker.log."
    )
    return Failed(
        time=time.time(), error="WorkerDied", message=f"the training process ended unexpectedly ({signal_name}): {last_words}", hint=hint,
        template="the training process ended unexpectedly ({how}): {last_words}", hint_template=hint,
        values={"how": signal_name, "last_words": last_words},
    )  # fmt: skip


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log that are no log entries: what a dying process prints."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 4096))
            text = stream.read().decode("utf-8", errors="replace")
            return " / ".join([line for line in text.strip().splitlines() if " INFO " not in line][-lines:])
    except OSError:
        return ""
