"""One graphics card, two users: the host's model leaves it while a run trains, and comes back for
pictures and in the end.

    idle ── before_start / adopt ──> training ── a picture is asked for ──> asking ── the run says
    paused ──> lent
                                        ^
                                            │
                                        └──────────── no picture for `grace` seconds: resume
                                        ─────────────────┘
    training ── a picture, and its user wants no pauses ──> beside, with the model on the card too
    ── `grace` ──> training any of them ── after_end ──> idle, with the model where it was

    scheduler thread   before_start(run) -> may the worker start now?   adopt(run)   after_end(run)
        once the process is gone   tick() every second or so
    host's threads  _before_turn, _after_turn, by host.on_generation: a picture, an upscale, another
                    checkpoint, "Try it"
    the browser     ask(run, "pause" | "resume")   status()

Every change of state happens in a turn of the host's queue (host.our_turn), so two never happen at
once, and no lock of ours is held meanwhile. A picture waits for the run to pause; when that takes
longer than `patience` it is refused with a sentence, unless there is room for both. Users with a
large card may choose that runs never pause for pictures: `pauses` says so, and is asked at each
picture. On a host that computes on the processor there is nothing to hand over, and training does
not pause for pictures. Called by app, scheduler and the routes. Never touches the host itself, nor
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
from typing import Any, Literal, Protocol

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
"""Seconds that a picture waits for the run to pause. A step of a large model on a small card takes
ten or more.
"""
GRACE = 4.0
"""Seconds without a picture after which training goes on: moving models for each of several
pictures would take longer than the pictures.
"""
POLL = 0.1
PICTURE_ROOM = 3 * 2**30
"""Bytes beyond the model's own that a picture needs: enough for SDXL at its usual size."""


class GpuLeaseError(LoraTrainerError):
    """The graphics card cannot be had now."""


class LeasingHost(Protocol):
    """What is needed of a host; see base.Host."""

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
        tell: Callable[[LoraTrainerError], str],
    ) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    """Where the graphics card is, for people."""

    state: LeaseState
    sentence: Message
    before: Memory | None = None
    """The device's memory before the model left it for the run, and after."""
    after: Memory | None = None

    def to_mapping(self, say: Callable[[Message], str]) -> dict[str, Any]:
        """As JSON; `say` puts the sentence into the visitor's language."""
        return {
            "state": self.state,
            "sentence": say(self.sentence),
            "before": _memory(self.before),
            "after": _memory(self.after),
        }


