"""A run folder -> a worker process at work on it; and what to say when it dies. The command line
and the tab both start workers here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer import environment, files
from lora_trainer.errors import disk_full
from lora_trainer.runs.events import Failed
from lora_trainer.runs.folder import RunFolder, refuse_if_alive
from lora_trainer.runs.requests import forget_requests
from lora_trainer.runs.state import DISK_FULL


def start_worker(
    folder: RunFolder,
    *,
    device_id: str | None = None,
    apart: bool = False,
    ends_with_us: bool = False,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a worker; everything it prints goes to worker.log. Raises RunError when one is at work
    there, OSError when none can be started.

    apart: it outlives this process and its terminal, as the WebUI's workers do. Otherwise it shares
    the starter's terminal, so Ctrl-C reaches it:
        it takes that as a request to stop.
    ends_with_us: it stops, keeping what was learned, when this process is gone, however that went.
    environ: more environment variables for it, such as HF_ENDPOINT.
    """
    refuse_if_alive(folder)
    # a new worker must not stop because the last one was asked to; what is asked from now on is for
    # the new one
    forget_requests(folder.requests)
    tie(folder, ends_with_us)
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            environment.worker_command(folder.path),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment.worker_environ({**os.environ, **(environ or {})}, device_id),
            **(_apart() if apart else {}),
        )


def _apart() -> dict[str, Any]:
    """A session of its own: neither Ctrl-C in the WebUI's terminal nor the closing of its window
    reaches the worker.
    """
    if os.name == "nt":
        # no console window of its own either; not DETACHED_PROCESS, under which each of its child
        # processes would open one
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined,unused-ignore]
    return {"start_new_session": True}


def tie(folder: RunFolder, ends_with_us: bool) -> None:
    """Let the run's worker end with this process, or not. It may be changed while the worker is at
    work.
    """
    if ends_with_us:
        import psutil

        # a pid alone may be another process's by the time it is looked up
        files.write_text(
            folder.host, json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()})
        )
    else:
        with contextlib.suppress(FileNotFoundError):
            folder.host.unlink()


def note_death(folder: RunFolder, status: int | None, since: float = 0.0) -> Failed | None:
    """`death_of`, which is also written into the run folder, so that everyone sees it from now
    on.
    """
    failure = death_of(folder, status, since)
    if failure is not None:
        with contextlib.suppress(OSError):
            folder.write_death(failure)
    return failure


def death_of(folder: RunFolder, status: int | None, since: float = 0.0) -> Failed | None:
    """When a worker ended without saying how (killed, crashed), the failure to show: its last words
    and what to do. None if it spoke.

    status: its exit status, or None where that cannot be known. since: when it was started; what
    the run's earlier workers said does not count.
    """
    state = folder.read_state()
    if (state.ended and state.changed >= since) or folder.is_alive:
        # somebody else's worker was quicker and has the folder: this one gave way to it
        return None
    moment = max(time.time(), state.changed)
    return (
        dataclasses.replace(Failed.of(disk_full()), time=moment)
        if status == DISK_FULL
        else _died(status, moment, folder.log)
    )


def _died(status: int | None, moment: float, log: Path) -> Failed:
    how = (
        "exit status unknown"
        if status is None
        else f"signal {-status}"
        if status < 0
        else f"exit status {status}"
    )
    last_words = tail(log) or "it said nothing"
    hint = (
        "The system ended it, most likely because memory ran out. Lower batch_size or resolution,"
        " close other programs, then continue the run."
        if status in (-9, 137)
        else "Continue the run. If it happens again, please report it with worker.log."
    )
    return Failed(
        time=moment,
        error="WorkerDied",
        message=f"the training process ended unexpectedly ({how}): {last_words}",
        hint=hint,
        template="the training process ended unexpectedly ({how}): {last_words}",
        hint_template=hint,
        values={"how": how, "last_words": last_words},
    )


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log that are no log entries: what a dying process prints."""
    return " / ".join([line for line in last_lines(log, 4096) if " INFO " not in line][-lines:])


def last_lines(log: Path, byte_count: int) -> list[str]:
    """The lines in the last `byte_count` bytes of a log. Empty where there is none."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - byte_count))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # a progress bar draws over its own line: what was drawn last is what a terminal would show
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    whole = lines if size <= byte_count else lines[1:]
    return [line for line in whole if line.strip()]
