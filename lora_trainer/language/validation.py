"""Losses of a language model's training, measured without dropout: of the same texts at each check,
of those that are trained on and of held-out ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from lora_trainer.dataset.held_out import MOST_MEASURED
from lora_trainer.language.objective import CompletionObjective
from lora_trainer.language.tokens import TokenRow
from lora_trainer.training.train import Trainer
from lora_trainer.training.validation import EFFORT, STRENGTHS, Check, evaluating


class TextValidation:
    """Measures the LoRA of a language model at any step of its run."""

    def __init__(
        self,
        trainer: Trainer,
        objective: CompletionObjective,
        training: Sequence[TokenRow],
        held_out: Sequence[TokenRow],
        *,
        rows_at_once: int,
    ) -> None:
        self.rows_at_once = rows_at_once
        self.fewest_steps = fewest_steps(trainer, len(training), len(held_out))
        self._trainer, self._objective = trainer, objective
        self._training, self._held_out = tuple(training), tuple(held_out)
        self._base: Mapping[str, float] = {}

    def check(self, between: Callable[[], None]) -> Check:
        """Measure now; before the first step, the base alone."""
        rows, whole = self._held_out or self._training, 1.0 if self._trainer.step else 0.0
        with self._trainer.weights_to_use():
            if not self._base:
                self._base = self._losses(self._training, 0.0, between)
            training = self._losses(self._training, 1.0, between) if whole else self._base
            compared = self._losses(rows, whole, between) if self._held_out else training
            others = {
                one: self._losses(rows, one, between) for one in STRENGTHS if whole and one != whole
            }
            by_strength = {f"{one:g}": _mean(others.get(one, compared)) for one in STRENGTHS}
        return Check(
            training_loss=_mean(training),
            validation_loss=_mean(compared) if self._held_out else None,
            by_strength=by_strength,
            per_image={
                name: loss / self._base[name]
                for name, loss in training.items()
                if self._base[name] and math.isfinite(loss / self._base[name])
            },
        )

    def _losses(
        self, rows: Sequence[TokenRow], strength: float, between: Callable[[], None]
    ) -> dict[str, float]:
        """Row -> its loss with the LoRA at this strength."""
        objective, trainer, found = self._objective, self._trainer, dict[str, float]()
        for start in range(0, len(rows), self.rows_at_once):
            between()
            piece = rows[start : start + self.rows_at_once]
            with (
                torch.inference_mode(),
                evaluating([objective.model]),
                trainer.precision(),
                trainer.adapters.strength(strength),
            ):
                losses = objective.loss(piece)
            found.update(zip((row.name for row in piece), losses.tolist(), strict=True))
        return found


def fewest_steps(trainer: Trainer, training: int, held_out: int) -> int:
    """Steps between two checks, so that a check costs a small part of them."""
    passes = training + (held_out or training) * len(STRENGTHS)
    rows_per_step = trainer.settings.batch_size * trainer.settings.gradient_accumulation_steps
    return math.ceil(passes / EFFORT / rows_per_step)


def make_validation(
    trainer: Trainer, objective: CompletionObjective, held_out: Sequence[TokenRow]
) -> TextValidation | None:
    """The checks of this run, of the first rows; None if it is shorter than a check costs."""
    training = objective.rows[:MOST_MEASURED]
    settings = trainer.settings
    made = TextValidation(
        trainer,
        objective,
        training,
        held_out[:MOST_MEASURED],
        rows_at_once=settings.batch_size,
    )
    return made if trainer.plan.step_count >= made.fewest_steps else None


def _mean(losses: Mapping[str, float]) -> float:
    return math.fsum(losses.values()) / len(losses)
