"""AskTask: ask.yaml -> answers of a trained language model, in the events.

The model is loaded once. Further questions are requests, and the task ends when none has come for a
while, or a stop was requested.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, ClassVar

from lora_trainer.errors import ConfigError, LoraTrainerError, OutOfMemory
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder, existing
from lora_trainer.settings import asking, training
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Abandoned, Outcome, StopRequested

if TYPE_CHECKING:
    from lora_trainer.language.assistant import Assistant

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Question:
    """step: the saved step to ask; None: the newest."""

    text: str
    strength: float
    step: int | None


class AskTask(Task):
    """Answers questions."""

    settings_file: ClassVar[str] = "ask.yaml"

    def __init__(self, folder: RunFolder, report: Report) -> None:
        super().__init__(folder, report)
        self.settings = asking.read(folder.path / self.settings_file)
        self.control = Control(report)
        self.trained = existing(self.settings.run)
        self.step = 0
        """Number of questions that were answered."""

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "there is not enough memory for the language model",
            hint="Close other programs, or train with load_in_4bit.",
        )

    def run(self) -> Outcome:
        self.report.write(events.Started(job="ask"))
        asked = self.settings
        config = training.read(self.trained.config)
        try:
            self.report.phase("loading")
            assistant, newest = self._load(config, asked.step)
            if asked.question:
                question = Question(asked.question, asked.strength, asked.step)
                assistant = self._answer(assistant, question, asked.step or newest)
            self._answer_requests(assistant)
        except (StopRequested, Abandoned):
            pass
        self.report.write(events.Finished(step=self.step))
        return "finished"

    def _load(self, config: training.RunConfig, step: int | None) -> tuple[Assistant, int]:
        from lora_trainer.language import assistant
        from lora_trainer.tasks.training_run import LoadedModel

        loaded = assistant.of_run(self.trained, config, step)
        if not config.language.load_in_4bit:
            self.control.occupy(LoadedModel(loaded.model, loaded.model.device))
        self.control.check(self)
        return loaded, self._newest()

    def _newest(self) -> int:
        return self.trained.read_state().saved[-1].step

    def _answer_requests(self, assistant: Assistant) -> None:
        """Until there has been no question for as long as the settings say."""
        self.report.phase("waiting")
        last = time.monotonic()
        while time.monotonic() - last < self.settings.patience:
            self.control.check(self)
            request = self.report.first_waiting()
            if request is None:
                time.sleep(POLL_SECONDS)
                continue
            self.report.take(request)
            if request.kind != "ask":
                continue
            try:
                question = _question(request.values)
                assistant = self._answer(assistant, question, question.step or self._newest())
            except LoraTrainerError as problem:
                self.report.warn(problem.message, hint=problem.hint)
            self.report.phase("waiting")
            last = time.monotonic()

    def _answer(self, assistant: Assistant, question: Question, step: int) -> Assistant:
        """Answer, with the LoRA of this step. Returns the assistant with it."""
        from lora_trainer.language.assistant import lora_of
        from lora_trainer.language.peft_file import read

        self.report.phase("asking")
        assistant = dataclasses.replace(assistant, lora=read(lora_of(self.trained, step)))
        text = assistant.ask(question.text, question.strength, self.report.stop_asked)
        self.step += 1
        self.report.write(
            events.Answered(
                step=step, prompt=question.text, strength=question.strength, answer=text
            )
        )
        return assistant


def _question(values: dict[str, object]) -> Question:
    """A request's. Raises ConfigError."""
    text, strength, step = (values.get(key) for key in ("question", "strength", "step"))
    fits = isinstance(text, str) and isinstance(strength, (int, float))
    if not fits or not (step is None or isinstance(step, int)):
        raise ConfigError("a question that was sent cannot be read", hint="Ask again.")
    assert isinstance(text, str) and isinstance(strength, (int, float))
    return Question(text, float(strength), step)
