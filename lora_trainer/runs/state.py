"""Events -> the state of the run. Pure: the same events give the same state in any process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from lora_trainer.runs import events
from lora_trainer.runs.events import Event

Status = Literal["new", "running", "paused", "finished", "stopped", "failed"]
EXIT_STATUSES: Mapping[str, int] = {"finished": 0, "failed": 1, "stopped": 3}
"""Final status of a run -> exit status of its worker, and of the command line."""
DISK_FULL = 4
"""The worker's exit status when it failed and could not write that to events.jsonl."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    status: Status = "new"
    job: str = "train"
    """The kind of job, as runs.folder.Job."""
    name: str = ""
    family: str = ""
    data: str = "images"
    """What is trained on: images or texts."""
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
    """Time of the last event, in seconds since 1970."""
    saved: tuple[events.Saved, ...] = ()
    previews: tuple[events.Previewed, ...] = ()
    answers: tuple[events.Answered, ...] = ()
    validations: tuple[events.Validated, ...] = ()
    """One a step, in order of steps."""
    warnings: tuple[events.Warned, ...] = ()
    file: str = ""
    delivered: str = ""
    judged: events.Judged | None = None
    failure: events.Failed | None = None

    def measured_strength(self, step: int) -> float | None:
        """The strength that was judged to be best for a saved step."""
        found = self.judged.strengths.get(str(step)) if self.judged else None
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def ended(self) -> bool:
        return self.status in ("finished", "stopped", "failed")


def fold(history: Iterable[Event], state: RunState | None = None) -> RunState:
    """The state after all events, or after new ones applied to an earlier state."""
    state = state or RunState()
    for event in history:
        state = replace(_after(state, event), changed=event.time)
    return state


def _copy(state: RunState, event: Event, *names: str) -> RunState:
    return replace(state, **{name: getattr(event, name) for name in names})


def _after(state: RunState, event: Event) -> RunState:
    match event:
        case events.Started():
            resumed = event.resumed_from or 0
            # later saves will be made again
            saved = tuple(saved for saved in state.saved if saved.step <= resumed)
            return RunState(
                status="running",
                job=event.job,
                name=state.name,
                family=state.family,
                data=state.data,
                step=resumed,
                step_count=state.step_count,
                started=state.started or event.time,
                saved=saved,
                previews=tuple(preview for preview in state.previews if preview.step <= resumed),
                # a job that answers makes none again
                answers=tuple(
                    answer
                    for answer in state.answers
                    if event.job == "ask" or answer.step <= resumed
                ),
                validations=tuple(one for one in state.validations if one.step <= resumed),
            )
        case events.Planned():
            copied = ("name", "family", "data", "step_count", "epoch_count", "image_count")
            return _copy(state, event, *copied)
        case events.Phase():
            return replace(state, phase=event.phase, phase_step=0, phase_total=event.total)
        case events.Progress() if event.loss is None and state.phase not in (
            "training",
            "captioning",
            "pairing",
        ):
            return replace(state, phase_step=event.step)
        case events.Progress():
            # every field of Progress is one of the state
            names = (field.name for field in fields(event) if field.name != "time")
            return _copy(state, event, *names)
        case events.Previewed():
            return replace(state, previews=(*state.previews, event))
        case events.Answered():
            return replace(state, answers=(*state.answers, event))
        case events.Saved():
            return replace(
                state, saved=(*(saved for saved in state.saved if saved.file != event.file), event)
            )
        case events.Validated():
            earlier = (one for one in state.validations if one.step < event.step)
            return replace(state, validations=(*earlier, event))
        case events.Warned():
            return replace(state, warnings=(*state.warnings, event))
        case events.Judged():
            return replace(state, judged=event)
        case events.Paused():
            return replace(state, status="paused", seconds_left=None)
        case events.Resumed():
            return replace(state, status="running")
        case events.Finished():
            ended = replace(state, status="finished", phase="", seconds_left=0.0)
            return _copy(ended, event, "step", "file", "delivered")
        case events.Stopped():
            ended = replace(state, status="stopped", phase="", seconds_left=None)
            return _copy(ended, event, "step", "file")
        case events.Failed():
            return replace(state, status="failed", phase="", failure=event, seconds_left=None)
    return state
