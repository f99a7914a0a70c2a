"""Preview images as the samples of a training, and their measurement."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from lora_trainer.errors import Message
from lora_trainer.families.base import TextStates
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import SampleSettings
from lora_trainer.tasks.images import PreparedImages
from lora_trainer.tasks.preview_measures import PreviewMeasures
from lora_trainer.tasks.training_run import Samples
from lora_trainer.training import batches, preview
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class Previews(Samples):
    """Makes preview images."""

    prepared: PreparedImages
    captions: batches.CaptionEncoder
    folder: RunFolder
    measures: PreviewMeasures

    memory_hint = Message("A smaller sample_size needs less.")

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.prepared.sample_prompts

    def make(
        self, trainer: Trainer, settings: SampleSettings, stop_asked: Callable[[], bool]
    ) -> Generator[events.Event, None, None]:
        side = settings.sample_size or 512
        with self.prepared.vae(), self.prepared.base_as_it_is():
            images = preview.make_previews(
                self.prepared.parts,
                trainer.adapters,
                self.prompts,
                self._states,
                settings,
                size=(side, side),
                name=self.prepared.name,
                model_name=self.prepared.checkpoint.title,
                stop_asked=stop_asked,
            )
            made: list[preview.PreviewImage] = []
            for number, image in enumerate(images):
                made.append(image)
                yield self._write(trainer.step, number, image)
        yield from self.measures.measure(trainer.step, made, stop_asked)

    def _write(self, step: int, number: int, image: preview.PreviewImage) -> events.Previewed:
        folder = self.folder
        target = folder.previews / f"step{step:08d}-{number:02d}-strength{image.strength:.2f}.png"
        preview.write_preview(image, target)
        return events.Previewed(
            step=step,
            file=folder.relative(target),
            prompt=image.prompt,
            strength=image.strength,
        )

    def _states(self, text: str) -> TextStates:
        with torch.no_grad():
            return self.captions.states([text]).detach()
