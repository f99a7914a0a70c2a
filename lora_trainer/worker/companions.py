"""The other processes of a run that trains or captions on several devices.

with joined(folder, give_up) as processes:   in the first process, which starts the others
end_with_starter()                           in each other process

The first process is the worker that was started. It starts the others with its own command line
and the environment variables of torchrun. If torchrun or `accelerate launch` starts the run, on one
machine or several, it starts all of the processes.

Every process but the first has a pipe as its standard input and exits when the process that started
it closes the other end, so that none is orphaned.
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
"""Seconds in an all-reduce after which this process is considered to hang, if another one has
ended. gloo raises at once when a connection is closed; NCCL does not.
"""
GRACE = 10.0
"""Seconds to wait for the others to exit."""


@contextlib.contextmanager
def joined(folder: RunFolder, give_up: Callable[[LoraTrainerError], None]) -> Iterator[Processes]:
    """Start and join the run's processes, if torchrun or the settings ask for more than one; this
    is the first. give_up: called in a thread when this process hangs, to report the error and exit.

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
    # standard input comes from the command line, which torchrun ends when another process fails
    _when_input_ends(lambda: gone.update({-1: "ended"}))
    with Watch(processes, lambda: gone, give_up):
        yield processes
    processes.say_over()


def _device_count(folder: RunFolder) -> int:
    """The number of devices in the settings; 1 if they are invalid, which the task reports."""
    try:
        values = {"device": "auto", "devices": "auto", **schema.read_mapping(folder.settings)}
        device, devices = (str(values[key]) for key in ("device", "devices"))
        if any(schema.device_problems(device, devices)):
            return 1
        return len(listed_devices(device, devices))
    except LoraTrainerError:
        return 1


def share_settings(folder: RunFolder, processes: Processes) -> None:
    """Send the first process's settings to the others, whose run folder may be on another machine.
    Raises SetupError if the version of the extension differs from the first one's.
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
        """Rank -> exit status or signal, of the processes that failed."""
        codes = {rank: child.poll() for rank, child in self._children.items()}
        return {
            rank: f"signal {-code}" if code < 0 else f"exit status {code}"
            for rank, code in codes.items()
            if code
        }

    def _wait_for_all(self, store: Any) -> None:
        """Wait until all have connected to the store. Raises ProcessLost."""
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
    """The environment variables that torchrun sets."""
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
    """Calls `give_up` if this process hangs in an all-reduce because another one has ended."""

    def __init__(
        self,
        processes: Joined,
        ended: Callable[[], Mapping[int, str]],
        give_up: Callable[[LoraTrainerError], None],
        patience: float = PATIENCE,
    ) -> None:
        """ended: returns rank -> exit status or signal, of the others that have ended."""
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
            if not self._ended():
                continue
            # read last: an all-reduce that is over by now did not hang
            since = self._processes.busy_since
            if since is not None and time.monotonic() - since > self._patience:
                self._give_up(self._processes.lost(self._ended()))
                return


def end_with_starter() -> None:
    """Exit at once when the process that started this one closes the pipe."""
    _when_input_ends(lambda: os._exit(EXIT_STATUSES["failed"]))


def _when_input_ends(call: Callable[[], object]) -> None:
    """Run `call` in a thread at the end of standard input, if that is a pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            return

        def wait() -> None:
            with contextlib.suppress(OSError):
                while os.read(sys.stdin.fileno(), 1):
                    pass
            call()

        threading.Thread(target=wait, daemon=True, name="starter").start()
