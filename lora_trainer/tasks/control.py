"""Pause and stop.

control.check(at)            inside a stage: pauses, or raises StopRequested
Requests(control)            the loop's hook: the same between steps, and all other requests in
                             order
control.occupy(occupant)     registers what leaves the device during a pause
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import sleep
from typing import Protocol, TypeVar

from lora_trainer.runs import events
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Hook, Loop, StopRequested, Work

PAUSE_POLL_SECONDS = 0.2
Item = TypeVar("Item")


class Occupant(Protocol):
    """Something in device memory."""

    def leave_device(self) -> None: ...

    def return_to_device(self) -> None: ...


class Position(Protocol):
    """A task's position."""

    @property
    def step(self) -> int: ...


class Control:
    """Carries out `pause`, `resume` and `stop`, and reports them with the current step."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._occupants: list[Occupant] = []

    def occupy(self, occupant: Occupant) -> None:
        """Move `occupant` off the device during each pause."""
        self._occupants.append(occupant)

    def check(self, at: Position) -> None:
        """Pause if requested. Raises StopRequested. Other requests are left for the loop."""
        self.pause_if_asked(at)
        self.raise_if_stopped()

    def until_stopped(self, items: Iterable[Item], at: Position) -> Iterator[Item]:
        """Yield the items, with a `check` before each."""
        for item in items:
            self.check(at)
            yield item

    def raise_if_stopped(self) -> None:
        if self._report.stop_asked():
            raise StopRequested

    def pause_if_asked(self, at: Position) -> None:
        """Leave the device while paused. Ends on `resume`, which is told also if the pause had not
        begun; or on `stop`, which the caller handles.
        """
        if self._report.stop_asked() or not (asked := self._report.pause_asked()):
            return
        occupants = self._occupants if asked.kind == "pause" else []
        for occupant in occupants:
            occupant.leave_device()
        told = ""
        while asked.kind == "pause":
            if asked.name != told:
                told = asked.name
                self._report.write(events.Paused(step=at.step, request=told))
            if self._report.stop_asked():
                return
            sleep(PAUSE_POLL_SECONDS)
            asked = self._report.pause_asked() or asked
        self._report.write(events.Resumed(step=at.step, request=asked.name))
        for occupant in occupants:
            occupant.return_to_device()

    def requests(self, at: Position) -> Iterator[str]:
        """The other requests since the last step, in order; pauses if requested. Raises
        StopRequested first if requested.
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
    """Handles the requests since the last step."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def before_step(self, loop: Loop[Work]) -> None:
        for kind in self._control.requests(loop.work):
            loop.request(kind)
