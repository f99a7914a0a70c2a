"""Progress events and TensorBoard curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_trainer.runs import events
from lora_trainer.tasks.hooks import TrainingHook
from lora_trainer.tasks.training_run import TrainingRun
from lora_trainer.training.device import peak_memory
from lora_trainer.training.loop import Loop
from lora_trainer.training.optimizers import rates_in_use
from lora_trainer.training.train import StepResult, Trainer


@dataclass
class TrainingPace:
    """Exponential moving average of the speed over about ten steps, without saves, previews and
    pauses.
    """

    seconds_per_step: float = 0.0
    images_per_second: float = 0.0

    def add(self, result: StepResult) -> None:
        weight = 0.1 if self.seconds_per_step else 1.0
        self.seconds_per_step += weight * (result.seconds - self.seconds_per_step)
        self.images_per_second += weight * (
            len(result.losses) / result.seconds - self.images_per_second
        )


class Reporting(TrainingHook):
    """Reports each step."""

    place: ClassVar[int] = 0

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(run)
        self.pace = TrainingPace()

    def after_step(self, loop: Loop[Trainer], result: StepResult) -> None:
        if result.skipped:
            self._warn_of_skipped(loop.work, result)
        self._report_progress(loop.work, result)

    def _warn_of_skipped(self, trainer: Trainer, result: StepResult) -> None:
        hint = (
            "If this continues, training stops. Nothing was learned yet, so learning_rate is "
            "not the cause."
        )
        if trainer.has_learned:
            hint = (
                "If this continues, training stops. Lower learning_rate, or set mixed_precision"
                " to no."
            )
        template = "step {step} was skipped: its {what} is NaN or infinite"
        self.run.report.warn(template, hint=hint, step=trainer.step, what=result.skipped)

    def _report_progress(self, trainer: Trainer, result: StepResult) -> None:
        self.pace.add(result)
        rates = rates_in_use(trainer.optimizer)
        memory = peak_memory(trainer.device)
        self.run.report.write(
            events.Progress(
                step=trainer.step,
                epoch=trainer.epoch,
                loss=result.loss,
                smoothed_loss=trainer.smoothed_loss.value,
                learning_rate=next(iter(rates.values())),
                images_per_second=self.pace.images_per_second,
                seconds_left=self.pace.seconds_per_step * (trainer.plan.step_count - trainer.step),
                memory=memory,
            )
        )
        curves = {
            "loss": result.loss,
            "loss/smoothed": trainer.smoothed_loss.value,
            "gradient_norm": result.gradient_norm,
        }
        self.run.scalars.write(
            trainer.step,
            {
                **curves,
                **{f"learning_rate/{name}": rate for name, rate in rates.items()},
                "images_per_second": self.pace.images_per_second,
                "memory_gb": memory / 1e9,
            },
        )
