"""Starts the worker of a run folder, and describes how it died. Used by the command line and the
tab.
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
from lora_trainer.errors import RunError, disk_full
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
    """Start a worker whose output goes to worker.log. Raises RunError if one is running there,
    OSError if the process cannot be started.

    apart: in its own session, so that it outlives this process and its terminal, as for the WebUI;
    otherwise Ctrl-C reaches it, which it treats as a request to stop. ends_with_us: it saves and
    stops when this process is gone. environ: additional environment variables, such as HF_ENDPOINT.
    """
    refuse_if_alive(folder)
    # requests to an earlier worker are not for this one
    forget_requests(folder.requests)
    tie(folder, ends_with_us)
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            environment.worker_command(folder.path),
            # what torchrun has started ends with it
            stdin=subprocess.PIPE if environment.is_launched() else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment.worker_environ({**os.environ, **(environ or {})}, device_id),
            **(_apart() if apart else {}),
        )


def start_companion(
    folder: RunFolder, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process of a run on several devices that is not its first one, as `environ` and our
    own environment say. It ends when its standard input is closed.
    """
    every = {**os.environ, **(environ or {})}
    with folder.companion_log(int(every["RANK"]) + 1).open("ab") as log:
        return subprocess.Popen(
            environment.worker_command(folder.path),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment.worker_environ(every),
            # Ctrl-C is for the first process
            **_apart(),
        )


def _apart() -> dict[str, Any]:
    """Popen arguments for a separate session: Ctrl-C or closing the WebUI's terminal does not reach
    the worker.
    """
    if os.name == "nt":
        # not DETACHED_PROCESS, with which each of its child processes would open a console window
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined,unused-ignore]
    return {"start_new_session": True}


def tie(folder: RunFolder, ends_with_us: bool) -> None:
    """Set whether the run's worker stops when this process ends; may be changed while it runs."""
    if ends_with_us:
        import psutil

        # with the start time, because pids are reused
        files.write_text(
            folder.host, json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()})
        )
    else:
        with contextlib.suppress(FileNotFoundError):
            folder.host.unlink()


def note_death(folder: RunFolder, status: int | None, since: float = 0.0) -> Failed | None:
    """`death_of`, recorded in the run folder."""
    failure = death_of(folder, status, since)
    if failure is not None:
        with contextlib.suppress(OSError):
            folder.write_death(failure)
    return failure


def death_of(folder: RunFolder, status: int | None, since: float = 0.0) -> Failed | None:
    """The failure of a worker that ended without reporting it (killed, crashed); None if it
    reported its end.

    status: its exit status, or None if unknown. since: when it was started; events before that are
    an earlier worker's.
    """
    state = folder.read_state()
    if (state.ended and state.changed >= since) or folder.is_alive:  # alive: another worker has it
        return None
    moment = max(time.time(), state.changed)
    if status == DISK_FULL:
        return dataclasses.replace(Failed.of(disk_full()), time=moment)
    return _died(status, moment, folder.log)


def _died(status: int | None, moment: float, log: Path) -> Failed:
    how = "exit status unknown" if status is None else f"exit status {status}"
    if status is not None and status < 0:
        how = f"signal {-status}"
    last_words = tail(log) or "no output"
    hint = "Continue the run. If it happens again, please report it with worker.log."
    if status in (-9, 137):
        hint = (
            "The operating system ended it, most likely because it ran out of memory. Lower "
            "batch_size or resolution, close other programs, then continue the run."
        )
    error = RunError(
        "the training process ended unexpectedly ({how}): {last_words}",
        hint=hint,
        how=how,
        last_words=last_words,
    )
    return dataclasses.replace(Failed.of(error), time=moment, error="WorkerDied")


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log that are not INFO records, such as a traceback."""
    return " / ".join([line for line in last_lines(log, 4096) if " INFO " not in line][-lines:])


def last_lines(log: Path, byte_count: int) -> list[str]:
    """The lines in the last `byte_count` bytes of a log; empty if there is none."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - byte_count))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # keep what a terminal shows of a line that a progress bar overwrote
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    whole = lines if size <= byte_count else lines[1:]
    return [line for line in whole if line.strip()]
