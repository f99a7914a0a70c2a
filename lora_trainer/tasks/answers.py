"""AnswerSamples to the preview prompts as the samples of a training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from lora_trainer.errors import Message
from lora_trainer.language.answer import answer
from lora_trainer.language.tokens import ChatTokenizer
from lora_trainer.runs import events
from lora_trainer.settings.training import SampleSettings
from lora_trainer.tasks.training_run import Samples
from lora_trainer.training.train import Trainer


@dataclass(frozen=True, kw_only=True)
class AnswerSamples(Samples):
    """Asks the model. usual: the question where the settings have none."""

    model: Any
    tokenizer: ChatTokenizer
    asked: tuple[str, ...]
    usual: str
    max_tokens: int

    memory_hint = Message("A smaller answer_length needs less.")

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.asked or (self.usual,)

    def make(
        self, trainer: Trainer, settings: SampleSettings, stop_asked: Callable[[], bool]
    ) -> Generator[events.Answered, None, None]:
        for question in self.prompts:
            for strength in settings.sample_strengths:
                with trainer.adapters.strength(strength):
                    text = answer(self.model, self.tokenizer, question, self.max_tokens, stop_asked)
                yield events.Answered(
                    step=trainer.step, prompt=question, strength=strength, answer=text
                )
