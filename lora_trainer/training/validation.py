"""Losses under fixed noise: what a LoRA has learned, without the noise of the training loss.

    fixed_batches(...)                    images -> FixedBatches, the same in every run of a seed
    FixedNoiseValidation(trainer, ...).check(...)   -> Check, at any step

Each image is asked for at LEVELS noise levels, one from each quarter of the levels that training
draws from, always with the same noise. So the losses of two steps differ by what was learned
between them only. The loss is the squared error without weighting, dropout or noise offset;
nothing is drawn from a global generator and no weight changes, so training goes on as without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.held_out import MOST_MEASURED
from lora_trainer.dataset.scan import Example
from lora_trainer.families.base import NoiseProcess
from lora_trainer.training.batches import EncodedImages
from lora_trainer.training.caption_fit import caption_fit
from lora_trainer.training.denoising import DenoisingObjective
from lora_trainer.training.randomness import tensor_generator
from lora_trainer.training.train import Trainer

LEVELS = 4
STRENGTHS = (0.5, 0.75, 1.0, 1.25)
FEWEST_MEASURED = 2
EFFORT = 0.4
"""Forward passes spent on checks for each image that is trained, whose pass forward and back costs
about three: a check costs at most about an eighth of the training since the one before.
"""
PASSES_PER_IMAGE = LEVELS
"""At a check, for an image that is only looked at with its caption and at strength 1."""
PASSES_PER_COMPARED_IMAGE = LEVELS + LEVELS // 2 * len(STRENGTHS)
"""The same for one that is looked at with other strengths and without its caption too."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many images a check measures."""

    training: int
    held_out: int


def amounts(trained_between: float, training: int, held_out: int) -> Amounts | None:
    """As many of the images as EFFORT allows, with `trained_between` images trained from one check
    to the next; None if even the fewest would cost more.
    """
    budget = trained_between * EFFORT
    if budget < least_passes(training, held_out):
        return None
    per_pair = PASSES_PER_IMAGE + PASSES_PER_COMPARED_IMAGE
    if not held_out:
        return Amounts(
            training=min(training, _within(budget / PASSES_PER_COMPARED_IMAGE)), held_out=0
        )
    held_out = min(held_out, _within(budget / per_pair))
    left = budget - held_out * PASSES_PER_COMPARED_IMAGE
    return Amounts(training=min(training, _within(left / PASSES_PER_IMAGE)), held_out=held_out)


def images_between(training: int, held_out: int) -> float:
    """Images that are trained from one check of the smallest size to the next."""
    return least_passes(training, held_out) / EFFORT


def least_passes(training: int, held_out: int) -> int:
    """Forward passes of the smallest check."""
    if not held_out:
        return min(FEWEST_MEASURED, training) * PASSES_PER_COMPARED_IMAGE
    return (
        min(FEWEST_MEASURED, training) * PASSES_PER_IMAGE
        + min(FEWEST_MEASURED, held_out) * PASSES_PER_COMPARED_IMAGE
    )


def _within(count: float) -> int:
    return max(FEWEST_MEASURED, min(MOST_MEASURED, int(count)))