class GpuLease:
    """Who has the graphics card. `marker` is a small file that outlives the host: which run was
    paused for a picture.
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
        tell: Callable[[LoraTrainerError], str] = str,
    ) -> None:
        self.host = host
        self.state: LeaseState = "idle"
        self._marker = marker
        self._pauses, self._tell = pauses, tell
        self._patience, self._grace, self._clock, self._sleep = patience, grace, clock, sleep
        # one, but for runs that somebody started on the command line beside it
        self._runs: dict[Path, _LeasingRun] = {}
        self._left_paused = _marked(marker)
        self._owed = False
        self._freed = 0
        self._stays = False
        self._last_picture = 0.0
        self._trouble = Message("")
        self._before: Memory | None = None
        self._after: Memory | None = None
        self._on_processor = host.device().kind == "cpu"
        self._sees_pictures = False
        self.watch()

    def watch(self) -> None:
        """Have the host tell of its pictures; again after "Reload UI", which makes it forget."""
        self._sees_pictures = self._on_processor or self.host.on_generation(
            self._before_turn, self._after_turn, tell=self._tell
        )

    # --- the scheduler's thread -------------------------------------------------------------------

    def before_start(self, folder: RunFolder) -> bool:
        """Make room for a worker about to start. False: the host is making a picture; ask again
        later. Raises HostError if the model cannot leave.
        """
        return self._take_on(folder, adopted=False)

    def adopt(self, folder: RunFolder) -> bool:
        """Make room for a worker that is at work already, started before this host was. A pause for
        a picture that the last host made ends.
        """
        return self._take_on(folder, adopted=True)

    def waits(self) -> bool:
        """Whether a run whose turn has come waits for the host to be done with its device."""
        return not self._on_processor and self.host.is_generating()

    def after_end(self, folder: RunFolder) -> None:
        """The worker's process is gone, however it went: the model comes back now, or as soon as
        the host's queue lets us.
        """
        run = self._runs.get(folder.path)
        if run is not None:
            run.ended = True
            self._let_go()

    def tick(self) -> None:
        """Whatever is due: end a loan that nobody uses, or the time of a run that has died. Quick
        unless a model has to be moved.
        """
        if not self._runs:
            return
        if any(run.is_over() for run in self._runs.values()):
            self._let_go()
        elif self.state in ("lent", "beside"):
            if self._clock() - self._last_picture >= self._grace:
                self._take_back()
        elif (
            self.state == "training"
            and not self._stays
            and not self.host.is_generating()
            and self.host.model_on_device()
        ):
            # another checkpoint was chosen, or the host was still starting
            self._take_back()

    def _take_on(self, folder: RunFolder, *, adopted: bool) -> bool:
        if self._on_processor:
            return True
        with self.host.our_turn(wait=False) as ours:
            if not ours:
                return False
            if folder.path in self._runs and not self._runs[folder.path].ended:
                return True
            run = _LeasingRun(folder, adopted=adopted)
            try:
                self._release()
            except LoraTrainerError:
                if not self._runs:
                    self._restore()
                raise
            self._end_loan()
            # a new dict: other threads may be looking through the old one
            self._runs = {**self._runs, folder.path: run}
            if adopted:
                self._end_an_old_loan(run)
            return True

    def _end_an_old_loan(self, run: _LeasingRun) -> None:
        """A host that died while it made a picture has left the run paused."""
        if run.read().status == "paused":
            if str(run.folder.path) in self._left_paused:
                run.ask("resume")
            else:
                run.paused_by_user = True

    def _take_back(self) -> None:
        with self.host.our_turn(wait=False) as ours:
            if not ours or not self._living():
                return
            try:
                self._release()
            except LoraTrainerError as error:
                # the run stays paused, and the next tick tries again
                self._trouble = error.message
                self._last_picture = self._clock()
                return
            self._end_loan()

    def _end_loan(self) -> None:
        """Whoever was paused for a picture goes on; the model has left the device."""
        if self.state == "lent":
            self._resume_all()
        self.state = "training"
        self._mark()

    def _resume_all(self) -> None:
        for run in self._living():
            if not run.paused_by_user:
                run.ask("resume")

    def _let_go(self) -> None:
        with self.host.our_turn(wait=False) as ours:
            if ours:
                self._forget_the_dead()

    def _forget_the_dead(self) -> None:
        """In a turn: runs that are over are forgotten; after the last of them the host gets back
        what it had.
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
            # told, and tried again at the next picture
            self._trouble = error.message
            log.warning("%s", error)

    def _living(self) -> list[_LeasingRun]:
        return [run for run in self._runs.values() if not run.ended]

    # --- the host's threads -----------------------------------------------------------------------

    def _before_turn(self) -> None:
        """The host wants its device, and has the turn. Raises GpuLeaseError when it cannot have
        it.
        """
        if self.state == "lent":
            return
        self._forget_the_dead()
        if not self._runs:
            self._restore()
            return
        if not self._pauses():
            self._restore()
            self.state = "beside"
            return
        self.state = "asking"
        if not self._wait_until_paused() and not self._has_room():
            self.state = "training"
            refusal = self._refusal()
            self._withdraw()
            raise refusal
        self._forget_the_dead()
        if not self._runs:
            return
        try:
            self._restore()
        except LoraTrainerError:
            self.state = "training"
            self._withdraw()
            raise
        self.state = "lent"

    def _after_turn(self) -> None:
        self._last_picture = self._clock()
        self._stays = False

    def _wait_until_paused(self) -> bool:
        """Whether the device is free in time: every run says it is paused, or is gone."""
        for run in self._living():
            # a pause that nobody asked for here was asked for on the command line
            run.paused_by_user = run.paused_by_user or run.read().status == "paused"
        deadline = self._clock() + self._patience()
        asked: set[Path] = set()
        while True:
            at_work = [
                run
                for run in list(self._runs.values())
                if not run.is_over() and run.read().status != "paused"
            ]
            if not at_work:
                return True
            for run in at_work:
                # not before it has spoken: whoever starts a worker first drops what was asked of
                # the one before it
                if run.folder.path not in asked and run.has_spoken:
                    asked.add(run.folder.path)
                    self._mark(*(path for path in asked if not self._runs[path].paused_by_user))
                    run.ask("pause")
            if self._clock() >= deadline:
                return False
            self._sleep(POLL)

    def _has_room(self) -> bool:
        memory = self.host.memory()
        return memory is not None and memory.free >= self._freed + PICTURE_ROOM

    def _withdraw(self) -> None:
        """The picture is not made: a pause that was asked for must not come true later."""
        self._resume_all()
        self._mark()

    def _refusal(self) -> GpuLeaseError:
        if all(run.state.phase == "training" for run in self._living()):
            return GpuLeaseError(
                "the training did not pause within {seconds} seconds, so there is no room on the"
                " graphics card for a picture",
                hint=(
                    "Press Pause in the tab LoRA Trainer, wait until it says paused, and generate"
                    " again."
                ),
                seconds=round(self._patience()),
            )
        return GpuLeaseError(
            "the training is still preparing and cannot pause yet, so there is no room on the"
            " graphics card for a picture",
            hint=(
                "Generate again when its first steps are done, or stop it in the tab LoRA Trainer."
            ),
        )

    # --- the browser's threads --------------------------------------------------------------------

    def ask(self, folder: RunFolder, what: Literal["pause", "resume"]) -> None:
        """A person presses Pause or Resume. A pause of theirs outlasts pictures; a resume waits
        until the picture is made.
        """
        run = self._runs.get(folder.path)
        if run is None:
            send_request(folder.requests, what)
            return
        run.paused_by_user = what == "pause"
        if self.state in ("asking", "lent"):
            self._mark(*(other.folder.path for other in self._living() if not other.paused_by_user))
        else:
            run.ask(what)

    def status(self) -> LeaseStatus:
        return LeaseStatus(
            state=self.state, sentence=self._sentence(), before=self._before, after=self._after
        )

    def _sentence(self) -> Message:
        if self._trouble.template:
            return self._trouble
        if self._on_processor:
            return Message(
                "The WebUI computes on the processor: nothing has to make room, and training does"
                " not pause for pictures."
            )
        if self.state == "asking":
            return Message("A picture was asked for: the training pauses after its step.")
        if self.state == "lent":
            return Message(
                "The training waits while the WebUI uses the graphics card, and goes on by itself."
            )
        if self.state == "beside":
            return Message(
                "The WebUI's model is on the graphics card beside the training, for a picture; it"
                " leaves again by itself."
            )
        if self.state == "idle":
            return Message("")
        if not self._sees_pictures:
            return Message(
                "This WebUI cannot be watched: press Pause before you generate a picture, and"
                " Resume after it."
            )
        if not self._pauses():
            return Message(
                "The WebUI's model has left the graphics card for the training, and comes back"
                " beside it for a picture."
            )
        return Message(
            "The WebUI's model has left the graphics card for the training. Generate pauses the"
            " training while a picture is made."
        )

    # --- moving the model -------------------------------------------------------------------------

    def _release(self) -> None:
        self._trouble = Message("")
        before = self.host.memory()
        if not self.host.model_on_device():
            self._before = self._before or before
            self._after = before
            return
        self._owed = True
        self.host.release_model()
        after = self.host.memory()
        # Forge's list may hold what lies in main memory anyway: asking again and again would move
        # nothing
        self._stays = self.host.model_on_device()
        self._before, self._after = before, after
        if before and after:
            self._freed = max(0, after.free - before.free)

    def _restore(self) -> None:
        if self._owed:
            self.host.restore_model()
            self._owed = False
            self._trouble = Message("")

    def _mark(self, *paths: Path) -> None:
        """Write down which runs were paused for a picture: a host that dies meanwhile leaves them
        so, and the next one must know why.
        """
        with contextlib.suppress(OSError):
            if paths:
                files.write_text(
                    self._marker, json.dumps({"paused_for_a_picture": [*map(str, paths)]})
                )
            else:
                self._marker.unlink(missing_ok=True)


