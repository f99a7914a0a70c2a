"""Starts runs, notices their end, and lends them the device: one thread of the WebUI's process for
a data folder.

    scheduler = Scheduler(history=..., queue=..., lock=..., trash=..., gpu_lease=..., ...)
    scheduler.begin()      runs `tick` every second from then on; `wake` runs it at once

A tick adopts running workers (started before this process, or on the command line), notices those
that have ended, and starts the next waiting run. Of several WebUIs on one data folder the holder of
the lock file does this; the others show the state, and take over when it ends. Everything a tick
needs after a crash is in the run folders and queue.json. Writes that fail on a full disk are
retried with each tick. Used by the tab.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from lora_trainer import files
from lora_trainer.errors import LoraTrainerError, RunError, disk_full
from lora_trainer.jobs.history import History
from lora_trainer.jobs.queue import Queue
from lora_trainer.jobs.start import death_of, start_worker, tie
from lora_trainer.jobs.trash import discard
from lora_trainer.runs.events import Failed
from lora_trainer.runs.folder import RunFolder

TICK_SECONDS = 1.0
TIDY_SECONDS = 60.0
LOOK_SECONDS = 3.0
TROUBLE_SECONDS = 30.0

log = logging.getLogger(__name__)


class Worker(Protocol):
    """The part of subprocess.Popen that is used."""

    def poll(self) -> int | None: ...


class DeviceLease(Protocol):
    """Shares the host's device between the host and a worker."""

    def before_start(self, folder: RunFolder, /) -> bool:
        """Free the device for a worker. False: the host is using it; ask again later."""

    def adopt(self, folder: RunFolder, since: float, /) -> bool:
        """The same for a worker that was started before, at the time `since`."""

    def holds(self, folder: RunFolder, /) -> bool:
        """Whether the device is free for the worker still."""

    def after_end(self, folder: RunFolder, /) -> object: ...
    def tick(self) -> object: ...


