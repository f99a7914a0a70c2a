"""Worker processes without the seconds in which each imports torch: forked from the test's own
process, which has imported it.

What a test replaces before, is replaced in them, too. Linux only; elsewhere they are started as
ever. That a started process does the same is tested by those tests that do not ask for this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from lora_trainer import environment
from lora_trainer.jobs import start
from lora_trainer.worker import job

LINUX = sys.platform == "linux"


class Forked:
    """As much of a subprocess.Popen as those have who start workers."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        env: dict[str, str],
        start_new_session: bool = False,
    ) -> None:
        assert stderr == subprocess.STDOUT
        self.stdin: IO[bytes] | None = None
        self.returncode: int | None = None
        reading, writing = os.pipe() if stdin == subprocess.PIPE else (-1, -1)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if reading < 0:
                reading = os.open(os.devnull, os.O_RDONLY)
            _be_the_worker(Path(command[-1]), (reading, stdout.fileno()), env, start_new_session)
        if writing >= 0:
            os.close(reading)
            self.stdin = os.fdopen(writing, "wb")

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stdin is not None:
            self.stdin.close()
        self.wait()


def _be_the_worker(
    folder: Path, streams: tuple[int, int], environ: dict[str, str], in_own_session: bool
) -> NoReturn:
    """Never returns: nothing of the test goes on here."""
    status = job.FAILED
    try:
        if in_own_session:
            os.setsid()
        for number, stream in enumerate((*streams, 1)):
            os.dup2(stream, number)
        # a lock that the test's process holds is held as long as a copy of it is open
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environ)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run = job.take_part if environment.is_companion() else job.run
        status = run(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on the workers that lora_trainer.jobs.start starts are forked. They are put into the
    list.
    """
    started: list[Any] = []

    def begin(*given: Any, **named: Any) -> Any:
        started.append((Forked if LINUX else subprocess.Popen)(*given, **named))
        return started[-1]

    monkeypatch.setattr(
        start, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": begin})
    )
    return started
