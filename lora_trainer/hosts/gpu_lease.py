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
generation. Requests have names that sort by time, and a run tells which one it obeys: a run counts
as paused when it has obeyed the last one from here, and what did not come from here, as from the
command line, is the user's and outlasts a generation. On a host that runs on the CPU nothing is
moved or paused. Does not import the host or torch.
"""

from __future__ import annotations

import contextlib
import itertools
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
from lora_trainer.runs.requests import new_name, send_named, send_request, waiting_names
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
        self._left_paused: dict[str, str] = {}
        """Of runs that a host asked to pause for a generation before it died: the request's name.
        """
        self._model_moved = False
        self._freed = 0
        self._stays = False
        self._shares = False
        """Whether the last generation did not wait for all runs to pause: there is room for both.
        """
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

    def holds(self, folder: RunFolder) -> bool:
        """Whether the GPU was freed for the run, and it has not ended since."""
        run = self._runs.get(folder.path)
        return self._on_processor or (run is not None and not run.ended)

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
            if since is not None:
                # now: another host may have written it after this one was started
                self._left_paused.update(_marked(self._marker))
            try:
                self._release()
            except LoraTrainerError:
                if not self._runs:
                    self._restore()
                raise
            run = _LeasingRun(folder, since, self._left_paused.pop(str(folder.path), ""))
            # a new dict: other threads may be looking through the old one
            self._runs = {**self._runs, folder.path: run}
            self._go_on()
            return True

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
            self._go_on()

    def _go_on(self, state: Literal["training", "beside"] = "training") -> None:
        """Enter a state in which no run is paused for a generation."""
        with self._asking:
            try:
                self._resume_all()
            except GpuLeaseError as error:
                # retried with a later tick
                self.state, self._last_generation = "lent", self._clock()
                self._trouble = error.message
                log.warning("%s", error)
            else:
                self.state = state
            self._mark()

    def _resume_all(self) -> None:
        for run in self._running():
            run.hear()
            if run.paused_by_user:
                run.keep_paused()
            elif run.is_asked_to_pause:
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
        with self._asking:
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
        if self.state == "lent" and (
            all(run.is_paused for run in self._running()) or (self._shares and self._has_room())
        ):
            # where training could not be told to go on, the model is off the GPU again
            self._restore()
            return
        self._drop_ended_runs()
        if not self._runs:
            self._restore()
            return
        if not self._pauses():
            self._restore()
            self._go_on("beside")
            return
        with self._asking:
            self.state = "asking"
        try:
            self._shares = not self._wait_until_paused()
            if self._shares and not self._has_room():
                raise self._refusal()
            self._drop_ended_runs()
            if not self._runs:
                return
            self._restore()
        except BaseException:
            # there is no generation: cancel the requests
            self._go_on()
            raise
        self.state = "lent"

    def _after_turn(self) -> None:
        self._last_generation = self._clock()
        self._stays = False

    def _wait_until_paused(self) -> bool:
        """Whether every run pauses or ends in time."""
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
                if run.has_reported and (run.folder.path not in asked or run.obeyed > run.asked):
                    asked.add(run.folder.path)
                    with self._asking:
                        run.hear()
                        run.ask("pause", before_sending=self._mark)
            if self._clock() >= deadline:
                return False
            self._sleep(POLL)

    def _has_room(self) -> bool:
        memory = self.host.memory()
        needed = GENERATION_MEMORY + (self._freed if self._model_moved else 0)
        return memory is not None and memory.free >= needed

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
            # what was told before this comes first
            run.read()
            if self.state not in ("asking", "lent"):
                run.ask(what)
            run.paused_by_user = what == "pause"
            self._mark()

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

    def _mark(self) -> None:
        """Record which runs are asked to pause for a generation, and by which request, so that the
        next host can resume them if this one dies. The caller holds `_asking`.
        """
        asked = {
            str(run.folder.path): run.asked
            for run in self._running()
            if run.is_asked_to_pause and not run.paused_by_user
        }
        with contextlib.suppress(OSError):
            if asked:
                files.write_text(self._marker, json.dumps({"paused_for_a_picture": asked}))
            else:
                self._marker.unlink(missing_ok=True)


class _LeasingRun:
    """A run that uses the GPU, and its state. since: when its worker was started; None: it is about
    to be. Older events are an earlier worker's. asked: the name of the last request that it was
    sent for a generation.
    """

    def __init__(self, folder: RunFolder, since: float | None, asked: str) -> None:
        self.folder = folder
        self.ended = False
        self.paused_by_user = False
        """The user has paused it, from the tab or the command line, and not resumed it."""
        self.has_reported = False
        self.state = RunState()
        self.asked = asked
        """The name of the last request sent from here, or by a host before."""
        self.obeyed = ""
        """That of the pause that it told last; empty from a worker of an earlier version."""
        self._since = since or 0.0
        self._reading = threading.Lock()
        skips = since is None and folder.events.exists()
        self._offset = folder.events.stat().st_size if skips else 0

    def read(self) -> RunState:
        with self._reading:
            found, self._offset = read_events(self.folder.events, self._offset)
            new = list(itertools.dropwhile(lambda event: event.time < self._since, found))
            if new:
                # all that follow, also where the clock was set back
                self._since = 0.0
            self.state = fold(new, self.state)
            for event in new:
                self._note(event)
            return self.state

    def _note(self, event: events.Event) -> None:
        if isinstance(event, (events.Paused, events.Resumed)):
            self.obeyed = event.request
            if event.request > self.asked or not (event.request or self.asked):
                # it did not come from here
                self.paused_by_user = isinstance(event, events.Paused)
        elif isinstance(event, events.Started):
            self.has_reported = True
            if self.obeyed and self.obeyed >= self.asked:
                # an earlier worker's pause ended with it
                self.paused_by_user = False
            self.obeyed = ""

    @property
    def is_paused(self) -> bool:
        """Whether it is paused, and nothing that was sent from here can end that: a request is
        obeyed some time after it was sent.
        """
        return self.read().status == "paused" and (not self.obeyed or self.obeyed >= self.asked)

    @property
    def is_asked_to_pause(self) -> bool:
        """Whether that was the last request from here."""
        return self.asked.endswith("pause")

    def hear(self) -> None:
        """Note what the user has asked for, taken or not."""
        # in this order: what is taken meanwhile may have been told
        waiting = waiting_names(self.folder.requests)
        self.read()
        last = max((name for name in waiting if name.endswith(("pause", "resume"))), default="")
        # starting a worker deletes earlier ones
        if self.has_reported and last > self.asked:
            # it did not come from here
            self.paused_by_user = last.endswith("pause")

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

    def ask(
        self,
        what: Literal["pause", "resume"],
        before_sending: Callable[[], object] = lambda: None,
    ) -> None:
        """Raises GpuLeaseError where that cannot be written; not for a folder that was deleted."""
        earlier, self.asked = self.asked, new_name(what)
        before_sending()
        try:
            send_named(self.folder.requests, self.asked, what)
        except OSError as error:
            if self.folder.path.exists():
                self.asked = earlier
                hint = "Check the folder's permissions, and that the disk is connected."
                raise GpuLeaseError.cannot_write(self.folder.requests, error, hint) from error

    def keep_paused(self) -> None:
        """Ask it to pause, unless it is paused or is about to obey."""
        if not (self.is_asked_to_pause and self.obeyed < self.asked) and not self.is_paused:
            self.ask("pause")


def _marked(marker: Path) -> dict[str, str]:
    found = files.read_json(marker, lambda note: note["paused_for_a_picture"], None, names=True)
    if isinstance(found, list):
        # an earlier version's, without the requests' names
        return {str(path): "0-pause" for path in found}
    return {str(path): str(name) for path, name in found.items()} if isinstance(found, dict) else {}


def _memory(memory: Memory | None) -> MemoryView | None:
    return None if memory is None else {"free": memory.free, "total": memory.total}
