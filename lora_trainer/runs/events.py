"""The events of a run: one JSON object a line in events.jsonl, appended by the worker only.

    Started    the worker has started (resumed_from: the step it resumes from)
    Planned    settings, checkpoint and dataset are read and valid: what will be done
    Phase      the phase that begins: checking, encoding, loading, training, exporting ...
    Progress   a step is done; without `loss`, a part of a phase
    Previewed  a preview image was written
    Answered   a language model was asked a preview prompt
    Captioned  a caption was written into the dataset (caption job)
    Saved      a LoRA file was written and verified
    Validated  losses under fixed noise were measured: before the first step, and after saves
    PicturesMeasured   previews were compared with the training images and their prompts
    Warned     a warning; training continues
    Paused / Resumed
    Judged     the run was judged: its best step and strength (verdict.json has the whole verdict)
    Finished   all steps are done; `file` is the LoRA file, `delivered` its copy for the WebUI
    Stopped    stopped by request; the progress is saved
    Failed     stopped by an error: message and hint

Paths are relative to the run folder if inside it. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from lora_trainer import files
from lora_trainer.errors import LoraTrainerError, Message


@dataclass(frozen=True, kw_only=True)
class Event:
    kind: ClassVar[str] = ""
    """The class's name in lower case."""
    time: float = 0.0
    """Seconds since 1970, set by the writer."""

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    job: str = "train"
    resumed_from: int | None = None


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    name: str = ""
    family: str = ""
    family_name: str = ""
    """For people: Z-Image."""
    data: str = "images"
    """What is trained on: images or texts."""
    step_count: int = 0
    epoch_count: int = 0
    image_count: int = 0
    """Images, or texts, that are trained on."""
    held_out_count: int = 0
    """Images, or texts, that are validated on."""
    token_count: int = 0
    """Tokens of the texts that are learned."""
    bucket_count: int = 0
    resolution: int = 0
    device: str = ""
    precision: str = ""
    training_adapter: str = ""
    """The file's name; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    phase: str = ""
    """checking, loading, encoding, training, previewing, saving, validating, measuring, exporting
    or delivering; in a caption job also captioning; in either, installing or downloading.
    """
    total: int = 0
    """Number of parts of the phase, or 0."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    step: int = 0
    """Steps done; in a phase other than training, parts done."""
    epoch: int = 0
    loss: float | None = None
    smoothed_loss: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    memory: int | None = None
    """Peak memory in bytes: the device's, or the process's on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Previewed(Event):
    step: int = 0
    file: str = ""
    prompt: str = ""
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    step: int = 0
    prompt: str = ""
    strength: float = 1.0
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Captioned(Event):
    image: str = ""
    """Path relative to the dataset folder, with forward slashes."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    step: int = 0
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """Losses under the same noise at every check, training.validation. A loss is the squared error
    without any weighting, at strength 1 unless said otherwise.
    """

    step: int = 0
    training_loss: float | None = None
    """Of up to eight images that are trained on."""
    validation_loss: float | None = None
    """Of up to eight held-out images; None without any."""
    by_strength: Mapping[str, Any] = field(default_factory=dict)
    """Strength, as "0.75" -> loss of the held-out images (of those trained on without any), at half
    of the noise levels.
    """
    unprompted_change: float | None = None
    """How far the prediction without a caption has moved from the base's: RMS of the difference,
    relative to the RMS of the base's.
    """
    prompted_change: float | None = None
    """The same with the images' captions."""
    per_image: Mapping[str, Any] = field(default_factory=dict)
    """Name of an image that is trained on -> its loss relative to the base's."""
    caption_fit: Mapping[str, Any] = field(default_factory=dict)
    """Name of an image that is trained on -> how much lower the base's loss is with its own caption
    than with those of other images, training.caption_fit; before the first step only.
    """
    seconds: float = 0.0
    """How long the check took."""


@dataclass(frozen=True, kw_only=True)
class PicturesMeasured(Event):
    """Previews measured, training.similarity. The cosines are of an image-text encoder; None
    without one, and those of the strength nearest to 1.
    """

    step: int = 0
    encoder: str = ""
    """The encoder's name; empty: pixels only."""
    likeness: float | None = None
    """Mean cosine of the previews with the centroid of the training images, minus that of previews
    at strength 0, if there are any.
    """
    obedience: float | None = None
    """Mean cosine of each preview with its prompt without the trigger word."""
    variety: float | None = None
    """1 - mean cosine of previews of different prompts."""
    nearest: Mapping[str, Any] = field(default_factory=dict)
    """Name of a training image -> its highest pixel similarity with a preview; the eight highest.
    """
    copied: list[str] = field(default_factory=list)
    """Training images that a preview is a copy of, by pixel similarity."""
    by_strength: Mapping[str, Any] = field(default_factory=dict)
    """Strength, as "0.75" -> {"likeness": cosine, "obedience": cosine}."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    message: str = ""
    hint: str = ""
    template: str = ""
    """The message without its values: the key for translations."""
    hint_template: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Message, hint: Message | None = None) -> Warned:
        hint = hint or Message("")
        return cls(
            message=str(message),
            hint=str(hint),
            template=message.template,
            hint_template=hint.template,
            values=plain_values({**hint.values, **message.values}),
        )


@dataclass(frozen=True, kw_only=True)
class Paused(Event):
    """Told again when a run that is paused is asked to pause."""

    step: int = 0
    request: str = ""
    """The name of the request that it obeys, the newest one (send_request)."""


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Told also when a pause is cancelled before it was obeyed."""

    step: int = 0
    request: str = ""
    """The name of the request that it obeys."""


