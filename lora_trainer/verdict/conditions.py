"""The problems that a run can have: one function for each kind, in one table.

    find(measurements, choice, thresholds) -> VerdictFindings, most important first

A function takes a Case and returns Evidence (a sentence with its figure, advice, and changes for
the next run), or None. To add a kind, write a function and add it to CONDITIONS.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from lora_trainer.errors import Message
from lora_trainer.settings.training import DEFAULT_RANK, UNET_TARGETS
from lora_trainer.verdict.choice import Choice, gain_shares
from lora_trainer.verdict.measurements import Measurements, Series
from lora_trainer.verdict.thresholds import Thresholds


@dataclass(frozen=True, kw_only=True)
class VerdictFinding:
    """One problem of a run, and what to change for the next run."""

    name: str
    sentence: Message
    advice: Message
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Setting -> value. Empty if no setting fixes it."""
    section: str = ""
    """If no setting fixes it, the section of the tab where a person can: images or captions."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The input of a condition."""

    measurements: Measurements
    choice: Choice
    thresholds: Thresholds

    @property
    def steps_done(self) -> int:
        return max(1, self.measurements.step)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    sentence: Message
    advice: Message
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A kind of problem. `unless`: it is not reported if one of these kinds, which explain it, was
    found. `data`: kinds of training data that it applies to.
    """

    find: Callable[[Case], Evidence | None]
    section: str = ""
    unless: tuple[str, ...] = ()
    data: tuple[str, ...] = ("images",)


def find(
    measurements: Measurements, choice: Choice, thresholds: Thresholds
) -> tuple[VerdictFinding, ...]:
    """All problems of a run."""
    case = Case(measurements=measurements, choice=choice, thresholds=thresholds)
    found: dict[str, VerdictFinding] = {}
    for name, condition in CONDITIONS.items():
        if measurements.data not in condition.data or found.keys() & set(condition.unless):
            continue
        seen = condition.find(case)
        if seen is not None:
            found[name] = VerdictFinding(
                name=name,
                sentence=seen.sentence,
                advice=seen.advice,
                changes=seen.changes,
                section=condition.section,
            )
    return tuple(found.values())


# --- the learning rate ----------------------------------------------------------------------------


def rate_too_high(case: Case) -> Evidence | None:
    """The loss is NaN or infinite, rises above the checkpoint's own, or oscillates."""
    return next(filter(None, _rate_signs(case)), None)


def _rate_signs(case: Case) -> Iterator[Evidence | None]:
    yield _not_finite(case)
    yield _worse_than_base(case)
    yield _swings(case)
    yield _step_loss_rises(case)


def _lower_rate(case: Case, sentence: Message, divisor: int = 3) -> Evidence:
    rate = case.measurements.learning_rate
    lower = round_to(rate / divisor, 2)
    advice = Message(
        "The learning rate of {rate:g} is too high for this run. Try {lower:g}.",
        {"rate": rate, "lower": lower},
    )
    return Evidence(sentence=sentence, advice=advice, changes={"learning_rate": lower})


def _not_finite(case: Case) -> Evidence | None:
    losses = case.measurements.losses
    broken = sum(loss is None for _, loss in losses)
    if broken <= max(1, case.thresholds.non_finite * len(losses)):
        return None
    values = {"count": broken, "total": len(losses)}
    return _lower_rate(
        case, Message("The loss was NaN or infinite in {count:,} of {total:,} steps.", values)
    )


def _rise_above_base(case: Case) -> tuple[int, float] | None:
    """Step of the highest loss on the trained data, and its relative rise above the base's; None if
    it stays below.
    """
    gains = gain_shares(case.measurements.training)
    if not gains or min(gains.values()) >= -case.thresholds.rises_above_base:
        return None
    step = min(gains, key=lambda key: gains[key])
    return step, -gains[step]


def _worse_than_base(case: Case) -> Evidence | None:
    found = _rise_above_base(case)
    if found is None:
        return None
    step, rise = found
    return _lower_rate(
        case,
        Message(
            "At step {step:,} the loss on the trained images was {share:.0f} % above that of the"
            " checkpoint alone, with the same noise.",
            {"step": step, "share": 100 * rise},
        ),
        divisor=10 if rise > case.thresholds.diverged else 3,
    )


