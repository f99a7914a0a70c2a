"""Runs for display: history entry and queue -> the JSON of the routes, with status, allowed actions
and a summary sentence.

Pure functions. Called by runs.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from lora_trainer.errors import Message
from lora_trainer.jobs.history import HistoryEntry, Point
from lora_trainer.jobs.queue import QueueState
from lora_trainer.runs.events import Answered, Previewed, Validated, Warned, message_of
from lora_trainer.runs.folder import Job
from lora_trainer.runs.requests import RequestKind
from lora_trainer.runs.state import RunState
from lora_trainer.settings.training import DEFAULT_STRENGTH
from lora_trainer.verdict import Verdict
from lora_trainer.webui import texts
from lora_trainer.webui.common.form import KEYS, Texts
from lora_trainer.webui.common.units import duration
from lora_trainer.webui.texts import Sentence

Status = Literal[
    "queued",
    "starting",
    "running",
    "pausing",
    "paused",
    "stopping",
    "finished",
    "stopped",
    "failed",
    "lost",
]
Render = Callable[[Message], str]


Abilities = TypedDict(
    "Abilities",
    {
        "pause": bool,
        "resume": bool,
        "stop": bool,
        "save": bool,
        "preview": bool,
        "continue": bool,
        "further": bool,
        "delete": bool,
        "move": bool,
        "unqueue": bool,
    },
)
"""The requests that a run accepts."""


class RunProgress(TypedDict):
    """A run without its warnings."""

    id: str
    name: str
    job: Job
    status: Status
    exiting: bool
    """Whether it has ended but its process is still running: `can` is about to change."""
    position: int | None
    family: str | None
    data: Literal["images", "texts"]
    checkpoint: str
    dataset: str
    has_preview_prompts: bool
    step: int
    step_count: int
    epoch: int
    epoch_count: int
    phase: str
    phase_step: int
    phase_total: int
    loss: float | None
    smoothed_loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    memory: int | None
    started: float | None
    changed: float | None
    preview: str | None
    delivered: str | None
    lora: str | None
    """Name of the delivered LoRA file; None without one, and for a language model."""
    file: str | None
    """Path of the last LoRA in the run's folder."""
    failure: Sentence | None
    can: Abilities
    sentence: str


class RunView(RunProgress):
    """A run."""

    warnings: list[Sentence]


class PreviewView(TypedDict):
    """A preview."""

    step: int
    strength: float | None
    prompt: str
    url: str


class AnswerView(TypedDict):
    """A language model's answer to a preview prompt."""

    step: int
    strength: float | None
    prompt: str
    answer: str


class ValidationView(TypedDict):
    """Losses under fixed noise at a step: of training images, and of held-out ones."""

    step: int
    training: float | None
    validation: float | None


class AdviceView(TypedDict):
    """A finding of the verdict. `changes`: recommended settings for the next run; `section`: the
    section of the tab where it can be fixed, if no setting does.
    """

    name: str
    sentence: str
    advice: str
    changes: dict[str, Any]
    section: str


class VerdictView(TypedDict):
    """The verdict on a run."""

    best_step: int
    strength: float | None
    sentence: str
    details: str
    findings: list[AdviceView]


ACTIVE: tuple[Status, ...] = ("starting", "running", "pausing", "paused", "stopping")
DELIVERED = "delivered"
"""Name in URLs of the delivered LoRA's card image, which is outside the run's folder."""
MOST_WARNINGS = 20
WAITS_FOR_HOST = Message("Starts as soon as the WebUI has released the graphics card.")

STEPPING = ("training", "captioning", "pairing")
"""Phases whose progress is counted in steps."""

PHASES: Texts = {
    "checking": "Checking the dataset",
    "encoding": "Encoding images",
    "loading": "Loading the model",
    "training": "Training",
    "captioning": "Captioning",
    "pairing": "Writing pairs",
    "asking": "Answering",
    "waiting": "Waiting for a question",
    "installing": "Installing packages",
    "downloading": "Downloading the model",
    "previewing": "Making previews",
    "saving": "Saving",
    "validating": "Validating",
    "exporting": "Writing the LoRA file",
    "merging": "Merging the LoRA into the base model",
    "concluding": "Evaluating the run",
    "delivering": "Copying it to the LoRA folder",
}


def status_of(entry: HistoryEntry, line: QueueState, asked: RequestKind | None = None) -> Status:
    """The status of a run. `asked`: requests sent by the tab that have not taken effect; those
    still in the folder count too.
    """
    if entry.alive:
        return _status_of_living(entry, {*entry.asked, *([asked] if asked else [])})
    if entry.id == line.starting:
        return "starting"
    if entry.id in line.waiting:
        return "queued"
    return _status_of_past(entry)


