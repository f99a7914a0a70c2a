"""Writes a training's LoRA files and resume points, and the copy in the host's folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.adapters.export import DIFFUSERS_FILE_NAME, export, export_diffusers
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.scan import Example
from lora_trainer.errors import LoraFileError, TrainingError
from lora_trainer.lora.deliver import Delivered, deliver, note_of
from lora_trainer.lora.file import copy_with_metadata, read_header
from lora_trainer.lora.metadata import build as metadata_of
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import RunConfig
from lora_trainer.tasks.lora_metadata import Hashes, training_facts
from lora_trainer.tasks.provenance import Provenance
from lora_trainer.tasks.report import Report
from lora_trainer.training import resume
from lora_trainer.training.optimizers import weights_to_use
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class LoraOutput:
    """Writes the trained adapters. `config` is resolved; `started` is the worker's start time."""

    folder: RunFolder
    report: Report
    config: RunConfig
    checkpoint: Checkpoint
    parts: Parts
    examples: Sequence[Example]
    buckets: Mapping[Bucket, list[int]]
    hashes: Hashes
    provenance: Provenance
    started: float

    @property
    def final_file(self) -> Path:
        """The LoRA file of a finished run."""
        return self.folder.path / f"{self.config.lora.name}.safetensors"

    def save(self, trainer: Trainer) -> Path:
        """Write a LoRA file and its resume point. Returns the file."""
        self.report.phase("saving")
        target = self.folder.saved_file(self.config.lora.name, trainer.step)
        self._export(trainer, target)
        self.write_state(trainer)
        self.report.say(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        self._remove_old_saves()
        return target

    def save_final(self, trainer: Trainer) -> Path:
        """Write the final LoRA file in both layouts, and its resume point. Raises TrainingError if
        nothing was learned.
        """
        self.report.phase("exporting")
        target = self.final_file
        metadata = self._export(trainer, target, finished=True)
        with weights_to_use(trainer.optimizer):
            export_diffusers(
                trainer.adapters, self.parts, self.folder.path / DIFFUSERS_FILE_NAME, metadata
            )
        self.write_state(trainer)
        self.report.say(events.Saved(step=trainer.step, file=self.folder.relative(target)))
        return target

    def write_state(self, trainer: Trainer) -> None:
        """Write the resume point."""
        resume.write_state(
            self.folder.state, {**trainer.state_dict(), "provenance": self.provenance.to_mapping()}
        )

    def _export(self, trainer: Trainer, target: Path, *, finished: bool = False) -> dict[str, str]:
        """Write and verify the LoRA file. Returns its metadata. Raises TrainingError if a finished
        one has no effect.
        """
        facts = training_facts(
            self.config,
            self.checkpoint,
            self.examples,
            self.buckets,
            trainer,
            self.hashes,
            name=target.stem,
            started_at=self.started,
            written_at=time.time(),
        )
        metadata = metadata_of(facts)
        with weights_to_use(trainer.optimizer):
            done = export(trainer.adapters, self.parts, target, metadata)
        if done.does_nothing and finished:
            target.unlink()
            template = "after {count} steps the LoRA changes nothing: it has learned nothing"
            if trainer.step == 1:
                template = "after its only step the LoRA changes nothing"
            hint = (
                "Check that learning_rate is above 0, and that lr_warmup_steps is not nearly the"
                " whole run."
            )
            raise TrainingError(template, hint=hint, count=trainer.step)
        if done.does_nothing and trainer.step:
            self.report.warn(
                "the LoRA at step {step} changes nothing yet: it has learned nothing",
                hint="Check that learning_rate is above 0.",
                step=trainer.step,
            )
        return metadata

    def _remove_old_saves(self) -> None:
        keep = self.config.output.keep_last
        if keep is not None:
            for old in sorted(self.folder.checkpoints.glob("*-step*.safetensors"))[:-keep]:
                for file in (old, note_of(old)):
                    with contextlib.suppress(OSError):
                        file.unlink(missing_ok=True)

    def deliver(self, target: Path, card: Path | None, strength: float) -> Delivered | None:
        """Copy the LoRA file into the host's folder, with `card` as its preview and `strength` as
        its preferred weight. None if not configured, or if it failed.
        """
        output = self.config.output
        if output.lora_dir is None:
            return None
        self.report.phase("delivering")
        try:
            delivered = deliver(
                target,
                output.lora_dir,
                self.config.lora.name,
                trigger=self.config.dataset.trigger_word,
                preferred_weight=strength,
                family=self.parts.family,
                preview=card,
                negative_text=self.config.samples.sample_negative_prompt,
            )
        except LoraFileError as error:
            # the trained file is safe; only the copy failed
            self.report.warn(error.message, hint=error.hint)
            return None
        for warning in delivered.warnings:
            self.report.warn(warning)
        if delivered.renamed:
            self.report.warn(
                "{lora_dir} had a LoRA called {old}, so this one is called {new}",
                lora_dir=output.lora_dir,
                old=self.config.lora.name,
                new=delivered.name,
            )
        return delivered


def keep_earlier_result(folder: RunFolder, name: str, step_count: int, report: Report) -> None:
    """When a finished run is continued, keep its final LoRA file as a saved step."""
    finished = folder.path / f"{name}.safetensors"
    try:
        metadata = read_header(finished).metadata
        step = int(metadata.get("ss_steps", ""))
    except (LoraFileError, ValueError):
        return
    kept = folder.saved_file(name, step)
    if step < step_count and not kept.exists():
        changes = {
            key: kept.stem for key in ("ss_output_name", "modelspec.title") if key in metadata
        }
        files.replace_file(kept, lambda partial: copy_with_metadata(finished, partial, changes))
        report.say(events.Saved(step=step, file=folder.relative(kept)))
