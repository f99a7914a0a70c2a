"""Pause and stop: the one place that knows how.

control.check(at)            between two pieces of a stage: pauses, or raises StopRequested
Requests(control)            the loop's hook: the same between two steps, and every other
                             request in the order in which it came
control.occupy(occupant)     what leaves the device during a pause
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from lora_trainer.runs import events
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Hook, Loop, StopRequested, Work

PAUSE_POLL_SECONDS = 0.2
Thing = TypeVar("Thing")


class Occupant(Protocol):
    """Something that lies on the device."""

    def leave_device(self) -> None: ...

    def return_to_device(self) -> None: ...


class Position(Protocol):
    """Where a task stands."""

    @property
    def step(self) -> int: ...


class Control:
    """Obeys `pause`, `resume` and `stop`. Events name the step at which that happened."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._occupants: list[Occupant] = []

    def occupy(self, occupant: Occupant) -> None:
        """From now on `occupant` leaves the device during each pause."""
        self._occupants.append(occupant)

    def check(self, at: Position) -> None:
        """Wait while a pause is asked for. Raises StopRequested. Every other request waits for the
        loop.
        """
        self.pause_if_asked(at)
        self.raise_if_stopped()

    def until_stopped(self, things: Iterable[Thing], at: Position) -> Iterator[Thing]:
        """The same things, one after the other, with a `check` before each is given on."""
        for thing in things:
            self.check(at)
            yield thing

    def raise_if_stopped(self) -> None:
        if self._report.stop_asked():
            raise StopRequested

    def pause_if_asked(self, at: Position) -> None:
        """Leave the device to others while a pause is asked for. It ends with `resume`, or with
        `stop`, which is left to whoever called.
        """
        if self._report.stop_asked() or not self._report.pause_asked():
            return
        for occupant in self._occupants:
            occupant.leave_device()
        self._report.say(events.Paused(step=at.step))
        while self._report.pause_asked():
            if self._report.stop_asked():
                return
            time.sleep(PAUSE_POLL_SECONDS)
        self._report.say(events.Resumed(step=at.step))
        for occupant in self._occupants:
            occupant.return_to_device()

    def requests(self, at: Position) -> Iterator[str]:
        """What was asked for since the last step, in order; `pause` and `resume` are obeyed on the
        way. Raises StopRequested, whatever else was asked.
        """
        while True:
            self.raise_if_stopped()
            request = self._report.first_waiting()
            if request is None:
                return
            if request.kind in ("pause", "resume"):
                self.pause_if_asked(at)
            else:
                self._report.take(request)
                yield request.kind


class Requests(Hook[Work]):
    """Deals with what was asked since the last step."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def before_step(self, loop: Loop[Work]) -> None:
        for kind in self._control.requests(loop.work):
            loop.request(kind)