def _status_of_living(entry: HistoryEntry, asked: set[RequestKind]) -> Status:
    if "stop" in asked and not (entry.heard and entry.state.ended):
        return "stopping"
    if not entry.heard:
        return "starting"
    if entry.state.ended:
        # the worker is about to exit
        return _status_of_past(entry)
    if entry.state.status == "paused":
        return "paused"
    return "pausing" if "pause" in asked else "running"


def _status_of_past(entry: HistoryEntry) -> Status:
    if entry.problem is not None:
        return "failed"
    match entry.state.status:
        case "finished" | "stopped" | "failed" as ended:
            return ended
        case "new":
            return "stopped"
    return "lost"


def abilities(entry: HistoryEntry, status: Status) -> Abilities:
    """The requests that a run accepts in this status."""
    training = entry.job == "train"
    working = status in ("running", "pausing")
    rests = status in ("finished", "stopped", "failed", "lost") and not entry.alive
    return {
        "pause": status == "running",
        "resume": status in ("paused", "pausing"),
        "stop": status in ("starting", "running", "pausing", "paused"),
        "save": working and training and entry.state.step > 0,
        "preview": working and training and entry.state.phase == "training",
        "continue": (
            rests
            and entry.problem is None
            and status != "finished"
            and entry.job in ("train", "caption")
        ),
        "further": (
            rests
            and training
            and entry.problem is None
            and status == "finished"
            and entry.resume_step is not None
        ),
        "delete": rests,
        "move": status == "queued",
        "unqueue": status == "queued",
    }


def run(
    entry: HistoryEntry,
    line: QueueState,
    render: Render,
    *,
    asked: RequestKind | None = None,
    waits_for_host: bool = False,
) -> RunView:
    """A run as JSON; numbers are finite or null. waits_for_host: it is next, but the host is using
    the device.
    """
    state = entry.state
    status = status_of(entry, line, asked)
    # until the worker writes its first event, the run is at its resume point, and its former end is
    # obsolete
    shown = state if status not in ("starting", "queued") else _waiting_state(entry)
    position = line.waiting.index(entry.id) if entry.id in line.waiting else None
    return {
        "id": entry.id,
        "name": title_of(entry, state.name or name_of(entry)),
        "job": entry.job,
        "status": status,
        "exiting": entry.alive and status not in ACTIVE,
        "position": position,
        "family": state.family or None,
        "data": data_of(state),
        "checkpoint": last_part(str(entry.settings.get("base_model") or "")),
        "dataset": last_part(str(entry.settings.get("train_data_dir") or "")),
        # without prompts, previews are made only at the end or on request
        "has_preview_prompts": bool(entry.settings.get("sample_prompts")),
        "step": shown.step,
        "step_count": shown.step_count or whole(entry.settings.get("max_train_steps")),
        "epoch": shown.epoch,
        "epoch_count": shown.epoch_count,
        "phase": phase(shown.phase, render) if status in ACTIVE else "",
        "phase_step": shown.phase_step,
        "phase_total": shown.phase_total,
        "loss": finite(shown.loss),
        "smoothed_loss": finite(shown.smoothed_loss),
        "images_per_second": finite(shown.images_per_second),
        "seconds_left": finite(shown.seconds_left) if status in ("running", "pausing") else None,
        "memory": shown.memory,
        "started": state.started or None,
        "changed": state.changed or entry.made or None,
        "preview": preview_address(entry),
        "delivered": last_part(state.delivered) or None,
        "lora": lora_name(state) or None,
        "file": shown.file or None,
        "failure": failure(entry, render) if status in ("failed", "lost") else None,
        "warnings": [warning(event, render) for event in state.warnings[-MOST_WARNINGS:]],
        "can": abilities(entry, status),
        "sentence": render(
            WAITS_FOR_HOST
            if waits_for_host and status == "starting"
            else sentence(entry, status, position, render)
        ),
    }


def _waiting_state(entry: HistoryEntry) -> RunState:
    return RunState(
        name=entry.state.name,
        family=entry.state.family,
        step=entry.state.step,
        step_count=entry.state.step_count,
    )