class NoLease:
    """For a host that shares no device."""

    def before_start(self, folder: RunFolder, /) -> bool:
        return True

    def adopt(self, folder: RunFolder, since: float, /) -> bool:
        return True

    def holds(self, folder: RunFolder, /) -> bool:
        return True

    def after_end(self, folder: RunFolder, /) -> None: ...
    def tick(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """The user's options in the WebUI's settings."""

    keep_training: bool = True
    """Whether a worker continues when the WebUI closes."""
    runs_to_keep: int = 0
    """Older finished runs are moved to the trash; 0 keeps all."""
    device_id: str | None = None
    """The host's --device-id."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables of the workers."""


@dataclass
class ActiveRun:
    """A running worker, or one about to start."""

    folder: RunFolder
    since: float
    worker: Worker | None = None
    """None if another process started it."""
    tied: bool = False
    has_device: bool = False
    """Whether the host has freed the device for it."""
    ask_again: float = 0.0
    """When to ask the host again."""


Start = Callable[[RunFolder, SchedulerOptions], Worker]


def start_apart(folder: RunFolder, options: SchedulerOptions) -> Worker:
    """Start a worker as the WebUI does: in its own session."""
    return start_worker(
        folder,
        device_id=options.device_id,
        apart=True,
        ends_with_us=not options.keep_training,
        environ=options.environ,
    )


class Scheduler:
    """See the module. For tests, `tick` can be called directly, with another clock and `start`."""

    def __init__(
        self,
        *,
        history: History,
        queue: Queue,
        lock: Path,
        trash: Path,
        gpu_lease: DeviceLease | None = None,
        delivered: Callable[[], object] = lambda: None,
        options: Callable[[], SchedulerOptions] = SchedulerOptions,
        start: Start = start_apart,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._history = history
        self._queue = queue
        self._lock = lock
        self._trash = trash
        self._gpu_lease: DeviceLease = gpu_lease or NoLease()
        self._delivered = delivered
        self._options = options
        self._start = start
        self._clock = clock
        self._active: dict[str, ActiveRun] = {}
        self._unwritten: dict[str, Callable[[str], object]] = {}
        """Run -> its change of the queue, which could not be written yet."""
        self._deaths: dict[str, Failed] = {}
        """Failures that could not be written."""
        self._logged: dict[str, str] = {}
        self._duty = contextlib.ExitStack()
        self._on_duty = False
        self._tidied = 0.0
        self._looked = 0.0
        self._ticking = threading.Lock()
        self._awake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def on_duty(self) -> bool:
        """Whether this process holds the data folder's lock."""
        return self._on_duty

    def active(self) -> tuple[str, ...]:
        """Ids of the running or starting runs, as of the last tick."""
        return tuple(self._active)

    def withdraw(self, run_id: str) -> bool:
        """Remove a waiting or starting run from the queue. False if its process was started."""
        with self._ticking:
            if run_id in self._active:
                return False
            self._queue.drop(run_id)
            return True

    def begin(self) -> None:
        """Start the daemon thread that ticks every second. Idempotent."""
        with self._ticking:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._live, name="lora-trainer-scheduler", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Tick now."""
        self._awake.set()

    def close(self) -> None:
        """Release the data folder. Workers continue."""
        self._closed = True
        self._awake.set()
        if self._thread is not None:
            self._thread.join()
        with self._ticking:
            self._duty.close()
            self._on_duty = False

    def _live(self) -> None:
        while not self._closed:
            try:
                self.tick()
            except Exception:
                # the error may be temporary, and the runs must be looked after
                log.exception("while looking after the runs")
            self._awake.wait(TICK_SECONDS)
            self._awake.clear()

    def tick(self) -> None:
        """Check everything once."""
        with self._ticking:
            if self._take_duty():
                self._retry_writes()
                known = self._attempt("looking for ends", self._notice_ends) and self._attempt(
                    "looking for runs that live", self._adopt
                )
                self._attempt("handing the device over", self._hand_devices)
                self._attempt("following the options", self._follow_options)
                self._attempt("lending the device", self._gpu_lease.tick)
                if known:
                    self._attempt("starting the next run", self._start_next)
                self._attempt("tidying up", self._tidy)

    def _attempt(self, what: str, act: Callable[[], object]) -> bool:
        """Run `act`; returns whether it succeeded. Errors are logged, repeated ones once."""
        try:
            act()
        except Exception as error:
            if self._logged.get(what) != repr(error):
                self._logged[what] = repr(error)
                log.exception("while %s", what)
            return False
        self._logged.pop(what, None)
        return True

    def _take_duty(self) -> bool:
        if not self._on_duty:
            try:
                self._duty.enter_context(files.lock(self._lock))
            except files.Locked:
                return False
            self._on_duty = True
            self._attempt("taking over", self._take_over)
        return True

    def _take_over(self) -> None:
        """Settle the run that an earlier scheduler was starting: if it did not start, it stays in
        the queue and is started again.
        """
        line = self._queue.read()
        if (
            line.starting is not None
            and RunFolder(self._history.runs / line.starting).read_state().changed >= line.taken
        ):
            self._settle(line.starting)

    # --- writes that may have to be retried -------------------------------------------------------

    def _drop(self, run_id: str) -> None:
        """Remove the run from the queue, now or when that can be written."""
        self._unwritten[run_id] = self._queue.drop
        self._retry_writes()

    def _settle(self, run_id: str) -> None:
        """The run is no longer starting, now or when that can be written."""
        self._unwritten.setdefault(run_id, self._queue.settle)
        self._retry_writes()

    def _note_death(self, folder: RunFolder, failure: Failed | None) -> None:
        if failure is not None:
            self._deaths[folder.path.name] = failure
            self._retry_writes()

    def _retry_writes(self) -> None:
        for run_id, change in tuple(self._unwritten.items()):
            if self._attempt("taking a run out of the line", partial(change, run_id)):
                del self._unwritten[run_id]
        for run_id, failure in tuple(self._deaths.items()):
            folder = RunFolder(self._history.runs / run_id)
            # do not recreate a folder that was deleted meanwhile
            if not folder.path.is_dir() or self._attempt(
                "noting an end", partial(folder.write_death, failure)
            ):
                del self._deaths[run_id]

    # --- ends -------------------------------------------------------------------------------------

    def _notice_ends(self) -> None:
        for run_id, kept in list(self._active.items()):
            status = None if kept.worker is None else kept.worker.poll()
            gone = not kept.folder.is_alive if kept.worker is None else status is not None
            if gone:
                del self._active[run_id]
                self._settle(run_id)
                self._end(kept, status)
            elif kept.folder.is_alive:
                self._settle_started(run_id)

    def _settle_started(self, run_id: str) -> None:
        if self._queue.read().starting == run_id:
            self._settle(run_id)

    def _end(self, kept: ActiveRun, status: int | None) -> None:
        """Record how the run ended, return the device to the host, and list the new LoRA."""
        self._attempt(
            "looking at an end",
            lambda: self._note_death(kept.folder, death_of(kept.folder, status, kept.since)),
        )
        self._attempt("giving the device back", lambda: self._gpu_lease.after_end(kept.folder))
        state = kept.folder.read_state()
        if state.status == "finished" and state.delivered:
            self._attempt("showing the new LoRA", self._delivered)
        self._tidied = self._looked = 0.0

    # --- beginnings -------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Find running workers: always before one is started; otherwise rarely, for it tests every
        run's lock.
        """
        line = self._queue.read()
        about_to_start = not self._active and bool(line.waiting or line.starting)
        if not about_to_start and self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        for run_id in self._history.alive():
            if run_id in self._active:
                continue
            self._active[run_id] = ActiveRun(
                folder=RunFolder(self._history.runs / run_id), since=0.0
            )
            if run_id in line:
                self._drop(run_id)
            elif line.starting and line.starting not in self._active:
                # another process has started a run meanwhile
                self._queue.put_back()

    def _start_next(self) -> None:
        while not self._active:
            run_id = self._queue.take(self._clock())
            if run_id is None or run_id in self._unwritten:
                return
            folder = RunFolder(self._history.runs / run_id)
            if not folder.path.is_dir():
                self._settle(run_id)
                continue
            if not self._start_run(run_id, folder):
                return

    def _start_run(self, run_id: str, folder: RunFolder) -> bool:
        """Start the run's worker. False: not yet, the host is generating an image."""
        options = self._options()
        answers: list[bool] = []
        # if this raises, the worker is started all the same; `_hand_devices` asks again
        self._attempt(
            "asking for the device", lambda: answers.append(self._gpu_lease.before_start(folder))
        )
        if answers == [False]:
            return False
        since = self._clock()
        try:
            worker = self._start(folder, options)
        except (LoraTrainerError, OSError) as error:
            self._settle(run_id)
            self._note_death(folder, _failure(error, since))
            self._attempt("giving the device back", lambda: self._gpu_lease.after_end(folder))
            return True
        self._active[run_id] = ActiveRun(
            folder=folder,
            since=since,
            worker=worker,
            tied=not options.keep_training,
            has_device=bool(answers),
        )
        return True

    # --- while a worker runs ----------------------------------------------------------------------

    def _hand_devices(self) -> None:
        now = self._clock()
        for kept in self._active.values():
            if not self._gpu_lease.holds(kept.folder) and kept.folder.is_alive:
                # it has ended, and was started again elsewhere since the last tick
                kept.has_device = False
            if not kept.has_device and now >= kept.ask_again:
                kept.ask_again = now + TROUBLE_SECONDS
                since = kept.since if kept.worker else kept.folder.began
                kept.has_device = self._gpu_lease.adopt(kept.folder, since)
                # no error: it is only generating; ask again with the next tick
                kept.ask_again = now

    def _follow_options(self) -> None:
        """Apply a change of "keep training" to running workers that this process started."""
        tied = not self._options().keep_training
        for kept in self._active.values():
            if kept.worker is not None and kept.tied != tied:
                tie(kept.folder, tied)
                kept.tied = tied

    def _tidy(self) -> None:
        """Move finished runs beyond the number to keep to the trash."""
        most = self._options().runs_to_keep
        if most < 1 or self._clock() - self._tidied < TIDY_SECONDS:
            return
        self._tidied = self._clock()
        finished = [
            entry
            for entry in self._history.listing()
            if entry.state.status == "finished" and entry.problem is None
        ]
        with self._queue.holding() as line:
            for entry in finished[most:]:
                if not entry.alive and entry.id not in line and entry.id not in self._active:
                    path, now = entry.folder.path, self._clock()
                    act = partial(discard, path, self._trash, kind="run", now=now)
                    self._attempt("discarding a run", act)


def _failure(error: LoraTrainerError | OSError, now: float) -> Failed:
    if files.is_disk_full(error):
        error = disk_full()
    elif isinstance(error, OSError):
        error = RunError(
            "no training process could be started: {reason}",
            hint="Look at the WebUI's console. A virus scanner may be in the way.",
            reason=error.strerror or error,
        )

    return dataclasses.replace(Failed.of(error), time=now)
