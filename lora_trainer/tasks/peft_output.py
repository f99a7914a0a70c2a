"""Writes the LoRAs of a language model's training: folders in PEFT's format."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import CheckpointError, LoraFileError
from lora_trainer.language import peft_file
from lora_trainer.language.detect import LanguageModelFolder
from lora_trainer.language.tokens import ChatTokenizer
from lora_trainer.lora.credits import Credits
from lora_trainer.lora.file import copy_with_metadata, find_in_folder
from lora_trainer.runs import events
from lora_trainer.runs.folder import free_name
from lora_trainer.tasks.lora_output import LoraOutput
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class PeftOutput(LoraOutput):
    """A LoRA is a folder."""

    base: LanguageModelFolder
    tokenizer: ChatTokenizer

    @property
    def final_file(self) -> Path:
        return self.folder.adapter / self.config.lora.name

    def saved_file(self, step: int) -> Path:
        return self.folder.checkpoints / f"{self.config.lora.name}-step{step:08d}"

    def saved_files(self) -> Sequence[Path]:
        return sorted(path.parent for path in self.folder.checkpoints.glob("*/adapter_config.json"))

    def write(self, trainer: Trainer, target: Path, *, finished: bool) -> bool:
        lora = self.config.lora
        has_effect = peft_file.write(
            trainer.adapters,
            target,
            base=self.base.path,
            targets=lora.target_modules,
            dropout=lora.lora_dropout,
            step=trainer.step,
            credits=Credits(**vars(self.config.credits)),
        )
        if finished:
            self.tokenizer.save_template(target)
        return has_effect

    def remove(self, saved: Path) -> None:
        peft_file.remove(saved)

    def keep_earlier_result(self, step_count: int) -> None:
        step = peft_file.step_of(self.final_file)
        if step is None or step >= step_count:
            return
        kept = self.saved_file(step)
        if not kept.exists():
            shutil.copytree(self.final_file, kept)
            self.report.write(events.Saved(step=step, file=self.folder.relative(kept)))

    def add_metadata(self, target: Path, values: Mapping[str, str]) -> None:
        weights = find_in_folder(target)
        files.replace_file(weights, lambda partial: copy_with_metadata(weights, partial, values))

    def deliver(self, target: Path, card: Path | None, strength: float) -> Path | None:
        if self.config.language.merge_lora:
            self._merge(target)
        folder, name = self.config.output.lora_dir, self.config.lora.name
        if folder is None:
            return None
        self.report.phase("delivering")
        copy = free_name(folder / name)
        try:
            shutil.copytree(target, copy)
        except OSError as error:
            # the trained LoRA is safe; only the copy failed
            problem = LoraFileError.cannot_write(
                copy, error, "Free some space, or copy it yourself."
            )
            self.report.warn(problem.message, hint=problem.hint)
            return None
        if copy.name != name:
            self.report.warn(
                "{lora_dir} already has a LoRA called {old}, so this one is called {new}",
                lora_dir=folder,
                old=name,
                new=copy.name,
            )
        return copy

    def _merge(self, lora: Path) -> None:
        """Write the merged model. A problem is only a warning: the LoRA is there."""
        self.report.phase("merging")
        target = self.folder.merged / self.config.lora.name
        try:
            peft_file.merge(self.base, lora, target)
            self.tokenizer.save(target)
        except (LoraFileError, CheckpointError) as error:
            self.report.warn(error.message, hint=error.hint)
