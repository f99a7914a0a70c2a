"""Shares one GPU between the host's model and training.

    idle ── before_start / adopt ──> training ── image requested ──> asking ── run paused ──> lent
    lent ── no image for `grace` seconds ──> training (resumed)
    training ── image requested, pauses off ──> beside (both on the GPU) ── `grace` ──> training
    any state ── after_end ──> idle, the model back on the GPU

    scheduler's thread   before_start(run) -> may the worker start?   adopt(run, since)
                      after_end(run)   tick() about every second
    host's threads    _before_turn, _after_turn, called by host.on_generation
    browser           ask(run, "pause" | "resume")   status()

Every transition happens while holding the host's queue (host.our_turn), so they never overlap. What
the user asks for does not wait for the queue: a lock, held for moments only, keeps a transition and
what it asks of the runs together. A generation waits for the run to pause; after `patience` seconds
it is refused, unless there is memory for both. `pauses` is the user's option, read at each
generation. On a host that runs on the CPU nothing is moved or paused. Does not import the host or
torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict

from lora_trainer import files
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.hosts.base import HostDevice, Memory
from lora_trainer.runs import events
from lora_trainer.runs.events import read_events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import send_request
from lora_trainer.runs.state import RunState, fold

log = logging.getLogger(__name__)
LeaseState = Literal["idle", "training", "asking", "lent", "beside"]
PATIENCE = 90.0
"""Seconds that a generation waits for the run to pause. A step of a large model can take ten or
more.
"""
GRACE = 4.0
"""Seconds without a generation after which training resumes, so that several images in a row move
the model only once.
"""
POLL = 0.1
GENERATION_MEMORY = 3 * 2**30
"""Bytes that a generation needs beside the model: enough for SDXL at its native size."""


class GpuLeaseError(LoraTrainerError):
    """The GPU is not available."""


class LeasingHost(Protocol):
    """The part of base.Host that is used."""

    def device(self) -> HostDevice: ...
    def memory(self) -> Memory | None: ...
    def release_model(self) -> None: ...
    def restore_model(self) -> None: ...
    def model_on_device(self) -> bool: ...
    def is_generating(self) -> bool: ...
    def our_turn(self, *, wait: bool = True) -> AbstractContextManager[bool]: ...
    def on_generation(
        self,
        before: Callable[[], object],
        after: Callable[[], object],
        *,
        describe: Callable[[LoraTrainerError], str],
    ) -> bool: ...


class MemoryView(TypedDict):
    """Of the graphics card, in bytes."""

    free: int
    total: int


class LeaseView(TypedDict):
    """Where the graphics card is."""

    state: LeaseState
    sentence: str
    before: MemoryView | None
    after: MemoryView | None


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    """The state of the GPU, for the tab."""

    state: LeaseState
    sentence: Message
    before: Memory | None = None
    """Device memory before the model was moved off it, and after."""
    after: Memory | None = None

    def to_mapping(self, render: Callable[[Message], str]) -> LeaseView:
        """As JSON; `render` translates the sentence."""
        return {
            "state": self.state,
            "sentence": render(self.sentence),
            "before": _memory(self.before),
            "after": _memory(self.after),
        }


class GpuLease:
    """Decides who has the GPU. `marker` is a file that records which runs were paused for a
    generation, in case the host dies.
    """

    def __init__(
        self,
        host: LeasingHost,
        marker: Path,
        *,
        pauses: Callable[[], bool] = lambda: True,
        patience: Callable[[], float] = lambda: PATIENCE,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        describe: Callable[[LoraTrainerError], str] = str,
    ) -> None:
        self.host = host
        self.state: LeaseState = "idle"
        self._marker = marker
        self._pauses, self._describe = pauses, describe
        self._patience, self._grace, self._clock, self._sleep = patience, grace, clock, sleep
        # usually one; more if runs are started on the command line as well
        self._runs: dict[Path, _LeasingRun] = {}
        self._left_paused = set(_marked(marker))
        self._model_moved = False
        self._freed = 0
        self._stays = False
        self._last_generation = 0.0
        self._trouble = Message("")
        self._before: Memory | None = None
        self._after: Memory | None = None
        self._asking = threading.Lock()
        """Held while a run is asked to pause or resume and the state changes with it."""
        self._on_processor = host.device().kind == "cpu"
        self._sees_generations = False
        self.watch()

    def watch(self) -> None:
        """Hook into the host's queue; again after "Reload UI", which removes the hook."""
        self._sees_generations = self._on_processor or self.host.on_generation(
            self._before_turn, self._after_turn, describe=self._describe
        )

    # --- the scheduler's thread -------------------------------------------------------------------

    def before_start(self, folder: RunFolder) -> bool:
        """Free the GPU for a worker about to start. False: the host is generating; ask again later.
        Raises HostError if the model cannot be moved.
        """
        return self._acquire(folder)

    def adopt(self, folder: RunFolder, since: float = 0.0) -> bool:
        """Free the GPU for a worker that was started without `before_start`, at the time `since`;
        resumes it if an earlier host asked it to pause for a generation.
        """
        return self._acquire(folder, since)

    def waits(self) -> bool:
        """Whether a run due to start waits for the host's generation."""
        return not self._on_processor and self.host.is_generating()

    def after_end(self, folder: RunFolder) -> None:
        """The worker's process has ended: give the GPU back now, or when the queue is free."""
        run = self._runs.get(folder.path)
        if run is not None:
            run.ended = True
            self._give_back()

    def tick(self) -> None:
        """Resume training after a generation, and give the GPU back after a run that died. Quick
        unless a model is moved.
        """
        if not self._runs:
            return
        if any(run.is_over() for run in self._runs.values()):
            self._give_back()
        elif self.state in ("lent", "beside"):
            if self._clock() - self._last_generation >= self._grace:
                self._take_back()
        elif (
            self.state == "training"
            and not self._stays
            and not self.host.is_generating()
            and self.host.model_on_device()
        ):
            # another checkpoint was loaded, or the host was still starting
            self._take_back()

    def _acquire(self, folder: RunFolder, since: float | None = None) -> bool:
        if self._on_processor:
            return True
        with self.host.our_turn(wait=False) as ours:
            if not ours:
                return False
            if folder.path in self._runs and not self._runs[folder.path].ended:
                return True
            run = _LeasingRun(folder, since)
            try:
                self._release()
            except LoraTrainerError:
                if not self._runs:
                    self._restore()
                raise
            self._end_loan()
            # a new dict: other threads may be looking through the old one
            self._runs = {**self._runs, folder.path: run}
            if since is not None:
                self._resume_after_dead_host(run)
            return True

    def _resume_after_dead_host(self, run: _LeasingRun) -> None:
        """Resume a run that a host asked to pause for a generation before it died. The run may not
        have obeyed yet.
        """
        if str(run.folder.path) in self._left_paused:
            self._left_paused.remove(str(run.folder.path))
            run.ask("resume")
        elif run.is_paused:
            run.paused_by_user = True

    def _take_back(self) -> None:
        with self.host.our_turn(wait=False) as ours:
            if not ours or not self._running():
                return
            try:
                self._release()
            except LoraTrainerError as error:
                # the run stays paused; retried with the next tick
                self._trouble = error.message
                self._last_generation = self._clock()
                return
            self._end_loan()

    def _end_loan(self) -> None:
        """The model is off the GPU: resume runs that were paused for a generation."""
        with self._asking:
            if self.state == "lent":
                self._resume_all()
            self.state = "training"
        self._mark()

    def _resume_all(self) -> None:
        for run in self._running():
            if run.paused_by_user:
                run.keep_paused()
            else:
                run.ask("resume")

    def _give_back(self) -> None:
        with self.host.our_turn(wait=False) as ours:
            if ours:
                self._drop_ended_runs()

    def _drop_ended_runs(self) -> None:
        """Drop runs that have ended, and after the last one restore the host's model. Holds the
        queue.
        """
        was_training = bool(self._runs)
        self._runs = {path: run for path, run in self._runs.items() if not run.is_over()}
        if self._runs or not was_training:
            return
        self.state = "idle"
        self._mark()
        try:
            self._restore()
        except LoraTrainerError as error:
            # shown in the status; retried at the next generation
            self._trouble = error.message
            log.warning("%s", error)

    def _running(self) -> list[_LeasingRun]:
        return [run for run in self._runs.values() if not run.ended]

    # --- the host's threads -----------------------------------------------------------------------

    def _before_turn(self) -> None:
        """The host is about to use its device. Raises GpuLeaseError if it cannot have it."""
        if self.state == "lent" and all(run.is_paused for run in self._running()):
            return
        self._drop_ended_runs()
        if not self._runs:
            self._restore()
            return
        if not self._pauses():
            self._restore()
            self.state = "beside"
            return
        with self._asking:
            self.state = "asking"
        if not self._wait_until_paused() and not self._has_room():
            refusal = self._refusal()
            self._withdraw()
            raise refusal
        self._drop_ended_runs()
        if not self._runs:
            return
        try:
            self._restore()
        except LoraTrainerError:
            self._withdraw()
            raise
        self.state = "lent"

    def _after_turn(self) -> None:
        self._last_generation = self._clock()
        self._stays = False

    def _wait_until_paused(self) -> bool:
        """Whether every run pauses or ends in time."""
        for run in self._running():
            # a pause that did not come from here came from the command line
            if run.is_paused and not run.obeys_us:
                run.paused_by_user = True
        deadline = self._clock() + self._patience()
        asked: set[Path] = set()
        while True:
            at_work = [
                run for run in self._runs.values() if not run.is_over() and not run.is_paused
            ]
            if not at_work:
                return True
            for run in at_work:
                # not before its first event: starting a worker deletes earlier requests
                if run.folder.path not in asked and run.has_reported:
                    asked.add(run.folder.path)
                    self._mark(*(path for path in asked if not self._runs[path].paused_by_user))
                    run.ask("pause")
            if self._clock() >= deadline:
                return False
            self._sleep(POLL)

    def _has_room(self) -> bool:
        memory = self.host.memory()
        return memory is not None and memory.free >= self._freed + GENERATION_MEMORY

    def _withdraw(self) -> None:
        """The generation was refused: cancel the pause requests."""
        with self._asking:
            self.state = "training"
            self._resume_all()
        self._mark()

    def _refusal(self) -> GpuLeaseError:
        if all(run.state.phase == "training" for run in self._running()):
            return GpuLeaseError(
                "the training did not pause within {seconds} seconds, so there is no room on the"
                " graphics card for an image",
                hint=(
                    "Press Pause in the tab LoRA Trainer, wait until it says paused, and generate"
                    " again."
                ),
                seconds=round(self._patience()),
            )
        return GpuLeaseError(
            "the training is still preparing and cannot pause yet, so there is no room on the"
            " graphics card for an image",
            hint=(
                "Generate again when its first steps are done, or stop it in the tab LoRA Trainer."
            ),
        )

    # --- the browser's threads --------------------------------------------------------------------

    def ask(self, folder: RunFolder, what: Literal["pause", "resume"]) -> None:
        """Pause or resume as the user requests. Their pause outlasts generations; a resume waits
        until the image is done.
        """
        run = self._runs.get(folder.path)
        if run is None:
            send_request(folder.requests, what)
            return
        with self._asking:
            run.paused_by_user = what == "pause"
            if self.state not in ("asking", "lent"):
                run.ask(what)
                return
        self._mark(*(other.folder.path for other in self._running() if not other.paused_by_user))

    def status(self) -> LeaseStatus:
        return LeaseStatus(
            state=self.state, sentence=self._sentence(), before=self._before, after=self._after
        )

    def _sentence(self) -> Message:
        if self._trouble.template:
            return self._trouble
        if self._on_processor:
            return Message(
                "The WebUI runs on the CPU: no model has to be moved, and training does not pause"
                " for images."
            )
        if self.state == "asking":
            return Message(
                "The WebUI generates an image: the training pauses after its current step."
            )
        if self.state == "lent":
            return Message(
                "The training is paused while the WebUI uses the graphics card, and resumes by"
                " itself."
            )
        if self.state == "beside":
            return Message(
                "The WebUI's model is on the graphics card together with the training, for"
                " an image; it is moved off again by itself."
            )
        if self.state == "idle":
            return Message("")
        if not self._sees_generations:
            return Message(
                "This WebUI does not report generations: press Pause before you generate, and"
                " Resume after it."
            )
        if not self._pauses():
            return Message(
                "The WebUI's model was moved off the graphics card for the training, and is moved"
                " back for an image while training continues."
            )
        return Message(
            "The WebUI's model was moved off the graphics card for the training. Generate "
            "pauses the training while an image is generated."
        )

    # --- moving the model -------------------------------------------------------------------------

    def _release(self) -> None:
        self._trouble = Message("")
        before = self.host.memory()
        if not self.host.model_on_device():
            self._before = self._before or before
            self._after = before
            return
        self._model_moved = True
        self.host.release_model()
        after = self.host.memory()
        # Forge may list models that are in main memory; releasing again would not help
        self._stays = self.host.model_on_device()
        self._before, self._after = before, after
        if before and after:
            self._freed = max(0, after.free - before.free)

    def _restore(self) -> None:
        if self._model_moved:
            self.host.restore_model()
            self._model_moved = False
            self._trouble = Message("")

    def _mark(self, *paths: Path) -> None:
        """Record which runs are paused for a generation, so that the next host can resume them if
        this one dies.
        """
        with contextlib.suppress(OSError):
            if paths:
                files.write_text(
                    self._marker, json.dumps({"paused_for_a_picture": [*map(str, paths)]})
                )
            else:
                self._marker.unlink(missing_ok=True)


