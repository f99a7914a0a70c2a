"""Chooses the best saved step, and the best strength of each step.

Measurements -> Choice. A step's quality is its share of the best gain on held-out images, averaged
with the scores of its previews where an encoder has measured them; without both, the gain on the
trained images. Of steps that are as good as the best, the latest is chosen; none after which
training images are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from lora_trainer.verdict.measurements import MeasuredStep, Measurements, PreviewScores, Series
from lora_trainer.verdict.thresholds import Thresholds

Key = TypeVar("Key", int, float)
Basis = Literal["held_out", "trained", "pictures", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best step and strength, and the basis of the choice."""

    step: int
    basis: Basis
    strengths: Mapping[int, float] = field(default_factory=dict)
    """Measured step -> its best strength, if several strengths were measured."""
    quality: Mapping[int, float] = field(default_factory=dict)
    """Saved step -> its quality, from 0 to 1."""
    improves: bool = True
    """Whether any saved step is better than the checkpoint alone."""

    @property
    def strength(self) -> float | None:
        return self.strengths.get(self.step)


def choose(measurements: Measurements, thresholds: Thresholds) -> Choice | None:
    """The best of the saved steps. None if nothing was saved or measured after step 0."""
    steps = [one for one in measurements.steps if one.step > 0]
    saved = measurements.saved or tuple(one.step for one in steps)
    if not saved:
        return None
    measured = [one for one in steps if one.step in saved]
    basis = basis_of(measurements)
    quality = _qualities(measurements, measured, basis, thresholds)
    strengths = {
        one.step: best
        for one in measured
        if (best := best_strength(measurements, one, thresholds)) is not None
    }
    if not quality:
        return Choice(step=max(saved), basis="nothing", strengths=strengths)
    uncopied = _without_copies(measured) & quality.keys() or quality.keys()
    best = max(quality[step] for step in uncopied)
    step = max(step for step in uncopied if quality[step] >= best - thresholds.step_tolerance)
    return Choice(
        step=step,
        basis=basis,
        strengths=strengths,
        quality=quality,
        improves=basis == "pictures" or _improves(measurements, thresholds),
    )


def basis_of(measurements: Measurements) -> Basis:
    """The measurement that steps are compared by."""
    if any(step for step, _ in measurements.held_out):
        return "held_out"
    if any(one.likeness is not None for one in measurements.steps if one.step):
        return "pictures"
    return "trained" if any(step for step, _ in measurements.training) else "nothing"


def _improves(measurements: Measurements, thresholds: Thresholds) -> bool:
    gains = gain_shares(measurements.curve)
    return bool(gains) and max(gains.values()) > thresholds.least_gain


def gain_shares(curve: Series) -> dict[int, float]:
    """Step -> decrease of the loss relative to the checkpoint's; without step 0. Empty if the
    checkpoint's loss was not measured.
    """
    base = dict(curve).get(0)
    if not base:
        return {}
    return {step: (base - loss) / base for step, loss in curve if step}


def _qualities(
    measurements: Measurements,
    measured: Iterable[MeasuredStep],
    basis: Basis,
    thresholds: Thresholds,
) -> dict[int, float]:
    """Step -> mean of its shares of the best loss and of the best preview scores."""
    measured = list(measured)
    parts: list[Mapping[int, float]] = []
    if basis in ("held_out", "trained"):
        curve = measurements.held_out if basis == "held_out" else measurements.training
        parts.append(_shares_of_best(curve, {one.step for one in measured}, thresholds))
    if basis in ("held_out", "pictures"):
        scores = {
            one.step: PreviewScores(likeness=one.likeness, obedience=one.obedience)
            for one in measured
        }
        parts.append(preview_shares(scores))
    known = [part for part in parts if part]
    if not known:
        return {}
    steps = set.intersection(*(set(part) for part in known))
    if not steps:
        return dict(known[0])
    return {step: math.fsum(part[step] for part in known) / len(known) for step in sorted(steps)}


def _shares_of_best(curve: Series, steps: set[int], thresholds: Thresholds) -> dict[int, float]:
    """Step -> its gain divided by the best gain, at least 0. Without any gain, the lowest loss has
    1, and the others less by their distance from it.
    """
    losses = {step: loss for step, loss in curve if step in steps}
    if not losses:
        return {}
    base = dict(curve).get(0) or max(losses.values())
    best = base - min(losses.values())
    unit = max(best, thresholds.least_gain * base) or 1.0
    lowest = min(losses.values())
    return {step: max(0.0, 1 - (loss - lowest) / unit) for step, loss in losses.items()}


def preview_shares(scores: Mapping[Key, PreviewScores]) -> dict[Key, float]:
    """Key -> geometric mean of likeness and obedience, each as a share of the highest. Empty if no
    likeness above the checkpoint's was measured.
    """
    likeness = {key: one.likeness for key, one in scores.items() if one.likeness is not None}
    most_like = max(likeness.values(), default=0.0)
    if most_like <= 0:
        return {}
    obedience = [one.obedience for one in scores.values() if one.obedience is not None]
    most_obedient = max(obedience, default=0.0)
    found: dict[Key, float] = {}
    for key, value in likeness.items():
        like = max(0.0, value / most_like)
        adherence = scores[key].obedience
        obeyed = (
            1.0 if adherence is None or most_obedient <= 0 else max(0.0, adherence / most_obedient)
        )
        found[key] = math.sqrt(like * obeyed)
    return found


def _above_base(previews: Mapping[float, PreviewScores]) -> dict[float, PreviewScores]:
    """Scores of the strengths above 0, with their likeness above that at strength 0."""
    without = previews.get(0.0, PreviewScores()).likeness or 0.0
    return {
        strength: replace(one, likeness=None if one.likeness is None else one.likeness - without)
        for strength, one in previews.items()
        if strength > 0
    }


def _without_copies(measured: Iterable[MeasuredStep]) -> set[int]:
    """The steps before the first whose previews copy a training image."""
    found = set()
    for one in measured:
        if one.copied:
            break
        found.add(one.step)
    return found


def best_strength(
    measurements: Measurements, one: MeasuredStep, thresholds: Thresholds
) -> float | None:
    """The best strength of a step: by its previews if three or more strengths were generated, else
    the smallest with nearly the best gain; for texts, the one with the best gain. None if no
    strength improves on the checkpoint.
    """
    scores = preview_shares(_above_base(one.previews))
    if len(scores) >= 3:
        return float(max(scores, key=lambda strength: (scores[strength], -strength)))
    base = measurements.base_by_strength
    if base is None or len(one.by_strength) < 2:
        return None
    # on the trained images alone, a best strength above 1 only means that training was too short
    most = math.inf if measurements.held_out else 1.0
    gains = {key: base - loss for key, loss in one.by_strength.items() if 0 < key <= most}
    best = max(gains.values(), default=0.0)
    if best <= thresholds.least_gain * base:
        return None
    tolerance = thresholds.strength_tolerance if measurements.data == "images" else 0.0
    return min(strength for strength, gain in gains.items() if gain >= (1 - tolerance) * best)
