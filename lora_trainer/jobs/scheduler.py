"""The one who starts runs, sees them end and looks after what is between: one thread of the WebUI's
process, for one data folder.

    scheduler = Scheduler(history=..., queue=..., lock=..., trash=..., gpu_lease=..., delivered=...,
    options=...)
    scheduler.begin()      from then on `tick` runs every second; `wake` makes the next one come at
                        once

A tick: adopt runs that live (started before this process was, or on the command line), notice those
that have ended, start the next that waits. Of several WebUIs on one data folder only the one that
holds the lock file keeps it; the others show what happens, and take over when it is gone. Nothing
that a tick knows is needed after a crash: it is all in the run folders and queue.json. What cannot
be written there, on a full disk, is owed, and tried again with every tick; everything else goes on.
Used by the tab.
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
    """A process, as far as the scheduler cares."""

    def poll(self) -> int | None: ...


class DeviceLease(Protocol):
    """Who shares the host's device between the host and the worker."""

    def before_start(self, folder: RunFolder, /) -> bool:
        """Make room for a worker about to start. False: the host needs its device at this moment;
        ask again later.
        """

    def adopt(self, folder: RunFolder, /) -> bool:
        """The same for a worker that is at work already."""

    def after_end(self, folder: RunFolder, /) -> object: ...
    def tick(self) -> object: ...