# --- what is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FixedBatch:
    """Images of one size at fixed noise levels, one row each, on the CPU."""

    latents: torch.Tensor
    """(B, C, h, w)."""
    noise: torch.Tensor
    """(B, C, h, w)."""
    times: torch.Tensor
    """(B,), as the family's noise process has them."""
    size_conditions: torch.Tensor
    """(B, 6)."""
    captions: tuple[str, ...]
    names: tuple[str, ...]
    """Of the images."""
    halved: torch.Tensor
    """(B,), bool: the rows of `half`."""

    def __len__(self) -> int:
        return len(self.names)

    def half(self) -> FixedBatch:
        """Half of the rows: of one image the even noise levels, of the next the odd ones."""
        return self._rows(self.halved.nonzero().flatten().tolist())

    def without_captions(self) -> FixedBatch:
        return dataclasses.replace(self, captions=("",) * len(self))

    def with_captions(self, captions: Mapping[str, str]) -> FixedBatch:
        """With other captions, by the images' names."""
        return dataclasses.replace(self, captions=tuple(captions[name] for name in self.names))

    def pieces(self, size: int) -> Iterator[FixedBatch]:
        """The batch in batches of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self._rows(range(start, min(start + size, len(self))))

    def _rows(self, rows: Sequence[int]) -> FixedBatch:
        index = torch.tensor(list(rows))
        return FixedBatch(
            latents=self.latents[index],
            noise=self.noise[index],
            times=self.times[index],
            size_conditions=self.size_conditions[index],
            captions=tuple(self.captions[row] for row in rows),
            names=tuple(self.names[row] for row in rows),
            halved=self.halved[index],
        )


def fixed_batches(
    examples: Sequence[Example],
    images: EncodedImages,
    chosen: Sequence[int],
    noise_process: NoiseProcess,
    seed: int,
    purpose: str,
) -> list[FixedBatch]:
    """The chosen images at LEVELS noise levels each, one batch a size. Noise and levels follow from
    seed, purpose and an image's place among the chosen ones. Of several captions, the first.
    """
    sizes: dict[tuple[int, ...], list[FixedBatch]] = {}
    for place, index in enumerate(chosen):
        moments, size_condition = images.get(index, mirrored=False)
        latents = moments.chunk(2)[0].expand(LEVELS, -1, -1, -1)
        generator = tensor_generator(seed, purpose, place)
        batch = FixedBatch(
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            times=noise_process.quantiles(_stratified(generator), tuple(latents.shape)),
            size_conditions=size_condition.expand(LEVELS, -1),
            captions=(variants(examples[index].caption)[0],) * LEVELS,
            names=(examples[index].name,) * LEVELS,
            halved=torch.arange(LEVELS) % 2 == place % 2,
        )
        sizes.setdefault(tuple(latents.shape), []).append(batch)
    return [_joined(batches) for batches in sizes.values()]


def _stratified(generator: torch.Generator) -> torch.Tensor:
    """One random number from each of LEVELS equal parts of (0, 1)."""
    shares = (torch.arange(LEVELS) + torch.rand(LEVELS, generator=generator)) / LEVELS
    return shares.clamp(1e-4, 1 - 1e-4)


def _joined(batches: Sequence[FixedBatch]) -> FixedBatch:
    return FixedBatch(
        latents=torch.cat([batch.latents for batch in batches]),
        noise=torch.cat([batch.noise for batch in batches]),
        times=torch.cat([batch.times for batch in batches]),
        size_conditions=torch.cat([batch.size_conditions for batch in batches]),
        captions=tuple(caption for batch in batches for caption in batch.captions),
        names=tuple(name for batch in batches for name in batch.names),
        halved=torch.cat([batch.halved for batch in batches]),
    )


# --- what is answered -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Predictions and losses for batches: one tensor a batch, float32 on the CPU."""

    predictions: tuple[torch.Tensor, ...]
    losses: tuple[torch.Tensor, ...]

    def half(self, batches: Sequence[FixedBatch]) -> Answers:
        """The answers for the batches' halves."""
        halved = [batch.halved for batch in batches]
        return Answers(
            predictions=tuple(
                one[rows] for one, rows in zip(self.predictions, halved, strict=True)
            ),
            losses=tuple(one[rows] for one, rows in zip(self.losses, halved, strict=True)),
        )

    @property
    def loss(self) -> float:
        return float(torch.cat(self.losses).double().mean())

    def by_image(self, batches: Sequence[FixedBatch]) -> dict[str, float]:
        """Image -> the mean of its losses."""
        return means_by_image(self.losses, batches)

    def change_from(self, base: Answers) -> float:
        """RMS of the predictions' differences, relative to the RMS of the base's."""
        pairs = list(zip(self.predictions, base.predictions, strict=True))
        difference = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
        size = sum(float(theirs.square().sum()) for _, theirs in pairs)
        return math.sqrt(difference / size) if size else 0.0


def means_by_image(
    values: Iterable[torch.Tensor], batches: Sequence[FixedBatch]
) -> dict[str, float]:
    """One tensor a batch, one value a row -> the mean of each image's rows."""
    found: dict[str, list[float]] = {}
    for batch, rows in zip(batches, values, strict=True):
        for name, value in zip(batch.names, rows.tolist(), strict=True):
            found.setdefault(name, []).append(value)
    return {name: math.fsum(rows) / len(rows) for name, rows in found.items()}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The measurements of one step, as in events.Validated."""

    training_loss: float
    validation_loss: float | None
    by_strength: Mapping[str, float]
    unprompted_change: float | None = None
    prompted_change: float | None = None
    per_image: Mapping[str, float]
    caption_fit: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The answers at strength 0."""

    training: Answers
    compared: Answers
    unprompted: Answers


class Validation(Protocol):
    """Measures the LoRA of a trainer at any step of its run."""

    rows_at_once: int
    """The largest batch."""
    fewest_steps: int
    """Steps to be trained from one check to the next."""

    def check(self, between: Callable[[], None]) -> Check:
        """Measure now; before the first step, the base alone, also if the adapters begin with a
        LoRA. `between` is called between batches, with everything as in training but for the
        averaged weights of a schedule-free optimizer.
        """


