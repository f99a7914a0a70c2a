"""Reads a run's measurements: events.jsonl and config.yaml -> Measurements.

Values that are missing or not finite are None; series are (step, value), ordered by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_trainer import files
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.state import fold
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.optimizers import settled

Series = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class PreviewScores:
    """Mean scores of the previews of one strength, by the image-text encoder. likeness: similarity
    to the training images. obedience: prompt adherence.
    """

    likeness: float | None = None
    obedience: float | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """The measurements of one step: the fields of the events Validated and PicturesMeasured."""

    step: int
    training_loss: float | None = None
    validation_loss: float | None = None
    by_strength: Mapping[float, float] = field(default_factory=dict)
    """Strength -> loss, on held-out images if there are any. Measured at fewer noise levels than
    the losses above, so comparable only with each other.
    """
    unprompted_change: float | None = None
    prompted_change: float | None = None
    per_image: Mapping[str, float] = field(default_factory=dict)
    """Training image -> its loss divided by the checkpoint's."""
    caption_fit: Mapping[str, float] = field(default_factory=dict)
    """Training image -> how much lower the checkpoint's loss is with its own caption than with
    others, before the first step.
    """
    has_previews: bool = False
    """Whether previews were measured at this step."""
    likeness: float | None = None
    """Relative to that of previews at strength 0, if there are any (`has_base`)."""
    obedience: float | None = None
    variety: float | None = None
    nearest: Mapping[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    previews: Mapping[float, PreviewScores] = field(default_factory=dict)
    """Strength -> scores of its previews."""

    @property
    def has_base(self) -> bool:
        """Whether previews without the LoRA were measured too."""
        return 0.0 in self.previews and self.previews[0.0].likeness is not None


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """A run's measurements. `losses`: of each step; None if the loss was not finite."""

    config: RunConfig
    step: int
    """Steps done."""
    step_count: int
    data: str = "images"
    """The kind of training data: images or texts."""
    image_count: int = 0
    """Number of training images, or texts."""
    losses: tuple[tuple[int, float | None], ...] = ()
    steps: tuple[MeasuredStep, ...] = ()
    """In order, step 0 (before training) included."""
    saved: tuple[int, ...] = ()
    """Steps with a LoRA file."""

    @cached_property
    def training(self) -> Series:
        """The trained images' loss under fixed noise."""
        return self.series(lambda one: one.training_loss)

    @cached_property
    def held_out(self) -> Series:
        """The held-out images' loss under fixed noise; empty without such images."""
        return self.series(lambda one: one.validation_loss)

    @property
    def curve(self) -> Series:
        """The most informative loss: of held-out images, else of the trained ones."""
        return self.held_out or self.training

    def series(self, value: Callable[[MeasuredStep], float | None]) -> Series:
        return tuple((one.step, found) for one in self.steps if (found := value(one)) is not None)

    @cached_property
    def base_by_strength(self) -> float | None:
        """The checkpoint's own loss, measured as `by_strength`; None if step 0 was not measured."""
        before = next((one.by_strength for one in self.steps if one.step == 0), {})
        return next(iter(before.values()), None)

    def at(self, step: int) -> MeasuredStep:
        """The measurements of a step; empty if there are none."""
        return next((one for one in self.steps if one.step == step), MeasuredStep(step=step))

    @cached_property
    def learning_rate(self) -> float:
        return float(settled(self.config.training)["learning_rate"])


def read_measurements(folder: RunFolder) -> Measurements:
    """A run's measurements, without those of steps that a resumed run has repeated. Raises
    ConfigError if its settings cannot be read.
    """
    history = folder.read_events()
    state = fold(history)
    saved = [one for one in state.saved if one.step]
    there = [one for one in saved if (folder.path / one.file).exists()]
    return Measurements(
        config=training.read(folder.config, {"output_dir": str(folder.path)}),
        step=state.step,
        step_count=state.step_count or state.step,
        data=state.data,
        image_count=state.image_count,
        **_folded(history),
        # a folder that was copied without its files is evaluated too
        saved=tuple(sorted({one.step for one in there or saved})),
    )


def _folded(history: Iterable[events.Event]) -> dict[str, Any]:
    """The losses and measured steps; a resumed run replaces those after its resume point."""
    losses: dict[int, float | None] = {}
    steps: dict[int, MeasuredStep] = {}
    for event in history:
        match event:
            case events.Started():
                resumed = event.resumed_from or 0
                losses = {step: loss for step, loss in losses.items() if step <= resumed}
                steps = {step: one for step, one in steps.items() if step <= resumed}
            # only steps have a learning rate; a loss that is not finite is left out of its line
            case events.Progress() if event.learning_rate is not None or event.loss is not None:
                losses[event.step] = event.loss
            case events.Validated():
                steps[event.step] = _validated(steps.get(event.step), event)
            case events.PicturesMeasured():
                steps[event.step] = _with_previews(steps.get(event.step), event)
    return {
        "losses": tuple(sorted(losses.items())),
        "steps": tuple(steps[step] for step in sorted(steps)),
    }


def _validated(known: MeasuredStep | None, event: events.Validated) -> MeasuredStep:
    return replace(
        known or MeasuredStep(step=event.step),
        training_loss=event.training_loss,
        validation_loss=event.validation_loss,
        by_strength=by_number(event.by_strength),
        unprompted_change=event.unprompted_change,
        prompted_change=event.prompted_change,
        per_image=_numbers(event.per_image),
        caption_fit=_numbers(event.caption_fit),
    )


def _with_previews(known: MeasuredStep | None, event: events.PicturesMeasured) -> MeasuredStep:
    scores = {
        strength: PreviewScores(
            likeness=files.finite_number(given.get("likeness")),
            obedience=files.finite_number(given.get("obedience")),
        )
        for name, given in event.by_strength.items()
        if isinstance(given, dict) and (strength := files.finite_number(name)) is not None
    }
    return replace(
        known or MeasuredStep(step=event.step),
        has_previews=True,
        likeness=event.likeness,
        obedience=event.obedience,
        variety=event.variety,
        nearest=_numbers(event.nearest),
        copied=tuple(str(name) for name in event.copied),
        previews=dict(sorted(scores.items())),
    )


def by_number(values: Mapping[str, Any]) -> dict[float, float]:
    """{"0.75": 0.1} -> {0.75: 0.1}, sorted; entries that are not finite numbers are omitted."""
    found = {
        number: value
        for name, given in values.items()
        if (number := files.finite_number(name)) is not None
        and (value := files.finite_number(given)) is not None
    }
    return dict(sorted(found.items()))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(name): number
        for name, given in values.items()
        if (number := files.finite_number(given)) is not None
    }
