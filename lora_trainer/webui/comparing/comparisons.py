"""Comparisons of LoRAs: request and result, and both as JSON. Pure; generation.py makes the images.

    request_from(body) -> ComparisonRequest    pair: without and with;  grid: strengths in a row;
                                               matrix: LoRAs x strengths, on one labelled sheet
    prompt_for(prompt, lora, ...)   the prompt for the host
    job.to_mapping(...)             for the browser;  to_file(job), from_file(values) for try.json

Called by generation.py and comparing/routes.py.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast, get_args

from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.webui.loras.library import Lora
from lora_trainer.webui.loras.sidecar import STRONGEST
from lora_trainer.webui.texts import Sentence

Kind = Literal["pair", "grid", "matrix"]
Status = Literal["waiting", "making", "done", "failed", "cancelled"]
MOST_IMAGES_MADE = 64
MOST_STRENGTHS = 12
LONGEST_PROMPT = 10_000
LARGEST_SEED = 2**32 - 1


class ComparisonError(LoraTrainerError):
    """The requested images cannot be made."""


class TryImage(TypedDict):
    url: str
    label: str
    strength: float
    step: int | None
    lora: str | None


class TryView(TypedDict):
    """A comparison and its images so far."""

    id: str
    kind: Kind
    status: Status
    done: int
    total: int
    step: int
    step_count: int
    images: list[TryImage]
    sheet: str | None
    infotext: str
    prompt: str
    seed: int
    loras: list[str]
    strengths: list[float]
    notes: list[str]
    sentence: str
    error: Sentence | None
    started: float


class TryBase(TypedDict):
    kind: Kind
    lora: str | None
    prompt: str
    negative: str
    seed: int
    steps: int
    cfg: float
    width: int
    height: int
    sampler: str
    scheduler: str
    strengths: list[float]


class TryBody(TryBase, total=False):
    """`loras`: the saved steps of a matrix."""

    loras: list[str]


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """A validated request. A seed of -1 is replaced by a random one."""

    kind: Kind
    prompt: str
    loras: tuple[str, ...]
    strengths: tuple[float, ...]
    negative: str = ""
    seed: int = -1
    steps: int = 20
    cfg: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = ""
    scheduler: str = ""

    def __post_init__(self) -> None:
        self._require("steps", self.steps, 1, 150)
        self._require("cfg", self.cfg, 0, 30)
        self._require("width", self.width, 64, 2048)
        self._require("height", self.height, 64, 2048)
        self._require("seed", self.seed, -1, LARGEST_SEED)
        for strength in self.strengths:
            self._require("strength", strength, 0, STRONGEST)
        if self.width % 8 or self.height % 8:
            raise ComparisonError(
                "{width} x {height} is not a valid image size",
                hint="Use multiples of 8.",
                width=self.width,
                height=self.height,
            )
        if not self.prompt.strip():
            raise ComparisonError(
                "the prompt is empty", hint="Describe the image to generate, as in txt2img."
            )
        if len(self.prompt) > LONGEST_PROMPT or len(self.negative) > LONGEST_PROMPT:
            raise ComparisonError(
                "the prompt is longer than {most} characters", most=LONGEST_PROMPT
            )
        if not self.loras:
            raise ComparisonError(
                "no LoRA is chosen", hint="Choose the LoRA, or the saved steps, to try."
            )
        if (
            len(self.strengths) > MOST_STRENGTHS
            or len(self.loras) * max(1, len(self.strengths)) > MOST_IMAGES_MADE
        ):
            raise ComparisonError(
                "that would be more than {most} images",
                hint="Choose fewer strengths or fewer saved steps.",
                most=MOST_IMAGES_MADE,
            )

    def _require(self, name: str, value: float, least: float, most: float) -> None:
        # NaN is outside any bounds
        if not least <= value <= most:
            raise ComparisonError(
                "{name} is {value}",
                hint="Use {least} to {most}.",
                name=name,
                value=value,
                least=least,
                most=most,
            )


@dataclass(frozen=True, kw_only=True)
class ComparisonImage:
    file: str
    strength: float
    step: int | None
    lora: str
    """Empty: without any."""


@dataclass
class Comparison:
    """A job and its results. Modified by the worker thread only; others set `stop`, and cancel it
    while it waits.
    """

    id: str
    wanted: ComparisonRequest
    total: int
    started: float
    status: Status = "waiting"
    images: list[ComparisonImage] = field(default_factory=list)
    sheet: str = ""
    infotext: str = ""
    seed: int = -1
    step: int = 0
    step_count: int = 0
    notes: list[Message] = field(default_factory=list)
    error: LoraTrainerError | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    def note(self, note: Message) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)

    def sentence(self) -> Message:
        if self.status == "waiting":
            return Message("Waiting in the queue.")
        if self.status == "making" and not self.step_count and self.images:
            return Message(
                "Image {number} of {total}: waiting for the WebUI.",
                {"number": len(self.images) + 1, "total": self.total},
            )
        if self.status == "making" and not self.step_count:
            return Message(
                "Waiting for the WebUI: another image is being generated, or the training has"
                " to pause first."
            )
        if self.status == "making":
            values = {
                "number": len(self.images) + 1,
                "total": self.total,
                "step": self.step,
                "steps": self.step_count,
            }
            return Message("Image {number} of {total}: step {step} of {steps}.", values)
        if self.status == "cancelled":
            return Message("Cancelled.")
        return Message("")

    def to_mapping(
        self, render: Callable[[Message], str], address: Callable[[str], str]
    ) -> TryView:
        """As JSON. render: translates a message; address: URL of a file of the comparison."""
        error: Sentence | None = (
            {"message": render(self.error.message), "hint": render(self.error.hint)}
            if self.error
            else None
        )
        images: list[TryImage] = [
            {
                "url": address(image.file),
                "label": render(_label(image, self.wanted.kind)),
                "strength": image.strength,
                "step": image.step,
                "lora": image.lora or None,
            }
            for image in self.images
        ]
        return {
            "id": self.id,
            "kind": self.wanted.kind,
            "status": self.status,
            "done": len(self.images),
            "total": self.total,
            "step": self.step,
            "step_count": self.step_count,
            "images": images,
            "sheet": address(self.sheet) if self.sheet else None,
            "infotext": self.infotext,
            "prompt": self.wanted.prompt,
            "seed": self.seed,
            "loras": list(self.wanted.loras),
            "strengths": list(self.wanted.strengths),
            "notes": [render(note) for note in self.notes],
            "sentence": render(self.sentence()),
            "error": error,
            "started": self.started,
        }


def request_from(body: Mapping[str, Any]) -> ComparisonRequest:
    """Validate a request. Raises ComparisonError for missing values or wrong types."""
    kind = body.get("kind", "pair")
    if kind not in get_args(Kind):
        raise ComparisonError(
            "{kind!r} is not a kind of comparison",
            hint="Use one of: {known}.",
            kind=kind,
            known=", ".join(get_args(Kind)),
        )
    several = body.get("loras") or []
    loras = several if kind == "matrix" and several else [body.get("lora")]
    defaults = {item.name: item.default for item in dataclasses.fields(ComparisonRequest)}
    numbers = {
        key: _number(key, body.get(key, defaults[key]), whole=key != "cfg")
        for key in ("seed", "steps", "cfg", "width", "height")
    }
    return ComparisonRequest(
        kind=cast(Kind, kind),
        prompt=_text("prompt", body.get("prompt", "")),
        negative=_text("negative", body.get("negative") or ""),
        sampler=_text("sampler", body.get("sampler") or ""),
        scheduler=_text("scheduler", body.get("scheduler") or ""),
        loras=tuple(_text("lora", lora) for lora in _listed("loras", loras) if lora),
        strengths=tuple(
            float(_number("strength", strength, whole=False))
            for strength in _listed("strengths", body.get("strengths") or [])
        ),
        seed=int(numbers["seed"]),
        steps=int(numbers["steps"]),
        cfg=float(numbers["cfg"]),
        width=int(numbers["width"]),
        height=int(numbers["height"]),
    )


def prompt_for(prompt: str, lora: Lora, name: str, strength: float) -> tuple[str, list[Message]]:
    """(the prompt with the LoRA's tag and trigger, notes on other changes). Strength 0: the same
    prompt without the tag.
    """
    notes: list[Message] = []
    bare = re.sub(
        rf"\s*<(?:lora|lyco):{re.escape(lora.name)}(?::[^>]*)?>", "", prompt, flags=re.IGNORECASE
    )
    if bare != prompt:
        notes.append(
            Message(
                "The tag of {name} in the prompt was replaced by the strengths tried here.",
                {"name": lora.name},
            )
        )
    text = bare.strip()
    if lora.trigger and lora.trigger.casefold() not in text.casefold():
        text = f"{lora.trigger}, {text}" if text else lora.trigger
        notes.append(
            Message("The trigger {trigger} was added to the prompt.", {"trigger": lora.trigger})
        )
    return (f"{text} <lora:{name}:{strength:g}>" if strength else text), notes


def with_strengths(wanted: ComparisonRequest, lora: Lora) -> ComparisonRequest:
    """The request with default strengths for its kind if none were given; a pair is always without
    and with.
    """
    if wanted.kind == "pair":
        chosen = next(
            (strength for strength in wanted.strengths if strength), lora.preferred_weight
        )
        return dataclasses.replace(wanted, strengths=(0.0, chosen))
    usual = lora.grid if wanted.kind == "grid" else lora.matrix
    return dataclasses.replace(wanted, strengths=tuple(dict.fromkeys(wanted.strengths)) or usual)


def image_count(wanted: ComparisonRequest) -> int:
    """Number of images: without the LoRA it is one, whatever the number of LoRAs."""
    strong = sum(1 for strength in wanted.strengths if strength)
    return len(wanted.loras) * strong + (1 if 0.0 in wanted.strengths else 0)


def _label(image: ComparisonImage, kind: Kind) -> Message:
    if not image.strength:
        return Message("Without the LoRA")
    values = {"strength": f"{image.strength:g}", "step": image.step, "name": image.lora}
    if kind == "matrix" and image.step is not None:
        return Message("Step {step}, strength {strength}", values)
    return (
        Message("{name}, strength {strength}", values)
        if kind == "matrix"
        else Message("Strength {strength}", values)
    )


# --- on disk --------------------------------------------------------------------------------------


def to_file(job: Comparison, status: Status) -> dict[str, Any]:
    """The content of try.json. `status`: the one it is about to have, which is shown only once
    written.
    """
    return {
        "id": job.id,
        "wanted": dataclasses.asdict(job.wanted),
        "total": job.total,
        "started": job.started,
        "status": status,
        "pictures": [dataclasses.asdict(image) for image in job.images],
        "sheet": job.sheet,
        "infotext": job.infotext,
        "seed": job.seed,
        "notes": [_written(note) for note in job.notes],
        "error": (
            {"message": _written(job.error.message), "hint": job.error.hint.template}
            if job.error
            else None
        ),
    }


def from_file(values: Mapping[str, Any]) -> Comparison:
    """A job from try.json. Raises ComparisonError, or one of files.UNREADABLE."""
    wanted = dict(values["wanted"])
    wanted |= {"loras": tuple(wanted["loras"]), "strengths": tuple(wanted["strengths"])}
    status = values["status"]
    if status not in get_args(Status):
        raise ValueError(status)
    error = values.get("error")
    return Comparison(
        id=str(values["id"]),
        wanted=ComparisonRequest(**wanted),
        total=int(values["total"]),
        started=float(values["started"]),
        status=status,
        images=[ComparisonImage(**image) for image in values["pictures"]],
        sheet=str(values["sheet"]),
        infotext=str(values["infotext"]),
        seed=int(values["seed"]),
        notes=[_read_message(note) for note in values["notes"]],
        error=_read_error(error) if error else None,
    )


def _read_error(values: Mapping[str, Any]) -> ComparisonError:
    error = ComparisonError("")
    error.message = _read_message(values["message"])
    error.hint = _read_message(
        {
            "template": values["hint"],
            "values": values["message"]["values"] if values["hint"] else {},
        }
    )
    return error


def _read_message(values: Mapping[str, Any]) -> Message:
    message = Message(str(values["template"]), dict(values["values"]))
    str(message)  # raises if a value is missing
    return message


def _written(message: Message) -> dict[str, Any]:
    return {"template": message.template, "values": dict(message.values)}


# --- reading a request ----------------------------------------------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ComparisonError(
            "{name} is not a text",
            hint="Reload the page: it may be older than the extension.",
            name=name,
        )
    return value


def _number(name: str, value: Any, *, whole: bool) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (whole and value != value // 1)
        or _is_beyond_floats(value)
    ):
        raise ComparisonError("{name} is not a number", hint="Write a number.", name=name)
    return value


def _is_beyond_floats(value: float) -> bool:
    # JSON integers may exceed the range of float
    return isinstance(value, int) and value.bit_length() > 1000


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ComparisonError(
            "{name} is not a list",
            hint="Reload the page: it may be older than the extension.",
            name=name,
        )
    return value
