"""A language model that is asked questions, with or without a LoRA: the commands `ask` and
`pairs`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.errors import RunError
from lora_trainer.language import peft_file
from lora_trainer.language.answer import answer
from lora_trainer.language.detect import is_language_model, read_folder
from lora_trainer.language.model import load_model, outline
from lora_trainer.language.peft_file import LayerFactors
from lora_trainer.language.tokens import ChatTokenizer, load_tokenizer
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.device import choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """A loaded model. lora: its layers' changes."""

    model: Any
    tokenizer: ChatTokenizer
    max_tokens: int
    lora: Mapping[str, LayerFactors] = field(default_factory=dict)

    def ask(
        self,
        question: str,
        strength: float = 1.0,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> str:
        """The answer with the LoRA at this strength; 0: the base's. Raises Abandoned once
        `stop_asked`.
        """
        with (
            peft_file.applied(self.model, self.lora, strength)
            if self.lora
            else contextlib.nullcontext()
        ):
            return answer(self.model, self.tokenizer, question, self.max_tokens, stop_asked)


def of_base(path: Path, max_tokens: int) -> Assistant:
    """A base model alone. Raises CheckpointError."""
    base, device = read_folder(path), choose_device("auto")
    dtype = choose_precision("auto", device, outline(base).num_parameters())
    return Assistant(
        model=load_model(base, dtype, device),
        tokenizer=load_tokenizer(path),
        max_tokens=max_tokens,
    )


def of_run(
    folder: RunFolder, config: RunConfig, step: int | None = None, max_tokens: int | None = None
) -> Assistant:
    """The base and the newest LoRA of a run, or that of a saved step. Raises RunError."""
    path, language = config.checkpoint.base_model, config.language
    if not is_language_model(path):
        raise RunError(
            "{path} is not the training of a language model",
            hint="Its base_model must be the folder of one.",
            path=folder.path,
        )
    base, device = read_folder(path), choose_device(config.training.device)
    lora = peft_file.read(lora_of(folder, step))
    dtype = choose_precision(
        config.checkpoint.mixed_precision, device, outline(base).num_parameters()
    )
    return Assistant(
        model=load_model(base, dtype, device, four_bit=language.load_in_4bit),
        tokenizer=load_tokenizer(path, language.system_prompt),
        max_tokens=max_tokens or language.answer_length,
        lora=lora,
    )


def lora_of(folder: RunFolder, step: int | None) -> Path:
    """The LoRA of a step, by default the newest. Raises RunError if there is none."""
    saved = folder.read_state().saved
    chosen = [event for event in saved if step in (None, event.step)]
    if not chosen:
        raise RunError(
            "{path} has no saved LoRA"
            if step is None
            else "{path} has no saved LoRA of step {step}",
            hint="Saved steps: {steps}.",
            path=folder.path,
            step=step,
            steps=", ".join(str(event.step) for event in saved) or "none",
        )
    return folder.path / chosen[-1].file