def _swings(case: Case) -> Evidence | None:
    series = case.measurements.training
    values = [loss for _, loss in series]
    if len(values) <= case.thresholds.swing_saves:
        return None
    fall = values[0] - min(values)
    rises = math.fsum(max(0.0, after - before) for before, after in pairwise(values))
    is_small = rises <= case.thresholds.least_gain * values[0]
    if is_small or rises <= case.thresholds.swings * fall:
        return None
    return _lower_rate(
        case,
        Message(
            "From save to save the loss on the same images with the same noise oscillates: its"
            " rises add up to {share:.0f} % of its total decrease.",
            {"share": 100 * rises / fall if fall > 0 else 100.0},
        ),
    )


def _step_loss_rises(case: Case) -> Evidence | None:
    """For runs in which nothing was measured at the saves."""
    losses = [loss for _, loss in case.measurements.losses if loss is not None]
    size = len(losses) // 5
    if case.measurements.training or size < 10:
        return None
    first, last = losses[:size], losses[-size:]
    before, after = statistics.fmean(first), statistics.fmean(last)
    deviation = math.sqrt((statistics.variance(first) + statistics.variance(last)) / size)
    if after - before <= max(case.thresholds.step_loss_rise * before, 4 * deviation):
        return None
    return _lower_rate(
        case,
        Message(
            "The loss of the last steps is {share:.0f} % above that of the first.",
            {"share": 100 * (after - before) / before},
        ),
    )


# --- the number of steps --------------------------------------------------------------------------


def overfit(case: Case) -> Evidence | None:
    """The held-out images' loss rises while the trained images' falls: the gap grows. Without
    held-out images, each was trained far too often.
    """
    rise = _rise_after_lowest(case)
    if rise is None:
        return _seen_too_often(case)
    step, share = rise
    changes: dict[str, Any] = {"max_train_steps": max(1, step or case.choice.step)}
    if case.measurements.config.lora.lora_dropout == 0:
        changes["lora_dropout"] = 0.1
    return Evidence(
        sentence=Message(
            "After step {step:,} the loss on held-out images rises again, by {share:.0f} % of the"
            " checkpoint's, while that on the trained images does not: this is overfitting.",
            {"step": step, "share": 100 * share},
        ),
        advice=Message(
            "Train {steps:,} steps, with dropout. More images would help most.",
            {"steps": changes["max_train_steps"]},
        ),
        changes=changes,
    )


def _seen_too_often(case: Case) -> Evidence | None:
    measurements, limits = case.measurements, case.thresholds
    settings, count = measurements.config.training, measurements.image_count
    if measurements.held_out or not count:
        return None
    at_once = settings.batch_size * settings.gradient_accumulation_steps
    views = measurements.step * at_once / count
    if views < limits.views:
        return None
    steps = max(1, int(round_to(limits.advised_views * count / at_once, 2)))
    return Evidence(
        sentence=Message(
            "Each of the {count} images was trained {views:,.0f} times, and none was held out for"
            " comparison: this is overfitting.",
            {"count": count, "views": views},
        ),
        advice=Message(
            "Train {steps:,} steps, with more and more different images.", {"steps": steps}
        ),
        changes={"max_train_steps": steps},
    )


def texts_overfit(case: Case) -> Evidence | None:
    """The held-out texts' loss rises while the trained texts' falls."""
    rise = _rise_after_lowest(case)
    if rise is None:
        return None
    steps = max(1, rise[0] or case.choice.step)
    return Evidence(
        sentence=Message(
            "After step {step:,} the loss on held-out texts rises again, by {share:.0f} % of the"
            " base model's: this is overfitting.",
            {"step": rise[0], "share": 100 * rise[1]},
        ),
        advice=Message(
            "If the goal is to learn facts, that is intended. Otherwise train {steps:,} steps, or"
            " on more texts.",
            {"steps": steps},
        ),
        changes={"max_train_steps": steps},
    )


def texts_worse_than_base(case: Case) -> Evidence | None:
    """A loss that is NaN or infinite, or higher than the base model's."""
    found = _rise_above_base(case)
    if found is None:
        return _not_finite(case)
    step, rise = found
    return _lower_rate(
        case,
        Message(
            "At step {step:,} the loss on the trained texts was {share:.0f} % above that of the"
            " base model alone.",
            {"step": step, "share": 100 * rise},
        ),
    )