class NoLease:
    """Where nothing is shared."""

    def before_start(self, folder: RunFolder, /) -> bool:
        return True

    def adopt(self, folder: RunFolder, /) -> bool:
        return True

    def after_end(self, folder: RunFolder, /) -> None: ...
    def tick(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """What the user chose in the WebUI's settings."""

    keep_training: bool = True
    """Whether a worker goes on when the WebUI closes."""
    runs_to_keep: int = 0
    """Finished runs beyond the newest so many go to the trash; 0 keeps all."""
    device_id: str | None = None
    """The host's --device-id."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """More environment variables for the workers."""


@dataclass
class Kept:
    """A run that lives, and what is known of its worker."""

    folder: RunFolder
    since: float
    worker: Worker | None = None
    """None for one that somebody else has started."""
    tied: bool = False
    has_device: bool = False
    """Whether the host has made room for it."""
    ask_again: float = 0.0
    """When the host is asked again, after it could not."""


Start = Callable[[RunFolder, SchedulerOptions], Worker]


def start_apart(folder: RunFolder, options: SchedulerOptions) -> Worker:
    """A worker as the WebUI starts one: in a session of its own."""
    return start_worker(
        folder,
        device_id=options.device_id,
        apart=True,
        ends_with_us=not options.keep_training,
        environ=options.environ,
    )


class Scheduler:
    """See the module. `tick` may be called by hand, with a clock and a `start` of one's own."""

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
        self._kept: dict[str, Kept] = {}
        self._to_drop: set[str] = set()
        """Runs that are still in the line, which could not be written."""
        self._deaths: dict[str, Failed] = {}
        """Ends of runs that could not be written down."""
        self._told: dict[str, str] = {}
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
        """Whether this process keeps the data folder; if not, another one does, or none has ticked
        yet.
        """
        return self._on_duty

    def active(self) -> tuple[str, ...]:
        """Ids of the runs whose process lives or is about to, as of the last tick."""
        return tuple(self._kept)

    def withdraw(self, run_id: str) -> bool:
        """Take a run that is about to start out of the line again. False when its process has been
        started.
        """
        with self._ticking:
            if run_id in self._kept:
                return False
            self._queue.drop(run_id)
            return True

    def begin(self) -> None:
        """Tick every second, in a thread that ends with the process. Called again, it does
        nothing.
        """
        with self._ticking:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._live, name="lora-trainer-scheduler", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Something has changed: tick now."""
        self._awake.set()

    def close(self) -> None:
        """Let the data folder go, as the end of the process does. Workers stay."""
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
                # whatever a disk or a host does: the next tick may find it mended, and runs must be
                # looked after
                log.exception("while looking after the runs")
            self._awake.wait(TICK_SECONDS)
            self._awake.clear()

    def tick(self) -> None:
        """Look once at everything."""
        with self._ticking:
            if self._take_duty():
                self._catch_up()
                known = self._done("looking for ends", self._notice_ends) and self._done(
                    "looking for runs that live", self._adopt
                )
                self._done("handing the device over", self._hand_devices)
                self._done("following the options", self._follow_options)
                self._done("lending the device", self._gpu_lease.tick)
                if known:
                    self._done("starting the next run", self._start_next)
                self._done("tidying up", self._tidy)

    def _done(self, what: str, act: Callable[[], object]) -> bool:
        """Do it. What goes wrong must not cost a run, or the next one; it is logged, but not with
        every tick again.
        """
        try:
            act()
        except Exception as error:
            if self._told.get(what) != repr(error):
                self._told[what] = repr(error)
                log.exception("while %s", what)
            return False
        self._told.pop(what, None)
        return True

    def _take_duty(self) -> bool:
        if not self._on_duty:
            try:
                self._duty.enter_context(files.lock(self._lock))
            except files.Locked:
                return False
            self._on_duty = True
            self._done("taking over", self._take_over)
        return True

    def _take_over(self) -> None:
        """What an earlier scheduler was starting when it ended: where nothing was heard of it, the
        queue gives it out once more.
        """
        line = self._queue.read()
        if (
            line.starting is not None
            and RunFolder(self._history.runs / line.starting).read_state().changed >= line.taken
        ):
            self._drop(line.starting)

    # --- what is owed -----------------------------------------------------------------------------

    def _drop(self, run_id: str) -> None:
        """The run leaves the line: now, or as soon as that can be written."""
        self._to_drop.add(run_id)
        self._catch_up()

    def _note_death(self, folder: RunFolder, failure: Failed | None) -> None:
        if failure is not None:
            self._deaths[folder.path.name] = failure
            self._catch_up()

    def _catch_up(self) -> None:
        for run_id in tuple(self._to_drop):
            if self._done("taking a run out of the line", partial(self._queue.drop, run_id)):
                self._to_drop.discard(run_id)
        for run_id, failure in tuple(self._deaths.items()):
            folder = RunFolder(self._history.runs / run_id)
            # a folder that was deleted meanwhile must not come back
            if not folder.path.is_dir() or self._done(
                "noting an end", partial(folder.write_death, failure)
            ):
                del self._deaths[run_id]

    # --- ends -------------------------------------------------------------------------------------

    def _notice_ends(self) -> None:
        for run_id, kept in list(self._kept.items()):
            status = None if kept.worker is None else kept.worker.poll()
            gone = not kept.folder.is_alive if kept.worker is None else status is not None
            if gone:
                del self._kept[run_id]
                self._drop(run_id)
                self._end(kept, status)
            elif kept.folder.is_alive:
                self._no_longer_starting(run_id)

    def _no_longer_starting(self, run_id: str) -> None:
        if self._queue.read().starting == run_id:
            self._drop(run_id)

    def _end(self, kept: Kept, status: int | None) -> None:
        """A run has ended, however: its end is written down, the host has its device back, and
        shows the new LoRA.
        """
        self._done(
            "looking at an end",
            lambda: self._note_death(kept.folder, death_of(kept.folder, status, kept.since)),
        )
        self._done("giving the device back", lambda: self._gpu_lease.after_end(kept.folder))
        state = kept.folder.read_state()
        if state.status == "finished" and state.delivered:
            self._done("showing the new LoRA", self._delivered)
        self._tidied = self._looked = 0.0

    # --- beginnings -------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Find the runs that live. Always before one is started; otherwise now and then, for it
        asks the system once for every run there is.
        """
        line = self._queue.read()
        about_to_start = not self._kept and bool(line.waiting or line.starting)
        if not about_to_start and self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        for run_id in self._history.alive():
            if run_id in self._kept:
                continue
            self._kept[run_id] = Kept(folder=RunFolder(self._history.runs / run_id), since=0.0)
            if run_id in line:
                self._drop(run_id)
            elif line.starting and line.starting not in self._kept:
                # somebody else was quicker
                self._queue.put_back()

    def _start_next(self) -> None:
        while not self._kept:
            run_id = self._queue.take(self._clock())
            if run_id is None or run_id in self._to_drop:
                return
            folder = RunFolder(self._history.runs / run_id)
            if not folder.path.is_dir():
                self._drop(run_id)
                continue
            if not self._start_run(run_id, folder):
                return

    def _start_run(self, run_id: str, folder: RunFolder) -> bool:
        """Start the run's worker. False: not yet, the host is making a picture."""
        options = self._options()
        answers: list[bool] = []
        # a host whose model cannot leave may still have room for a training; `_hand_devices` asks
        # again
        self._done(
            "asking for the device", lambda: answers.append(self._gpu_lease.before_start(folder))
        )
        if answers == [False]:
            return False
        since = self._clock()
        try:
            worker = self._start(folder, options)
        except (LoraTrainerError, OSError) as error:
            self._drop(run_id)
            self._note_death(folder, _failure(error, since))
            self._done("giving the device back", lambda: self._gpu_lease.after_end(folder))
            return True
        self._kept[run_id] = Kept(
            folder=folder,
            since=since,
            worker=worker,
            tied=not options.keep_training,
            has_device=bool(answers),
        )
        return True

    # --- between ----------------------------------------------------------------------------------

    def _hand_devices(self) -> None:
        now = self._clock()
        for kept in self._kept.values():
            if not kept.has_device and now >= kept.ask_again:
                kept.ask_again = now + TROUBLE_SECONDS
                kept.has_device = self._gpu_lease.adopt(kept.folder)
                # it is only making a picture
                kept.ask_again = now

    def _follow_options(self) -> None:
        """The option to keep training when the WebUI closes may be changed while a worker is at
        work. Others' workers are left as they are.
        """
        tied = not self._options().keep_training
        for kept in self._kept.values():
            if kept.worker is not None and kept.tied != tied:
                tie(kept.folder, tied)
                kept.tied = tied

    def _tidy(self) -> None:
        """Finished runs beyond those to keep go to the trash."""
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
                if not entry.alive and entry.id not in line and entry.id not in self._kept:
                    self._done(
                        "discarding a run",
                        partial(
                            discard, entry.folder.path, self._trash, kind="run", now=self._clock()
                        ),
                    )


def _failure(error: LoraTrainerError | OSError, now: float) -> Failed:
    if files.is_disk_full(error):
        error = disk_full()
    elif isinstance(error, OSError):
        error = RunError(
            "no training process could be started: {reason}",
            hint="Look at the WebUI's console. A virus scanner may be in the way.",
            reason=error.strerror or error,
        )
    told = Failed.of(error)
    return dataclasses.replace(told, time=now)
