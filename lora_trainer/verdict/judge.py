"""The verdict of a run: best step, strength, sentences, findings, and a table of measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import Message
from lora_trainer.runs import events
from lora_trainer.runs.events import message_of, plain_values
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import DEFAULT_STRENGTH
from lora_trainer.verdict.choice import Choice, choose, gain_shares
from lora_trainer.verdict.conditions import VerdictFinding, find, listed, share_of_last_half
from lora_trainer.verdict.measurements import MeasuredStep, Measurements, read_measurements
from lora_trainer.verdict.thresholds import THRESHOLDS, Thresholds

FILE = "verdict.json"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The evaluation of a run at its end."""

    step: int
    """Steps done when the run was evaluated."""
    step_count: int
    best_step: int
    strength: float | None = None
    """The best strength of the best step; None if strengths were not compared."""
    strengths: Mapping[int, float] = field(default_factory=dict)
    """Step -> its best strength."""
    basis: str = "nothing"
    """The Basis of the choice: held_out, trained, pictures (previews) or nothing."""
    sentences: tuple[Message, ...] = ()
    findings: tuple[VerdictFinding, ...] = ()
    table: tuple[Mapping[str, Any], ...] = ()
    """The measurements of each step; see `row`."""

    def strength_of(self, step: int) -> float:
        """The strength to recommend for a step."""
        return self.strengths.get(step, DEFAULT_STRENGTH)

    def text(self) -> str:
        """The sentences, in English."""
        return " ".join(str(sentence) for sentence in self.sentences)


def judge(folder: Path | RunFolder, thresholds: Thresholds = THRESHOLDS) -> Verdict | None:
    """Evaluate a run by its events and settings. None before its first save. Raises ConfigError if
    the settings cannot be read.
    """
    run = RunFolder(folder) if isinstance(folder, Path) else folder
    return conclude(read_measurements(run), thresholds)


def conclude(measurements: Measurements, thresholds: Thresholds = THRESHOLDS) -> Verdict | None:
    """Evaluate a run by its measurements."""
    choice = choose(measurements, thresholds)
    if choice is None:
        return None
    return Verdict(
        step=measurements.step,
        step_count=measurements.step_count,
        best_step=choice.step,
        strength=choice.strength,
        strengths=choice.strengths,
        basis=choice.basis,
        sentences=tuple(sentences_of(measurements, choice, thresholds)),
        findings=find(measurements, choice, thresholds),
        table=tuple(row(one, choice) for one in measurements.steps),
    )


def row(one: MeasuredStep, choice: Choice) -> dict[str, Any]:
    """The table row of a step: the measurements that exist."""
    values: dict[str, Any] = {
        "step": one.step,
        "training_loss": one.training_loss,
        "validation_loss": one.validation_loss,
        "unprompted_change": one.unprompted_change,
        "prompted_change": one.prompted_change,
        "likeness": one.likeness,
        "obedience": one.obedience,
        "variety": one.variety,
        "nearest": max(one.nearest.values(), default=None),
        "quality": choice.quality.get(one.step),
        "strength": choice.strengths.get(one.step),
    }
    known = {key: value for key, value in values.items() if value is not None}
    if one.by_strength:
        known["by_strength"] = {f"{key:g}": loss for key, loss in one.by_strength.items()}
    if one.copied:
        known["copied"] = list(one.copied)
    return known


# --- sentences ------------------------------------------------------------------------------------


def sentences_of(
    measurements: Measurements, choice: Choice, thresholds: Thresholds
) -> Iterator[Message]:
    """The sentences of the verdict: the best step, its figures, and what happens after it."""
    yield _best(measurements, choice)
    if choice.basis == "nothing":
        return
    if gain := _gain(measurements, choice):
        yield gain
    one = measurements.at(choice.step)
    if likeness := _likeness(one):
        yield likeness
    if copied := _copied(measurements, thresholds):
        yield copied
    if after := _after(measurements, choice, thresholds):
        yield after


def _best(measurements: Measurements, choice: Choice) -> Message:
    values = {"step": choice.step, "total": measurements.step_count}
    if choice.basis == "nothing":
        return Message(
            "Nothing was measured at the saves of this run, so the last one is used: step"
            " {step:,} of {total:,}.",
            values,
        )
    if not choice.improves:
        return Message(
            "No saved step is better than the checkpoint alone; the best one is step {step:,} of"
            " {total:,}.",
            values,
        )
    if choice.strength is None:
        return Message("Step {step:,} of {total:,} is best.", values)
    return Message(
        "Step {step:,} of {total:,} at strength {strength:g} is best.",
        {**values, "strength": choice.strength},
    )


def _gain(measurements: Measurements, choice: Choice) -> Message | None:
    held_out = gain_shares(measurements.held_out).get(choice.step)
    trained = gain_shares(measurements.training).get(choice.step)
    if measurements.data == "texts":
        return _gain_on_texts(held_out, trained)
    if held_out is not None and held_out > 0:
        return Message(
            "On images that it has not seen, its loss is {share:.0f} % below the checkpoint's.",
            {"share": 100 * held_out},
        )
    if held_out is None and trained is not None and trained > 0:
        return Message(
            "On the trained images its loss is {share:.0f} % below the checkpoint's; no images"
            " were held out for comparison.",
            {"share": 100 * trained},
        )
    return None