class _LeasingRun:
    """The run that has the device, read as its events come."""

    def __init__(self, folder: RunFolder, *, adopted: bool) -> None:
        self.folder = folder
        self.ended = False
        self.paused_by_user = False
        self.has_spoken = adopted
        self.state = RunState()
        self._lived = adopted
        self._reading = threading.Lock()
        # what an earlier worker said of this run is of no interest
        self._offset = 0 if adopted or not folder.events.exists() else folder.events.stat().st_size

    def read(self) -> RunState:
        with self._reading:
            new, self._offset = read_events(self.folder.events, self._offset)
            self.state = fold(new, self.state)
            self.has_spoken = self.has_spoken or any(
                isinstance(event, events.Started) for event in new
            )
            return self.state

    def is_over(self) -> bool:
        """Whether its process is gone: the scheduler said so, or it has lived and no longer does.
        Its last event comes before it lets the device go.
        """
        if not self.ended:
            alive = self.folder.is_alive
            self.ended = self._lived and not alive
            self._lived = self._lived or alive
        return self.ended

    def ask(self, what: Literal["pause", "resume"]) -> None:
        # a run folder that was deleted has nobody to ask
        with contextlib.suppress(OSError):
            send_request(self.folder.requests, what)


def _marked(marker: Path) -> list[str]:
    found = files.read_json(marker, lambda told: told["paused_for_a_picture"], None, names=True)
    return [str(path) for path in found] if isinstance(found, list) else []


def _memory(memory: Memory | None) -> dict[str, int] | None:
    return None if memory is None else {"free": memory.free, "total": memory.total}
