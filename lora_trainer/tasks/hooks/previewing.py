"""Preview images: periodically, on request, and at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from lora_trainer.families.base import TextStates
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.tasks.hooks import TrainingHook
from lora_trainer.training import preview
from lora_trainer.training.device import free_memory, is_out_of_memory
from lora_trainer.training.loop import Loop
from lora_trainer.training.optimizers import weights_to_use
from lora_trainer.training.train import StepResult, Trainer

log = logging.getLogger(__name__)


class Previewing(TrainingHook):
    """Generates the preview images."""

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

    def make(self, strengths: tuple[float, ...] | None = None) -> list[events.Previewed]:
        """Generate every prompt at every strength (default: those in the settings). Out of memory
        is only a warning.
        """
        report, trainer, config = self.run.report, self.run.trainer, self.run.prepared.config
        if strengths is not None:
            config = config.replace(sample_strengths=strengths)
        prompts = self.run.prepared.sample_prompts
        report.phase("previewing", len(prompts) * len(config.samples.sample_strengths))
        made: list[events.Previewed] = []
        side = config.samples.sample_size or 512
        try:
            with self.run.prepared.vae(), trainer.precision(), weights_to_use(trainer.optimizer):
                pictures = preview.make_pictures(
                    self.run.prepared.parts,
                    trainer.adapters,
                    prompts,
                    self._states,
                    config.samples,
                    size=(side, side),
                    name=self.run.prepared.name,
                    model_name=self.run.prepared.checkpoint.title,
                    stop_asked=report.stop_asked,
                )
                for number, picture in enumerate(pictures):
                    made.append(self._write(number, picture))
                    report.part_done(number + 1)
                    self.run.control.pause_if_asked(trainer)
        except preview.Abandoned:
            log.info("previews abandoned: stop requested")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            report.warn(
                "there was no memory for the previews of step {step}; the training continues",
                hint="A smaller sample_size needs less.",
                step=trainer.step,
            )
            free_memory(trainer.device)
        report.phase("training", trainer.plan.step_count)
        return made

    def _write(self, number: int, picture: preview.PreviewImage) -> events.Previewed:
        step, folder = self.run.trainer.step, self.run.folder
        target = folder.previews / f"step{step:08d}-{number:02d}-strength{picture.strength:.2f}.png"
        preview.write_picture(picture, target)
        event = events.Previewed(
            step=step,
            file=folder.relative(target),
            prompt=picture.prompt,
            strength=picture.strength,
        )
        self.run.report.say(event)
        return event

    def _states(self, text: str) -> TextStates:
        with torch.no_grad():
            return self.run.captions.states([text]).detach()

    def make_final(self, strength: float) -> list[events.Previewed]:
        """Generate the final previews. Without prompts, only one at `strength`, for the LoRA's
        card.
        """
        output, samples = self.run.prepared.config.output, self.run.prepared.config.samples
        if not samples.sample_prompts and output.lora_dir is None:
            return []
        return self.make(None if samples.sample_prompts else (strength,))


def card_of(folder: RunFolder, made: Sequence[events.Previewed], strength: float) -> Path | None:
    """The preview for the LoRA's card: the one nearest to the recommended strength."""
    best = min(
        (event for event in made if event.strength),
        key=lambda event: abs(event.strength - strength),
        default=None,
    )
    return folder.path / best.file if best else None
