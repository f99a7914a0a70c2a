"""What a training writes: LoRAs and resume points, and the copy of the finished LoRA.

The layout of a LoRA on disk is a subclass's: one file for a WebUI (lora_file_output.py), a folder
for a language model (peft_output.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.dataset.scan import Example
from lora_trainer.errors import TrainingError
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import RunConfig
from lora_trainer.tasks.provenance import Provenance
from lora_trainer.tasks.report import Report
from lora_trainer.training import resume
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class LoraOutput(ABC):
    """Writes the trained adapters. `config` is resolved."""

    folder: RunFolder
    report: Report
    config: RunConfig
    provenance: Provenance

    @property
    @abstractmethod
    def final_file(self) -> Path:
        """The LoRA of a finished run."""

    @abstractmethod
    def saved_file(self, step: int) -> Path:
        """The LoRA of a saved step."""

    @abstractmethod
    def saved_files(self) -> Sequence[Path]:
        """The LoRAs of all saved steps, oldest first."""

    @abstractmethod
    def write(self, trainer: Trainer, target: Path, *, finished: bool) -> bool:
        """Write and verify a LoRA. Returns whether it has an effect. Raises LoraFileError."""

    @abstractmethod
    def remove(self, saved: Path) -> None:
        """Delete a LoRA and what belongs to it, as far as possible."""

    @abstractmethod
    def keep_earlier_result(self, step_count: int) -> None:
        """When a finished run is continued to `step_count`, keep its final LoRA as a saved step."""

    @abstractmethod
    def deliver(self, target: Path, card: Path | None, strength: float) -> Path | None:
        """Copy the LoRA into lora_dir, with `card` as its preview and `strength` as its preferred
        weight. Returns the copy; None if not configured, or if it failed.
        """

    @property
    def images(self) -> Sequence[Example]:
        """The training images, for the report; none if it is not trained on images."""
        return ()

    @abstractmethod
    def add_metadata(self, target: Path, values: Mapping[str, str]) -> None:
        """Add to the metadata of a written LoRA. Raises OSError."""

    def save(self, trainer: Trainer) -> Path:
        """Write a LoRA and its resume point. Returns the LoRA."""
        self.report.phase("saving")
        target = self.saved_file(trainer.step)
        self._export(trainer, target)
        self.write_state(trainer)
        self.report.write(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        keep = self.config.output.keep_last
        if keep is not None:
            for old in self.saved_files()[:-keep]:
                self.remove(old)
        return target

    def save_final(self, trainer: Trainer) -> Path:
        """Write the final LoRA and its resume point. Raises TrainingError if nothing was
        learned.
        """
        self.report.phase("exporting")
        target = self.final_file
        self._export(trainer, target, finished=True)
        self.write_state(trainer)
        self.report.write(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        return target

    def write_state(self, trainer: Trainer) -> None:
        """Write the resume point."""
        resume.write_state(
            self.folder.state, {**trainer.state_dict(), "provenance": self.provenance.to_mapping()}
        )

    def _export(self, trainer: Trainer, target: Path, *, finished: bool = False) -> None:
        """Write and verify the LoRA. Raises TrainingError if a finished one has no effect."""
        with trainer.weights_to_use():
            has_effect = self.write(trainer, target, finished=finished)
        if not has_effect and finished:
            self.remove(target)
            template = "after {count} steps the LoRA changes nothing: it has learned nothing"
            if trainer.step == 1:
                template = "after its only step the LoRA changes nothing"
            hint = (
                "Check that learning_rate is above 0, and that lr_warmup_steps is not nearly the"
                " whole run."
            )
            raise TrainingError(template, hint=hint, count=trainer.step)
        if not has_effect and trainer.step:
            self.report.warn(
                "the LoRA at step {step} changes nothing yet: it has learned nothing",
                hint="Check that learning_rate is above 0.",
                step=trainer.step,
            )
