"""Events -> where the run stands. Pure: the same events give the same state, in whichever process
they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lora_trainer.runs import events
from lora_trainer.runs.events import Event

Status = Literal["new", "running", "paused", "finished", "stopped", "failed"]
EXIT_STATUSES: Mapping[str, int] = {"finished": 0, "failed": 1, "stopped": 3}
"""How a run has ended -> what its worker's process says, and the command line after it."""
DISK_FULL = 4
"""What the process says when it has failed, and there was no room to write that down."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    status: Status = "new"
    job: str = "train"
    """train or caption."""
    name: str = ""
    family: str = ""
    phase: str = ""
    phase_step: int = 0
    phase_total: int = 0
    step: int = 0
    step_count: int = 0
    epoch: int = 0
    epoch_count: int = 0
    image_count: int = 0
    loss: float | None = None
    smoothed_loss: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    memory: int | None = None
    started: float = 0.0
    changed: float = 0.0
    """When the last event was written, in seconds since 1970."""
    saved: tuple[events.Saved, ...] = ()
    previews: tuple[events.Previewed, ...] = ()
    warnings: tuple[events.Warned, ...] = ()
    file: str = ""
    delivered: str = ""
    failure: events.Failed | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("finished", "stopped", "failed")


def fold(history: Iterable[Event], state: RunState | None = None) -> RunState:
    """All events so far, or the new ones over an earlier state."""
    state = state or RunState()
    for event in history:
        state = replace(_after(state, event), changed=event.time)
    return state


def _after(state: RunState, event: Event) -> RunState:
    match event:
        case events.Started():
            resumed = event.resumed_from or 0
            # what was saved after the resume point is made again
            saved = tuple(saved for saved in state.saved if saved.step <= resumed)
            return RunState(
                status="running",
                job=event.job,
                name=state.name,
                family=state.family,
                step=resumed,
                step_count=state.step_count,
                started=state.started or event.time,
                saved=saved,
                previews=tuple(preview for preview in state.previews if preview.step <= resumed),
            )
        case events.Planned():
            return replace(
                state,
                name=event.name,
                family=event.family,
                step_count=event.step_count,
                epoch_count=event.epoch_count,
                image_count=event.image_count,
            )
        case events.Phase():
            return replace(state, phase=event.phase, phase_step=0, phase_total=event.total)
        case events.Progress() if event.loss is None and state.phase not in (
            "training",
            "captioning",
        ):
            return replace(state, phase_step=event.step)
        case events.Progress():
            return replace(
                state,
                step=event.step,
                epoch=event.epoch,
                loss=event.loss,
                smoothed_loss=event.smoothed_loss,
                learning_rate=event.learning_rate,
                images_per_second=event.images_per_second,
                seconds_left=event.seconds_left,
                memory=event.memory,
            )
        case events.Previewed():
            return replace(state, previews=(*state.previews, event))
        case events.Saved():
            return replace(
                state, saved=(*(saved for saved in state.saved if saved.file != event.file), event)
            )
        case events.Warned():
            return replace(state, warnings=(*state.warnings, event))
        case events.Paused():
            return replace(state, status="paused", seconds_left=None)
        case events.Resumed():
            return replace(state, status="running")
        case events.Finished():
            return replace(
                state,
                status="finished",
                phase="",
                step=event.step,
                file=event.file,
                delivered=event.delivered,
                seconds_left=0.0,
            )
        case events.Stopped():
            return replace(
                state,
                status="stopped",
                phase="",
                step=event.step,
                file=event.file,
                seconds_left=None,
            )
        case events.Failed():
            return replace(state, status="failed", phase="", failure=event, seconds_left=None)
    return state