def _rise_after_lowest(case: Case) -> tuple[int, float] | None:
    """Step of the lowest held-out loss, and the rise since then as a share of the checkpoint's."""
    held_out, limits = dict(case.measurements.held_out), case.thresholds
    trained = dict(case.measurements.training)
    base = held_out.get(0)
    if not base or len(held_out) < 2:
        return None
    lowest = min(held_out, key=lambda key: (held_out[key], key))
    last = max(held_out)
    rise = (held_out[last] - held_out[lowest]) / base
    gain = max((base - held_out[lowest]) / base, limits.overfit_floor)
    trained_rise = trained.get(last, 0.0) - trained.get(lowest, 0.0)
    if rise <= limits.overfit_rise * gain or trained_rise > rise * base / 2:
        return None
    return lowest, rise


def copies(case: Case) -> Evidence | None:
    """Previews show training images."""
    measured = [one for one in case.measurements.steps if one.has_previews and one.step]
    first = next((one for one in measured if one.copied), None)
    if first is None:
        return None
    before = [one.step for one in case.measurements.steps if 0 < one.step < first.step]
    steps = before[-1] if before else max(1, first.step // 2)
    every = dict.fromkeys(name for one in measured for name in one.copied)
    return Evidence(
        sentence=Message(
            "From step {step:,} on, previews copy {images}.",
            {"step": first.step, "images": listed(tuple(every), case.thresholds.most_copied)},
        ),
        advice=Message(
            "Train {steps:,} steps, with more and more different images.", {"steps": steps}
        ),
        changes={"max_train_steps": steps},
    )


def too_few_steps(case: Case) -> Evidence | None:
    """The loss was still falling at the end."""
    share = share_of_last_half(case.measurements.curve)
    if share is None or share <= case.thresholds.still_falling:
        return None
    steps = round_to(case.steps_done * 2, 2)
    return Evidence(
        sentence=Message(
            "The loss was still falling at the end: {share:.0f} % of its decrease came in the"
            " last half of the steps.",
            {"share": 100 * share},
        ),
        advice=Message("Train longer: {steps:,} steps.", {"steps": int(steps)}),
        changes={"max_train_steps": int(steps)},
    )


def share_of_last_half(curve: Series) -> float | None:
    """Share of the whole gain that came in the last half of the steps: about the gain of twice as
    many steps. None for a single measured save, and without any gain.
    """
    if len(curve) < 3 or curve[0][0]:
        return None
    base, last = curve[0][1], curve[-1][1]
    if base - last <= 0:
        return None
    return (interpolated(curve, curve[-1][0] / 2) - last) / (base - last)


def interpolated(curve: Series, step: float) -> float:
    """The value of a curve at `step`, interpolated linearly."""
    for (before, low), (after, high) in pairwise(curve):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return curve[-1][1]


# --- capacity and variety -------------------------------------------------------------------------


def early_plateau(case: Case) -> Evidence | None:
    """The loss stops falling early, on held-out images as on the trained ones."""
    flat = plateau(case)
    if flat is None or flat > case.thresholds.early * case.steps_done or not _small_gap(case):
        return None
    return Evidence(
        sentence=Message(
            "From step {step:,} of {total:,} on, the loss no longer falls, on held-out images as"
            " on the trained ones.",
            {"step": flat, "total": case.steps_done},
        ),
        advice=Message(
            "There was nothing more to learn: more varied images help more than more steps."
        ),
    )


def detail_lost(case: Case) -> Evidence | None:
    """The loss no longer falls, without overfitting, at a low rank."""
    rank = case.measurements.config.lora.lora_rank or DEFAULT_RANK
    flat = plateau(case)
    if rank > case.thresholds.few_ranks or flat is None or not _small_gap(case):
        return None
    if flat > 0.75 * case.steps_done:
        return None
    left = 100 * (1 - max(gain_shares(case.measurements.curve).values()))
    return Evidence(
        sentence=Message(
            "From step {step:,} on, the loss stays at {left:.0f} % of the checkpoint's, without"
            " overfitting: rank {rank} cannot store more detail.",
            {"step": flat, "left": left, "rank": rank},
        ),
        advice=Message("Use rank {rank}.", {"rank": 2 * rank}),
        changes={"lora_rank": 2 * rank, "lora_alpha": None},
    )


def plateau(case: Case) -> int | None:
    """The step from which on the curve stays near its best gain; None without any gain."""
    gains = gain_shares(case.measurements.curve)
    best = max(gains.values(), default=0.0)
    if best <= case.thresholds.least_gain or len(gains) < 3:
        return None
    flat = None
    for step in sorted(gains, reverse=True):
        if gains[step] < case.thresholds.plateau_gain * best:
            break
        flat = step
    return flat


def _small_gap(case: Case) -> bool:
    """Whether the held-out images gained nearly as much as the trained ones."""
    trained = gain_shares(case.measurements.training)
    held_out = gain_shares(case.measurements.held_out)
    both = trained.keys() & held_out.keys()
    if not both or trained[max(both)] <= 0:
        return False
    last = max(both)
    return (trained[last] - held_out[last]) / trained[last] <= case.thresholds.gap


# --- captions -------------------------------------------------------------------------------------


def captions_disagree(case: Case) -> Evidence | None:
    """Some captions fit their images worse than other captions do, some images are learned far less
    than the others, or the previews drift.
    """
    return _foreign_captions(case) or _stubborn_images(case) or _drift(case)


def _foreign_captions(case: Case) -> Evidence | None:
    limits = case.thresholds
    fits = next((one.caption_fit for one in case.measurements.steps if one.caption_fit), {})
    if not fits:
        return None
    usual = statistics.median(abs(fit) for fit in fits.values())
    limit = max(limits.foreign_floor, limits.foreign_share * usual)
    names = sorted(name for name, fit in fits.items() if fit < -limit)
    if len(names) < limits.foreign_images:
        return None
    return Evidence(
        sentence=Message(
            "{images}: before training, the checkpoint recognizes them better by the captions of"
            " other images than by their own ({count} of {measured} images compared).",
            {
                "images": listed(names, limits.most_copied),
                "count": len(names),
                "measured": len(fits),
            },
        ),
        advice=Message("Check whether their captions describe what they show."),
    )


def _stubborn_images(case: Case) -> Evidence | None:
    ratios = next(
        (one.per_image for one in reversed(case.measurements.steps) if one.per_image and one.step),
        {},
    )
    limits = case.thresholds
    if len(ratios) < limits.stubborn_images:
        return None
    middle = statistics.median(ratios.values())
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in ratios.values())
    limit = middle + max(limits.stubborn * (1 - middle), limits.stubborn_deviations * deviation)
    names = sorted(name for name, value in ratios.items() if value > limit)
    if middle >= 1 - limits.least_gain or not names:
        return None
    left = statistics.fmean(ratios[name] for name in names)
    return Evidence(
        sentence=Message(
            "{images}: {left:.0f} % of the checkpoint's loss is left, against {usual:.0f} % of the"
            " other images.",
            {
                "images": listed(names, limits.most_copied),
                "left": 100 * left,
                "usual": 100 * middle,
            },
        ),
        advice=Message(
            "Check whether their captions describe what they show, in the same words as the others."
        ),
    )


