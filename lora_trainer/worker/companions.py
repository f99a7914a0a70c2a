"""The other processes of a run that trains or captions on several devices.

with joined(folder, give_up) as processes:   in the first process, which starts the others
end_with_starter()                           in another process

The first process is the worker that was started. It starts the others with its own command line
and, in their environment, what torchrun gives to those that it starts. A run that is started by
torchrun or `accelerate launch`, on one machine or several, has all of its processes that way.

A process that is not the first has a pipe for its standard input, whose other end belongs to
whoever started it: it ends when that is closed, so that none is left behind.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_trainer import __version__, files
from lora_trainer.environment import is_launched
from lora_trainer.errors import LoraTrainerError, ProcessLost, SetupError
from lora_trainer.jobs.start import start_companion
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.state import EXIT_STATUSES
from lora_trainer.settings import schema
from lora_trainer.training.device import listed_devices
from lora_trainer.training.joined import LONGEST_START, Joined, open_store
from lora_trainer.training.processes import ALONE, Processes

POLL_SECONDS = 0.2
PATIENCE = 20.0
"""Seconds in a sum, of which another process is gone, after which this one is considered to hang.
Without cards the closed connection ends the sum at once.
"""
GRACE = 10.0
"""Seconds for the others to end by themselves, or to be seen to have ended."""


@contextlib.contextmanager
def joined(folder: RunFolder, give_up: Callable[[LoraTrainerError], None]) -> Iterator[Processes]:
    """The processes of the run, of which this is the first: a single one unless torchrun or the
    settings make it several. give_up: called in a thread to report an error and end this process,
    which hangs.

    Raises ProcessLost.
    """
    if is_launched():
        with _launched(give_up) as processes:
            share_settings(folder, processes)
            yield processes
        return
    count = _device_count(folder)
    if count == 1:
        yield ALONE
        return
    with (
        Companions(folder, count) as companions,
        Watch(companions.processes, companions.ended, give_up),
    ):
        share_settings(folder, companions.processes)
        yield companions.processes


@contextlib.contextmanager
def _launched(give_up: Callable[[LoraTrainerError], None]) -> Iterator[Joined]:
    processes = Joined.by_environment()
    gone: dict[int, str] = {}
    # the command line, which torchrun ends when another process has failed
    _when_input_ends(lambda: gone.update({-1: "ended"}))
    with Watch(processes, lambda: gone, give_up):
        yield processes
    processes.say_over()


def _device_count(folder: RunFolder) -> int:
    """How many devices the settings ask for. What is wrong with them is told by the task."""
    try:
        values = {"device": "auto", "devices": "auto", **schema.read_mapping(folder.settings)}
        device, devices = (str(values[key]) for key in ("device", "devices"))
        if any(schema.device_problems(device, devices)):
            return 1
        return len(listed_devices(device, devices))
    except LoraTrainerError:
        return 1


def share_settings(folder: RunFolder, processes: Processes) -> None:
    """Give the others, whose folder may be on another machine, the settings of the first. Raises
    SetupError for another version than that of the first.
    """
    version, name, text = processes.first(
        lambda: (
            __version__,
            folder.settings.name,
            folder.settings.read_text(encoding="utf-8"),
        )
    )
    if version != __version__:
        raise SetupError(
            "this machine has version {own} of the extension, and the first one {version}",
            hint="Every machine needs the same version.",
            own=__version__,
            version=version,
        )
    if not processes.is_first:
        own = folder.path / name
        if not own.exists() or own.read_text(encoding="utf-8") != text:
            files.write_text(own, text)


class Companions:
    """Starts the processes 1, 2 ... of a run on this machine, and joins them as process 0."""

    def __init__(self, folder: RunFolder, count: int) -> None:
        self._folder = folder
        self._count = count
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.processes: Joined

    def __enter__(self) -> Companions:
        count = self._count
        store = open_store(count)
        try:
            for rank in range(1, count):
                environ = _environ(rank, count, store.port)
                self._children[rank] = start_companion(self._folder, environ)
            self._wait_for_all(store)
            self.processes = Joined(store, 0, count)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, ProcessLost):
                self._wait_until(lambda: bool(self.ended()), GRACE)
                raise self.processes.lost(self.ended()) from error
        finally:
            self.processes.leave()
            self._end()

    def ended(self) -> Mapping[int, str]:
        """Rank -> how a process ended that has not done its work."""
        codes = {rank: child.poll() for rank, child in self._children.items()}
        return {
            rank: f"signal {-code}" if code < 0 else f"exit status {code}"
            for rank, code in codes.items()
            if code
        }

    def _wait_for_all(self, store: Any) -> None:
        """Until all have arrived. Raises ProcessLost."""
        arrived = [f"here/{rank}" for rank in self._children]
        self._wait_until(
            lambda: bool(self.ended()) or store.check(arrived), LONGEST_START.total_seconds()
        )
        if self.ended():
            raise Joined.lost_of(store, self._count, self.ended())

    def _wait_until(self, is_so: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not is_so() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def _end(self) -> None:
        for child in self._children.values():
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        self._wait_until(
            lambda: all(child.poll() is not None for child in self._children.values()), GRACE
        )
        for child in self._children.values():
            child.kill()
            child.wait()


def _environ(rank: int, count: int, port: int) -> dict[str, str]:
    """As torchrun has it."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **({"USE_LIBUV": "0"} if os.name == "nt" else {}),
    }


class Watch:
    """Gives up a process that hangs in a sum because another one is gone."""

    def __init__(
        self,
        processes: Joined,
        ended: Callable[[], Mapping[int, str]],
        give_up: Callable[[LoraTrainerError], None],
        patience: float = PATIENCE,
    ) -> None:
        """ended: how others ended, as far as is known."""
        self._processes = processes
        self._ended = ended
        self._give_up = give_up
        self._patience = patience
        self._closed = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._watch, daemon=True, name="companions").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            since = self._processes.busy_since
            hangs = since is not None and time.monotonic() - since > self._patience
            if hangs and self._ended():
                self._give_up(self._processes.lost(self._ended()))
                return


def end_with_starter() -> None:
    """End this process, whatever it does, when the one that started it closes the pipe."""
    _when_input_ends(lambda: os._exit(EXIT_STATUSES["failed"]))


def _when_input_ends(call: Callable[[], object]) -> None:
    """Call this in a thread when standard input ends, if it is a pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            return

        def wait() -> None:
            with contextlib.suppress(OSError):
                while os.read(sys.stdin.fileno(), 1):
                    pass
            call()

        threading.Thread(target=wait, daemon=True, name="starter").start()
