"""Losses under fixed noise: before the first step, and after saves; and early stopping by them."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import ClassVar

from lora_trainer.errors import Message
from lora_trainer.runs import events
from lora_trainer.tasks.hooks import TrainingHook
from lora_trainer.tasks.training_run import TrainingRun
from lora_trainer.training.device import free_memory, is_out_of_memory
from lora_trainer.training.loop import EndedEarly, Loop, StopRequested
from lora_trainer.training.train import Trainer
from lora_trainer.training.validation import Check, Validation

log = logging.getLogger(__name__)


class Validating(TrainingHook):
    """Measures, and ends a training whose validation loss no longer falls."""

    place: ClassVar[int] = 30

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(run)
        assert run.validation is not None
        self._validation: Validation = run.validation
        # of the run's earlier workers, up to the resume point
        self._checks = list(run.folder.read_state().validations)

    @classmethod
    def fits(cls, run: TrainingRun) -> bool:
        return run.validation is not None

    def before_first_step(self, loop: Loop[Trainer]) -> None:
        if not loop.work.step:
            self._check(loop.work)

    def after_save(self, loop: Loop[Trainer], file: Path) -> None:
        if self._is_due(loop.work) and not self.run.report.stop_asked():
            self._check(loop.work)

    def before_step(self, loop: Loop[Trainer]) -> None:
        patience = self.run.prepared.config.validation.early_stopping
        if not patience:
            return
        known = [
            (one.validation_loss, one.step)
            for one in self._checks
            if one.validation_loss is not None
        ]
        if not known:
            return
        loss, best = min(known)
        since = [step for _, step in known if step > best]
        if len(since) >= patience:
            raise EndedEarly(
                Message(
                    "training ended at step {step} of {count}: the validation loss has not fallen"
                    " below {loss} of step {best} in {patience} saves",
                    {
                        "step": loop.work.step,
                        "count": loop.work.plan.step_count,
                        "loss": f"{loss:.4f}",
                        "best": best,
                        "patience": len(since),
                    },
                )
            )

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether enough was trained since the check before; the end is always due."""
        steps = trainer.step - max((one.step for one in self._checks), default=0)
        return steps > 0 and (trainer.is_over or steps >= self._validation.fewest_steps)

    def _check(self, trainer: Trainer) -> None:
        """Measure now. Out of memory is only a warning; a stop leaves the check undone."""
        report, start = self.run.report, time.perf_counter()
        report.phase("validating")
        try:
            found = self._validation.check(self._handle_requests)
        except StopRequested:
            log.info("check of step %d abandoned: stop requested", trainer.step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._validation.rows_at_once = 1
            report.warn(
                "not enough memory to validate step {step}; the training continues",
                hint="Later steps are validated with less memory, one image at a time.",
                step=trainer.step,
            )
            free_memory(trainer.device)
        else:
            self._write(trainer.step, found, time.perf_counter() - start)
        report.phase("training", trainer.plan.step_count)

    def _handle_requests(self) -> None:
        self.run.control.check(self.run.trainer)

    def _write(self, step: int, found: Check, seconds: float) -> None:
        event = events.Validated(step=step, seconds=seconds, **dataclasses.asdict(found))
        self._checks = [*(one for one in self._checks if one.step < step), event]
        self.run.report.write(event)
        curves = {"loss/training_fixed": event.training_loss}
        self.run.scalars.write(step, {**curves, "loss/validation": event.validation_loss})