class _LeasingRun:
    """A run that uses the GPU, and its state. since: when its worker was started; None: it is about
    to be. Older events are an earlier worker's.
    """

    def __init__(self, folder: RunFolder, since: float | None) -> None:
        self.folder = folder
        self.ended = False
        self.paused_by_user = False
        self.has_reported = False
        self.state = RunState()
        self._since = since or 0.0
        self._reading = threading.Lock()
        skips = since is None and folder.events.exists()
        self._offset = folder.events.stat().st_size if skips else 0
        self._asked = ""
        """The name of the last request sent from here."""
        self._obeyed = ""
        """That of the last pause that it told."""

    def read(self) -> RunState:
        with self._reading:
            found, self._offset = read_events(self.folder.events, self._offset)
            new = [event for event in found if event.time >= self._since]
            self.state = fold(new, self.state)
            for event in new:
                if isinstance(event, events.Started):
                    self.has_reported = True
                elif isinstance(event, events.Paused):
                    self._obeyed = event.request
            return self.state

    @property
    def is_paused(self) -> bool:
        """Whether it is paused, and nothing that was sent from here can end that: a request is
        obeyed some time after it was sent.
        """
        # a worker of an earlier version does not name the request
        return self.read().status == "paused" and (not self._obeyed or self._obeyed >= self._asked)

    @property
    def obeys_us(self) -> bool:
        """Whether its last pause was asked for from here."""
        return bool(self._asked) and self._obeyed == self._asked

    def is_over(self) -> bool:
        """Whether its process has ended: the scheduler reported it, or it has reported and no
        longer holds its lock. The last event precedes that.
        """
        if not self.ended:
            # in this order: who has reported held the lock before
            self.read()
            # the scheduler's thread may have set it meanwhile: never back to False
            if self.has_reported and not self.folder.is_alive:
                self.ended = True
        return self.ended

    def ask(self, what: Literal["pause", "resume"]) -> None:
        # the run folder may have been deleted
        with contextlib.suppress(OSError):
            self._asked = send_request(self.folder.requests, what)

    def keep_paused(self) -> None:
        """Ask it to pause, unless that was the last thing it was asked, or it is paused."""
        if not self._asked.endswith("pause") and not self.is_paused:
            self.ask("pause")


def _marked(marker: Path) -> list[str]:
    found = files.read_json(marker, lambda note: note["paused_for_a_picture"], None, names=True)
    return [str(path) for path in found] if isinstance(found, list) else []


def _memory(memory: Memory | None) -> MemoryView | None:
    return None if memory is None else {"free": memory.free, "total": memory.total}