class FixedNoiseValidation:
    """The validation of a training on images."""

    def __init__(
        self,
        trainer: Trainer,
        objective: DenoisingObjective,
        training: Sequence[FixedBatch],
        held_out: Sequence[FixedBatch],
        models: Sequence[torch.nn.Module],
        *,
        captioned: Sequence[FixedBatch] = (),
        other_captions: Sequence[Mapping[str, str]] = (),
        rows_at_once: int,
        fewest_steps: int,
    ) -> None:
        """models: those with adapters, put into evaluation mode for each check. captioned: images
        whose captions are compared with each of other_captions, {image: caption}. rows_at_once: the
        largest batch.
        """
        self.rows_at_once = rows_at_once
        self.fewest_steps = fewest_steps
        """Steps to be trained from one check to the next."""
        self._trainer, self._objective = trainer, objective
        self._training, self._held_out = tuple(training), tuple(held_out)
        self._models = tuple(models)
        self._compared = self._held_out or self._training
        self._halves = tuple(batch.half() for batch in self._compared)
        self._unprompted = tuple(batch.without_captions() for batch in self._halves)
        self._captioned, self._other_captions = tuple(captioned), tuple(other_captions)
        self._base: _Base | None = None

    def check(self, between: Callable[[], None]) -> Check:
        """Measure now. `between` is called between batches, with everything as in training but for
        averaged weights.
        """
        with self._trainer.weights_to_use():
            if self._base is None:
                self._base = self._measure_base(between)
            base = self._base
            if not self._trainer.step:
                return dataclasses.replace(
                    self._conclude(base, base.training, base.compared, base.unprompted, {}),
                    caption_fit=self._caption_fit(between),
                )
            training = self._ask(self._training, 1.0, between)
            compared = self._ask(self._held_out, 1.0, between) if self._held_out else training
            losses = {
                strength: self._ask(self._halves, strength, between).loss
                for strength in STRENGTHS
                if strength != 1.0
            }
            unprompted = self._ask(self._unprompted, 1.0, between)
            return self._conclude(base, training, compared, unprompted, losses)

    def _measure_base(self, between: Callable[[], None]) -> _Base:
        training = self._ask(self._training, 0.0, between)
        return _Base(
            training=training,
            compared=self._ask(self._held_out, 0.0, between) if self._held_out else training,
            unprompted=self._ask(self._unprompted, 0.0, between),
        )

    def _caption_fit(self, between: Callable[[], None]) -> dict[str, float]:
        """Image -> caption_fit of the checkpoint, the mean over its noise levels."""
        if not self._other_captions:
            return {}
        own = self._ask(self._captioned, 0.0, between).losses
        others = [
            self._ask([batch.with_captions(each) for batch in self._captioned], 0.0, between).losses
            for each in self._other_captions
        ]
        fits = (caption_fit(*pair) for pair in zip(own, zip(*others, strict=True), strict=True))
        return _finite(means_by_image(fits, self._captioned))

    def _conclude(
        self,
        base: _Base,
        training: Answers,
        compared: Answers,
        unprompted: Answers,
        losses: Mapping[float, float],
    ) -> Check:
        """losses: of the halves, by strength; those missing are the same as at strength 1."""
        half = compared.half(self._compared)
        by_strength = {f"{one:g}": losses.get(one, half.loss) for one in STRENGTHS}
        before = base.training.by_image(self._training)
        per_image = {
            name: loss / before[name]
            for name, loss in training.by_image(self._training).items()
            if before[name]
        }
        return Check(
            training_loss=training.loss,
            validation_loss=compared.loss if self._held_out else None,
            by_strength=_finite(by_strength),
            unprompted_change=unprompted.change_from(base.unprompted),
            prompted_change=half.change_from(base.compared.half(self._compared)),
            per_image=_finite(per_image),
        )

    def _ask(
        self, batches: Sequence[FixedBatch], strength: float, between: Callable[[], None]
    ) -> Answers:
        predictions, losses = [], []
        for batch in batches:
            answers = []
            for piece in batch.pieces(self.rows_at_once):
                between()
                answers.append(self._predict(piece, strength))
            predictions.append(torch.cat([prediction for prediction, _ in answers]))
            losses.append(torch.cat([loss for _, loss in answers]))
        return Answers(predictions=tuple(predictions), losses=tuple(losses))

    def _predict(self, batch: FixedBatch, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions (B, C, h, w) and losses (B,), float32 on the CPU."""
        trainer, objective = self._trainer, self._objective
        latents, noise, times, sizes = (
            tensor.to(objective.device)
            for tensor in (batch.latents, batch.noise, batch.times, batch.size_conditions)
        )
        with (
            torch.inference_mode(),
            evaluating(self._models),
            trainer.precision(),
            trainer.adapters.strength(strength),
        ):
            text = objective.captions.states(batch.captions).to(objective.device)
            noisy = objective.noise_process.add_noise(latents, noise, times)
            target = objective.noise_process.target(latents, noise, times)
            predicted = objective.family.predict(objective.unet, noisy, times, text, sizes).float()
            losses = (predicted - target.float()).square().flatten(1).mean(1)
            return predicted.cpu(), losses.cpu()


@contextlib.contextmanager
def evaluating(models: Sequence[torch.nn.Module]) -> Iterator[None]:
    """The models in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}
