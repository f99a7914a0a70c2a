"""Writes a training's LoRA files for WebUIs and diffusers, and the copy in the host's folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.adapters.export import DIFFUSERS_FILE_NAME, export, export_diffusers
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.scan import Example
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.deliver import deliver, note_of
from lora_trainer.lora.file import copy_with_metadata, read_header
from lora_trainer.lora.metadata import build as metadata_of
from lora_trainer.runs import events
from lora_trainer.tasks.lora_metadata import Hashes, training_facts
from lora_trainer.tasks.lora_output import LoraOutput
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class LoraFileOutput(LoraOutput):
    """A LoRA is one file. `started` is the worker's start time."""

    checkpoint: Checkpoint
    parts: Parts
    examples: Sequence[Example]
    buckets: Mapping[Bucket, list[int]]
    hashes: Hashes
    training_adapter: TrainingAdapter | None
    started: float

    @property
    def final_file(self) -> Path:
        return self.folder.path / f"{self.config.lora.name}.safetensors"

    def saved_file(self, step: int) -> Path:
        return self.folder.saved_file(self.config.lora.name, step)

    def saved_files(self) -> Sequence[Path]:
        return sorted(self.folder.checkpoints.glob("*-step*.safetensors"))

    def write(self, trainer: Trainer, target: Path, *, finished: bool) -> bool:
        """The finished one is written in both layouts."""
        facts = training_facts(
            self.config,
            self.checkpoint,
            self.examples,
            self.buckets,
            trainer,
            self.hashes,
            self.training_adapter,
            name=target.stem,
            started_at=self.started,
            written_at=time.time(),
        )
        metadata = metadata_of(facts)
        has_effect = not export(trainer.adapters, self.parts, target, metadata).does_nothing
        if finished and has_effect:
            diffusers = self.folder.path / DIFFUSERS_FILE_NAME
            export_diffusers(trainer.adapters, self.parts, diffusers, metadata)
        return has_effect

    def remove(self, saved: Path) -> None:
        for file in (saved, note_of(saved)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def keep_earlier_result(self, step_count: int) -> None:
        finished = self.final_file
        try:
            metadata = read_header(finished).metadata
            step = int(metadata.get("ss_steps", ""))
        except (LoraFileError, ValueError):
            return
        kept = self.saved_file(step)
        if step < step_count and not kept.exists():
            changes = {
                key: kept.stem for key in ("ss_output_name", "modelspec.title") if key in metadata
            }
            files.replace_file(kept, lambda partial: copy_with_metadata(finished, partial, changes))
            self.report.write(events.Saved(step=step, file=self.folder.relative(kept)))

    @property
    def images(self) -> Sequence[Example]:
        return self.examples

    def add_metadata(self, target: Path, values: Mapping[str, str]) -> None:
        files.replace_file(target, lambda partial: copy_with_metadata(target, partial, values))

    def deliver(self, target: Path, card: Path | None, strength: float) -> Path | None:
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
                webui=output.webui,
            )
        except LoraFileError as error:
            # the trained file is safe; only the copy failed
            self.report.warn(error.message, hint=error.hint)
            return None
        for warning in delivered.warnings:
            self.report.warn(warning)
        if delivered.renamed:
            self.report.warn(
                "{lora_dir} already has a LoRA called {old}, so this one is called {new}",
                lora_dir=output.lora_dir,
                old=self.config.lora.name,
                new=delivered.name,
            )
        return delivered.path