def _drift(case: Case) -> Evidence | None:
    values = [
        one.likeness for one in case.measurements.steps if one.likeness is not None and one.step
    ]
    if len(values) < case.thresholds.swing_saves:
        return None
    pairs = list(pairwise(values))
    falls = math.fsum(max(0.0, before - after) for before, after in pairs)
    rise = max(values) - min(values[0], 0.0)
    if rise <= case.thresholds.low_likeness or falls <= case.thresholds.drift * rise:
        return None
    return Evidence(
        sentence=Message(
            "The style of the previews drifts: from save to save their similarity to the training"
            " images falls by {falls:.2f} in total, and rises by {rise:.2f}.",
            {"falls": falls, "rise": rise},
        ),
        advice=Message("Check whether the captions use the same words for the same thing."),
    )


def likeness_low(case: Case) -> Evidence | None:
    """The loss fell, but the previews do not look like the training images."""
    config, limits = case.measurements.config, case.thresholds
    one = case.measurements.at(case.choice.step)
    gains = gain_shares(case.measurements.curve)
    if one.likeness is None or not one.has_base or not gains:
        return None
    if one.likeness > limits.low_likeness:
        return None
    if max(gains.values()) <= limits.learned:
        return None
    sentence = Message(
        "The loss fell by {gain:.0f} %, but the previews are no more similar to the training "
        "images than the checkpoint's own: {likeness:.2f}.",
        {"gain": 100 * max(gains.values()), "likeness": one.likeness},
    )
    if not config.dataset.trigger_word:
        return Evidence(
            sentence=sentence,
            advice=Message("Set a trigger word, so that prompts can activate the LoRA."),
        )
    if set(config.lora.target_modules) != set(UNET_TARGETS):
        return Evidence(
            sentence=sentence,
            advice=Message("Train all layers of the attention blocks (target_modules)."),
            changes={"target_modules": list(UNET_TARGETS)},
        )
    return Evidence(
        sentence=sentence,
        advice=Message(
            "Check whether the preview prompts contain the trigger word, as captions do."
        ),
    )


