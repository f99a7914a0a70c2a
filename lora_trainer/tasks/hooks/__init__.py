"""Hooks around the steps of a training: one module each, with a subclass of TrainingHook.

reporting.py     progress, TensorBoard, skipped steps
saving.py        LoRA files and resume points
previewing.py    samples: preview images, answers
validating.py    losses under fixed noise, and early stopping
"""

from __future__ import annotations

import sys
from typing import ClassVar

from lora_trainer.tasks.base import defined_in
from lora_trainer.tasks.training_run import TrainingRun
from lora_trainer.training.loop import Hook
from lora_trainer.training.train import Trainer


class TrainingHook(Hook[Trainer]):
    """A hook of the training loop, created once the trainer exists."""

    place: ClassVar[int] = 100
    """Hooks are called in this order; those with the same value, in order of module names."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    @classmethod
    def fits(cls, run: TrainingRun) -> bool:
        """Whether the hook is for a training of this kind."""
        return True


def hooks_of(run: TrainingRun) -> list[TrainingHook]:
    """All hooks, for this run."""
    found = sorted(defined_in(sys.modules[__name__], TrainingHook), key=lambda hook: hook.place)
    return [hook(run) for hook in found if hook.fits(run)]