def sentence(entry: HistoryEntry, status: Status, position: int | None, render: Render) -> Message:
    """A summary of the run's state."""
    state = entry.state
    match status:
        case "queued" if position == 0:
            return Message("Starts as soon as no other training is running.")
        case "queued":
            return Message("Number {position} in the queue.", {"position": (position or 0) + 1})
        case "starting":
            return Message("The training process is starting.")
        case "stopping":
            return Message("Stops after this step and saves the training so far.")
        case "pausing":
            return Message("Pauses after this step.")
        case "paused":
            return Message("Paused at step {step}.", {"step": state.step})
        case "running":
            return _progress(state, render)
        case "finished" if entry.job == "caption":
            return Message(
                (
                    "Finished: 1 image is captioned."
                    if state.step == 1
                    else "Finished: {count} images are captioned."
                ),
                {"count": state.step},
            )
        case "finished" if entry.job == "ask":
            return Message(
                "1 question is answered." if state.step == 1 else "{count} questions are answered.",
                {"count": state.step},
            )
        case "finished" if entry.job == "pairs":
            return Message(
                "Finished: 1 pair is written."
                if state.step == 1
                else "Finished: {count} pairs are written.",
                {"count": state.step},
            )
        case "finished" if state.data == "texts" and state.step > 1:
            return Message("Finished after {step} steps. Ask it something.", {"step": state.step})
        case "finished" if lora_name(state):
            return Message(
                "Finished after {step} steps. In a prompt: <lora:{lora}:{strength}>",
                {
                    "step": state.step,
                    "lora": lora_name(state),
                    "strength": strength_of(entry),
                },
            )
        case "finished":
            return Message(
                "Finished after 1 step." if state.step == 1 else "Finished after {step} steps.",
                {"step": state.step},
            )
        case "stopped" if state.status == "new":
            return Message("Not started yet.")
        case "stopped" if state.step == 0 and entry.job == "train":
            return Message("Stopped before the first step.")
        case "stopped" if entry.job == "pairs":
            return Message("Stopped. The pairs that were written are kept.")
        case "stopped" if entry.job == "caption":
            return Message(
                (
                    "Stopped: 1 image is captioned."
                    if state.step == 1
                    else "Stopped: {count} images are captioned."
                ),
                {"count": state.step},
            )
        case "stopped":
            return Message(
                "Stopped at step {step}. The training so far is saved.", {"step": state.step}
            )
        case "failed":
            return _cause(entry)
    return lost(entry)


def _progress(state: RunState, render: Render) -> Message:
    if state.phase not in STEPPING or not state.step_count:
        words = phase(state.phase, render) or render(Message("Reading the settings"))
        if state.phase_total:
            return Message(
                "{phase}: {done} of {total}",
                {"phase": words, "done": state.phase_step, "total": state.phase_total},
            )
        return Message("{phase} ...", {"phase": words})
    if state.phase == "captioning":
        return Message(
            "Captioning: {done} of {total}", {"done": state.step, "total": state.step_count}
        )
    if state.phase == "pairing":
        return Message(
            "Writing pairs: {done} of {total} passages",
            {"done": state.step, "total": state.step_count},
        )
    if finite(state.seconds_left) is None:
        return Message("Step {step} of {total}", {"step": state.step, "total": state.step_count})
    left = render(duration(state.seconds_left or 0.0))
    return Message(
        "Step {step} of {total}, about {time} left",
        {"step": state.step, "total": state.step_count, "time": left},
    )


def lost(entry: HistoryEntry) -> Message:
    """The message for a run whose worker died unnoticed."""
    if entry.resume_step is None:
        return Message(
            "The training process ended unexpectedly: the computer was switched off, or the"
            " process was killed. Nothing had been saved yet."
        )
    return Message(
        "The training process ended unexpectedly: the computer was switched off, or the process"
        " was killed. It can continue from step {step}.",
        {"step": entry.resume_step},
    )


def failure(entry: HistoryEntry, render: Render) -> Sentence:
    """The error and its hint."""
    failed = entry.state.failure
    if entry.problem is not None:
        hint = entry.problem.hint
    elif failed is not None:
        hint = _message(failed.hint_template, failed.values, failed.hint)
    else:
        hint = Message("Press Continue.")
    return {"message": render(_cause(entry)), "hint": render(hint)}


def _cause(entry: HistoryEntry) -> Message:
    if entry.problem is not None:
        return entry.problem.message
    failed = entry.state.failure
    return _message(failed.template, failed.values, failed.message) if failed else lost(entry)


def warning(event: Warned, render: Render) -> Sentence:
    """A worker's warning, with paths reduced to file names."""
    values = {
        key: last_part(value) if isinstance(value, str) and is_whole_path(value) else value
        for key, value in event.values.items()
    }
    return {
        "message": render(_message(event.template, values, event.message)),
        "hint": render(_message(event.hint_template, values, event.hint)),
    }