@dataclass(frozen=True, kw_only=True)
class Judged(Event):
    step: int = 0
    """The best step."""
    strength: float | None = None
    """Its best strength, if several were compared."""
    strengths: Mapping[str, Any] = field(default_factory=dict)
    """Step -> its best strength."""
    message: str = ""
    """The verdict's sentences, in English."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    step: int = 0
    file: str = ""
    delivered: str = ""
    """Absolute path of the file in the WebUI's LoRA folder, or empty."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    step: int = 0
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    error: str = ""
    """The name of the exception's class."""
    message: str = ""
    hint: str = ""
    template: str = ""
    hint_template: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: LoraTrainerError) -> Failed:
        return cls(
            error=type(error).__name__,
            message=str(error),
            hint=str(error.hint),
            template=error.message.template,
            hint_template=error.hint.template,
            values=plain_values(error.message.values),
        )


_LARGEST = sys.float_info.max
KINDS: dict[str, type[Event]] = {event.kind: event for event in Event.__subclasses__()}


def to_line(event: Event) -> str:
    """Event -> a line of JSON without the newline. None and non-finite floats are left out: JSON
    has no NaN.
    """
    values = {item.name: getattr(event, item.name) for item in dataclasses.fields(event)}
    known = {
        key: value
        for key, value in values.items()
        if value is not None and not (isinstance(value, float) and value - value != 0)
    }
    return json.dumps(
        {"event": event.kind, **known}, ensure_ascii=False, separators=(",", ":"), default=str
    )


def from_line(line: str) -> Event | None:
    """A line -> Event. None for a truncated line, an unknown event, or values of the wrong type."""
    try:
        values = files.parse_json(line, names=True)
        event = KINDS[values.pop("event")]
    except files.UNREADABLE:
        return None
    kinds = _kinds_of_values(event)  # type: ignore[arg-type]  # mypy takes a dataclass for unhashable
    known = {key: value for key, value in values.items() if key in kinds}
    return (
        event(**known) if all(_is_of(value, kinds[key]) for key, value in known.items()) else None
    )


@cache
def _kinds_of_values(event: type[Event]) -> Mapping[str, tuple[type, ...]]:
    """Field -> the accepted types of its value."""
    hints = get_type_hints(event)
    return {item.name: _kinds_of(hints[item.name]) for item in dataclasses.fields(event)}


def _kinds_of(hint: Any) -> tuple[type, ...]:
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(option) or option for option in options)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, (int, float)) and float in kinds:
        # json reads NaN, Infinity and integers beyond any float
        return -_LARGEST <= value <= _LARGEST
    return isinstance(value, kinds)


class EventWriter:
    """Appends to events.jsonl. The only writer is the worker that holds the folder's lock."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._stream = path.open("ab")
        if self._stream.tell() and not _ends_with_newline(path):
            # a worker was killed while writing a line; start a new one
            self._stream.write(b"\n")

    def write(self, event: Event) -> Event:
        """Append the event with the current time; fsync, except for frequent events. Returns it."""
        event = dataclasses.replace(event, time=self._clock())
        # a file name that is not UTF-8 has lone surrogates; backslashreplace writes them as JSON's
        # \udc.. escapes
        self._stream.write(to_line(event).encode("utf-8", errors="backslashreplace") + b"\n")
        self._stream.flush()
        if not isinstance(event, (Progress, Captioned)):
            os.fsync(self._stream.fileno())
        return event

    def close(self) -> None:
        self._stream.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events from byte `offset`, and the offset to continue from. An incomplete last line is
    left for the next call.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return [], offset
    end = content.rfind(b"\n") + 1
    # not splitlines(), which also splits at U+2028 and U+0085
    lines = content[:end].decode("utf-8", errors="replace").split("\n")
    return [event for event in map(from_line, lines) if event is not None], offset + end


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Message):
        # a message inside a message is translated too
        return {"template": value.template, "values": plain_values(value.values)}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def message_of(template: str, values: Mapping[str, Any]) -> Message:
    """An event's template and values as a Message, with nested messages restored. The values may
    not fit the template.
    """
    return Message(template, {key: _inner(value) for key, value in values.items()})


def _inner(value: Any) -> Any:
    is_sentence = (
        isinstance(value, dict)
        and isinstance(value.get("template"), str)
        and isinstance(value.get("values"), dict)
    )
    return message_of(value["template"], value["values"]) if is_sentence else value
