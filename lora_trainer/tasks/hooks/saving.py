"""LoRA files and resume points: periodically in steps or epochs, and on request."""

from __future__ import annotations

from typing import ClassVar

from lora_trainer import files
from lora_trainer.errors import LoraFileError
from lora_trainer.tasks.hooks import TrainingHook
from lora_trainer.training.loop import Loop
from lora_trainer.training.train import StepResult, Trainer


class Saving(TrainingHook):
    """Saves, and calls the other hooks' after_save."""

    place: ClassVar[int] = 10

    def after_step(self, loop: Loop[Trainer], result: StepResult) -> None:
        if not loop.work.is_over and self._is_due(loop.work):
            self._save_if_possible(loop)

    def on_request(self, loop: Loop[Trainer], kind: str) -> None:
        if kind == "save":
            self.save(loop)

    def save(self, loop: Loop[Trainer]) -> None:
        """Save now."""
        loop.saved(self.run.output.save(loop.work))
        self.run.report.phase("training", loop.work.plan.step_count)

    def _is_due(self, trainer: Trainer) -> bool:
        output, plan = self.run.prepared.config.output, trainer.plan
        epochs, rest = divmod(trainer.step, plan.steps_per_epoch)
        by_epoch = output.save_epochs is not None and not rest and epochs % output.save_epochs == 0
        assert output.save_steps is not None
        return by_epoch or trainer.step % output.save_steps == 0

    def _save_if_possible(self, loop: Loop[Trainer]) -> None:
        """Save between steps. A full disk is only a warning: there may be space at the next
        save.
        """
        try:
            self.save(loop)
        except (OSError, LoraFileError) as error:
            if not files.is_disk_full(error):
                raise
            self.run.report.warn(
                "step {step} could not be saved: the disk is full",
                hint="Training continues. Free some space before the next save.",
                step=loop.work.step,
            )
            self.run.report.phase("training", loop.work.plan.step_count)