# --- the checkpoint -------------------------------------------------------------------------------


def base_spoiled(case: Case) -> Evidence | None:
    """Without any caption the LoRA changes what the checkpoint predicts by more than half."""
    config, change = (
        case.measurements.config,
        case.measurements.at(case.choice.step).unprompted_change,
    )
    if change is None or change <= case.thresholds.spoiled:
        return None
    sentence = Message(
        "Even without its trigger the LoRA changes the checkpoint's predictions by {share:.0f} %.",
        {"share": 100 * change},
    )
    if config.dataset.caption_dropout > 0:
        return Evidence(
            sentence=sentence,
            advice=Message("Train without caption dropout, which has this effect."),
            changes={"caption_dropout": 0.0},
        )
    lower = round_to(case.measurements.learning_rate / 2, 2)
    return Evidence(
        sentence=sentence,
        advice=Message("Try a learning rate of {lower:g}.", {"lower": lower}),
        changes={"learning_rate": lower},
    )


CONDITIONS: Mapping[str, Condition] = {
    "rate_too_high": Condition(find=rate_too_high),
    "texts_rate_too_high": Condition(find=texts_worse_than_base, data=("texts",)),
    "texts_overfit": Condition(
        find=texts_overfit, unless=("texts_rate_too_high",), data=("texts",)
    ),
    "overfit": Condition(find=overfit, section="images", unless=("rate_too_high",)),
    "copies": Condition(find=copies, section="images"),
    "captions_disagree": Condition(
        find=captions_disagree, section="captions", unless=("rate_too_high",)
    ),
    "too_few_steps": Condition(
        find=too_few_steps,
        unless=("rate_too_high", "texts_rate_too_high", "overfit", "texts_overfit", "copies"),
        data=("images", "texts"),
    ),
    "likeness_low": Condition(
        find=likeness_low, section="captions", unless=("rate_too_high", "too_few_steps")
    ),
    "detail_lost": Condition(
        find=detail_lost, unless=("rate_too_high", "overfit", "copies", "too_few_steps")
    ),
    "early_plateau": Condition(
        find=early_plateau,
        section="images",
        unless=("rate_too_high", "overfit", "copies", "detail_lost"),
    ),
    "base_spoiled": Condition(find=base_spoiled, unless=("rate_too_high",)),
}
"""Name -> condition, most important first."""


# --- words and numbers ----------------------------------------------------------------------------


def listed(names: Sequence[str], most: int) -> Message | str:
    """The names without folder and suffix, for a sentence: "img_07 and img_12". At most `most` are
    named.
    """
    shown = [PurePosixPath(name).stem or name for name in names]
    if len(shown) == 1:
        return shown[0]
    if len(shown) > most:
        return Message(
            "{names} and {count} more",
            {"names": ", ".join(shown[:most]), "count": len(shown) - most},
        )
    return Message("{names} and {last}", {"names": ", ".join(shown[:-1]), "last": shown[-1]})


def round_to(value: float, digits: int) -> float:
    """`value`, rounded to this many significant digits."""
    return float(f"{value:.{digits - 1}e}")
