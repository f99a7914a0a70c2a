"""What is done around the steps of a training: one module a hook, each a subclass of TrainingHook.
Another hook (a measurement after each save, say) is another module here, and nothing else.

    reporting.py     progress, curves, steps that were left out
    saving.py        LoRA files and resume points
    previewing.py    pictures
"""

from __future__ import annotations

import sys
from typing import ClassVar

from lora_trainer.tasks.base import defined_in
from lora_trainer.tasks.training_run import TrainingRun
from lora_trainer.training.loop import Hook
from lora_trainer.training.train import Trainer


class TrainingHook(Hook[Trainer]):
    """A hook of the training's loop, made once the trainer is there."""

    place: ClassVar[int] = 100
    """Hooks are called in this order; those of the same place, by the names of their modules."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run


def hooks_of(run: TrainingRun) -> list[TrainingHook]:
    """Every hook there is, for this run."""
    found = sorted(defined_in(sys.modules[__name__], TrainingHook), key=lambda hook: hook.place)
    return [hook(run) for hook in found]