def is_whole_path(text: str) -> bool:
    """Whether a text is an absolute path, of any system."""
    return "\n" not in text and (Path(text).is_absolute() or PureWindowsPath(text).is_absolute())


def _message(template: str, values: Any, english: str) -> Message:
    """A worker's message for translation; its English text if the template does not fit its values,
    as from another version.
    """
    message = message_of(template, values)
    try:
        str(message)
    except (KeyError, IndexError, ValueError, AttributeError):
        return plain(english)
    return message if template else plain(english)


def plain(text: str) -> Message:
    """A text as a template, with braces escaped."""
    return Message("{text}", {"text": text}) if text else Message("")


def phase(name: str, render: Render) -> str:
    return render(Message(PHASES[name])) if name in PHASES else name


def preview(entry: HistoryEntry, event: Previewed) -> PreviewView:
    return {
        "step": event.step,
        "strength": finite(event.strength),
        "prompt": event.prompt,
        "url": address(entry.id, last_part(event.file), event.time),
    }


def answer(event: Answered) -> AnswerView:
    return {
        "step": event.step,
        "strength": finite(event.strength),
        "prompt": event.prompt,
        "answer": event.answer,
    }


def validation(event: Validated) -> ValidationView:
    return {
        "step": event.step,
        "training": finite(event.training_loss),
        "validation": finite(event.validation_loss),
    }


def verdict(found: Verdict, language: str) -> VerdictView:
    """The verdict on a run as JSON: the sentence, the figures behind it, and the findings."""
    first, *others = found.sentences or (Message(""),)
    return {
        "best_step": found.best_step,
        "strength": found.strength,
        "sentence": texts.render(first, language),
        "details": texts.render_all(others, language),
        "findings": [
            {
                "name": one.name,
                "sentence": texts.render(one.sentence, language),
                "advice": texts.render(one.advice, language),
                "changes": {key: value for key, value in one.changes.items() if key in KEYS},
                "section": one.section,
            }
            for one in found.findings
        ],
    }


def points(found: list[Point]) -> list[list[float | None]]:
    """The loss curve as JSON: [step, loss, smoothed loss]."""
    return [[step, finite(loss), finite(smoothed)] for step, loss, smoothed in found]


def preview_address(entry: HistoryEntry) -> str | None:
    """The newest preview, else the card's image. None for a language model."""
    if entry.state.previews:
        newest = entry.state.previews[-1]
        return address(entry.id, last_part(newest.file), newest.time)
    if lora_name(entry.state):
        return address(entry.id, DELIVERED, entry.state.changed)
    return None


def address(run_id: str, name: str, version: float) -> str:
    """A URL relative to the page, because the host may be under a subpath. It contains the
    `version`, so that browsers can cache the image.
    """
    run, name = quote(run_id, safe=""), quote(name, safe="")
    return f"lora-trainer/runs/{run}/preview/{name}?v={round(version * 1000)}"


def report_address(entry: HistoryEntry) -> str:
    """The URL of a run's report, relative to the page."""
    return f"lora-trainer/runs/{quote(entry.id, safe='')}/report"


def title_of(entry: HistoryEntry, name: str) -> str:
    """A title that distinguishes runs of the same LoRA name: "fox", "fox-2", "fox (run7)"."""
    if entry.id == name or re.fullmatch(re.escape(name) + r"-\d+", entry.id):
        return entry.id
    return f"{name} ({entry.id})"


def name_of(entry: HistoryEntry) -> str:
    return str(entry.settings.get("name") or "") or entry.id


def data_of(state: RunState) -> Literal["images", "texts"]:
    """The kind of dataset that the run is trained on."""
    return "texts" if state.data == "texts" else "images"


def lora_name(state: RunState) -> str:
    """Name of the delivered LoRA in a prompt; empty without one, and for a language model, whose
    LoRA is a folder.
    """
    return "" if state.data == "texts" else last_part(state.delivered).rpartition(".")[0]


def strength_of(entry: HistoryEntry) -> str:
    strength = finite(entry.settings.get("preferred_weight"))
    if strength is None:
        strength = entry.state.measured_strength(entry.state.step)
    return f"{DEFAULT_STRENGTH if strength is None else strength:g}"


def last_part(path: str) -> str:
    """The file name of a path from any system; paths are not shown to users."""
    return PureWindowsPath(path).name if "\\" in path else Path(path).name


def finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # NaN is outside any bounds, and JSON integers may exceed the range of float
    return value if abs(value) <= sys.float_info.max else None


def whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