def _gain_on_texts(held_out: float | None, trained: float | None) -> Message | None:
    if held_out is not None and held_out > 0:
        return Message(
            "On texts that it has not seen, its loss is {share:.0f} % below the base model's.",
            {"share": 100 * held_out},
        )
    if held_out is None and trained is not None and trained > 0:
        return Message(
            "On the trained texts its loss is {share:.0f} % below the base model's.",
            {"share": 100 * trained},
        )
    return None


def _likeness(one: MeasuredStep) -> Message | None:
    if one.likeness is None:
        return None
    if not one.has_base:
        return Message(
            "The similarity of its previews to the training images is {likeness:.2f}.",
            {"likeness": one.likeness},
        )
    base = one.previews[0.0].obedience
    if one.obedience is None or not base or base <= 0:
        return Message(
            "Its previews are closer to the training images than the checkpoint's, by"
            " {likeness:.2f}.",
            {"likeness": one.likeness},
        )
    return Message(
        "Its previews are closer to the training images than the checkpoint's, by {likeness:.2f},"
        " and follow their prompts {share:.0f} % as well.",
        {"likeness": one.likeness, "share": 100 * one.obedience / base},
    )


def _copied(measurements: Measurements, thresholds: Thresholds) -> Message | None:
    measured = [one for one in measurements.steps if one.has_previews and one.step]
    first = next((one for one in measured if one.copied), None)
    if first is None:
        return Message("No training image is copied.") if measured else None
    images = listed(
        tuple(dict.fromkeys(name for one in measured for name in one.copied)),
        thresholds.most_copied,
    )
    before = [one.step for one in measured if one.step < first.step]
    if not before:
        return Message("It copies {images}.", {"images": images})
    return Message(
        "After step {step:,} it copies {images}.", {"step": before[-1], "images": images}
    )


def _after(measurements: Measurements, choice: Choice, thresholds: Thresholds) -> Message | None:
    """Whether more training is useful, or made it worse."""
    curve = measurements.curve
    last = curve[-1][0] if curve else 0
    best = choice.quality.get(choice.step, 0.0)
    lost = 1 - choice.quality.get(last, best) / best if best > 0 else 0.0
    if choice.step < last and lost > thresholds.step_tolerance:
        return Message(
            "By the last step, {share:.0f} % of this quality is lost again.", {"share": 100 * lost}
        )
    share = share_of_last_half(curve)
    if choice.step == last and share is not None and share > thresholds.still_falling:
        return Message("It was still improving at the end.")
    return None


# --- verdict.json ---------------------------------------------------------------------------------


def write(folder: RunFolder, verdict: Verdict) -> None:
    """Write verdict.json."""
    text = json.dumps(to_mapping(verdict), ensure_ascii=True, indent=1)
    files.write_text(folder.path / FILE, text + "\n")


def read(folder: RunFolder) -> Verdict | None:
    """The verdict in verdict.json; None if the file is missing or unreadable."""
    return files.read_json(folder.path / FILE, from_mapping, None, names=True)


def to_mapping(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values; `text` is not read back."""
    return {
        "text": verdict.text(),
        "step": verdict.step,
        "step_count": verdict.step_count,
        "best_step": verdict.best_step,
        "strength": verdict.strength,
        "strengths": {str(step): strength for step, strength in verdict.strengths.items()},
        "basis": verdict.basis,
        "sentences": [message_to_mapping(sentence) for sentence in verdict.sentences],
        "findings": [
            {
                "name": one.name,
                "sentence": message_to_mapping(one.sentence),
                "advice": message_to_mapping(one.advice),
                "changes": dict(one.changes),
                "section": one.section,
            }
            for one in verdict.findings
        ],
        "table": [dict(one) for one in verdict.table],
    }


def from_mapping(values: Any) -> Verdict:
    """The verdict from untrusted parsed JSON. Raises one of files.UNREADABLE."""
    strengths = {
        int(step): strength
        for step, given in values["strengths"].items()
        if (strength := files.finite_number(given)) is not None
    }
    return Verdict(
        step=int(values["step"]),
        step_count=int(values["step_count"]),
        best_step=int(values["best_step"]),
        strength=files.finite_number(values.get("strength")),
        strengths=strengths,
        basis=str(values["basis"]),
        sentences=tuple(_message_from(one) for one in values["sentences"]),
        findings=tuple(_finding_from(one) for one in values["findings"]),
        table=tuple(dict(one) for one in values["table"]),
    )


def message_to_mapping(message: Message) -> dict[str, Any]:
    return {"template": message.template, "values": plain_values(message.values)}


def _message_from(values: Any) -> Message:
    """A message whose values fit its template. Raises one of files.UNREADABLE."""
    message = message_of(str(values["template"]), values["values"])
    str(message)
    return message


def _finding_from(values: Any) -> VerdictFinding:
    return VerdictFinding(
        name=str(values["name"]),
        sentence=_message_from(values["sentence"]),
        advice=_message_from(values["advice"]),
        changes=dict(values["changes"]),
        section=str(values["section"]),
    )


def judged(verdict: Verdict) -> events.Judged:
    """The event that reports a verdict."""
    return events.Judged(
        step=verdict.best_step,
        strength=verdict.strength,
        strengths={str(step): strength for step, strength in verdict.strengths.items()},
        message=verdict.text(),
    )
