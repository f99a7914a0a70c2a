"""Samples of what the adapters do (previews, answers): periodically, on request, and at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.tasks.hooks import TrainingHook
from lora_trainer.training.device import free_memory, is_out_of_memory
from lora_trainer.training.loop import Abandoned, Loop
from lora_trainer.training.train import StepResult, Trainer

log = logging.getLogger(__name__)


class Previewing(TrainingHook):
    """Makes the samples."""

    place: ClassVar[int] = 20

    def after_step(self, loop: Loop[Trainer], result: StepResult) -> None:
        samples = self.run.prepared.config.samples
        if (
            samples.sample_prompts
            and samples.sample_every
            and loop.work.step % samples.sample_every == 0
            and not loop.work.is_over
        ):
            self.make()

    def on_request(self, loop: Loop[Trainer], kind: str) -> None:
        if kind == "preview":
            self.make()

    def make(self, strengths: tuple[float, ...] | None = None) -> list[events.Event]:
        """Make a sample for every prompt at every strength (default: those in the settings). Out of
        memory is only a warning.
        """
        report, trainer, samples = self.run.report, self.run.trainer, self.run.samples
        settings = self.run.prepared.config.samples
        if strengths is not None:
            settings = dataclasses.replace(settings, sample_strengths=strengths)
        total = len(samples.prompts) * len(settings.sample_strengths)
        report.phase("previewing", total)
        made: list[events.Event] = []
        try:
            with (
                trainer.precision(),
                trainer.weights_to_use(),
                contextlib.closing(samples.make(trainer, settings, report.stop_asked)) as found,
            ):
                for event in found:
                    report.write(event)
                    made.append(event)
                    report.part_done(min(len(made), total))
                    self.run.control.pause_if_asked(trainer)
        except Abandoned:
            log.info("previews abandoned: stop requested")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            report.warn(
                "not enough memory for the previews of step {step}; the training continues",
                hint=samples.memory_hint,
                step=trainer.step,
            )
            free_memory(trainer.device)
        report.phase("training", trainer.plan.step_count)
        return made

    def make_final(self, strength: float) -> list[events.Event]:
        """Make the final samples. Without prompts, only one at `strength`, for the LoRA's card."""
        output, samples = self.run.prepared.config.output, self.run.prepared.config.samples
        if not samples.sample_prompts and output.lora_dir is None:
            return []
        return self.make(None if samples.sample_prompts else (strength,))


def card_of(folder: RunFolder, made: Sequence[events.Event], strength: float) -> Path | None:
    """The preview for the LoRA's card: the one nearest to the recommended strength."""
    best = min(
        (event for event in made if isinstance(event, events.Previewed) and event.strength),
        key=lambda event: abs(event.strength - strength),
        default=None,
    )
    return folder.path / best.file if best else None
