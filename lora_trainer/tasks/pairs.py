"""PairsTask: pairs.yaml -> question and answer pairs about documents, by asking a language model
for each passage.
"""

from __future__ import annotations

from typing import ClassVar

from lora_trainer.errors import LoraTrainerError, OutOfMemory
from lora_trainer.language import pairs
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import pairing
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Abandoned, Outcome, StopRequested


class PairsTask(Task):
    """Writes pairs as they come."""

    settings_file: ClassVar[str] = "pairs.yaml"

    def __init__(self, folder: RunFolder, report: Report) -> None:
        super().__init__(folder, report)
        self.settings = pairing.read(folder.path / self.settings_file)
        self.control = Control(report)
        self.step = 0
        """Number of passages that were asked about."""

    @classmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        return OutOfMemory(
            "there is not enough memory for the language model",
            hint="Choose a smaller one, or close other programs.",
        )

    def run(self) -> Outcome:
        self.report.write(events.Started(job="pairs"))
        try:
            return self._run()
        except (StopRequested, Abandoned):
            self.report.write(events.Stopped(step=self.step))
            return "stopped"

    def _run(self) -> Outcome:
        settings = self.settings
        self.report.phase("checking")
        passages = pairs.read_passages(settings.input)
        self.report.write(
            events.Planned(
                name=settings.input.name,
                data="texts",
                step_count=len(passages),
                image_count=len(passages),
            )
        )
        ask = self._ask()
        self.report.phase("pairing", len(passages))
        count, without = pairs.write_pairs(
            passages, ask, settings.count, settings.output, self._progress
        )
        if not count:
            settings.output.unlink(missing_ok=True)
            raise LoraTrainerError(
                "no pair was written: the model does not answer in question and answer pairs",
                hint="Try a larger one, or one made for instructions.",
            )
        if without:
            self.report.warn(
                "no pairs were found in a reply about: {documents}", documents=", ".join(without)
            )
        self.report.write(events.Finished(step=count, file=str(settings.output)))
        return "finished"

    def _ask(self) -> pairs.Ask:
        settings = self.settings
        if settings.base_model is None:
            return pairs.open_server(settings.url, settings.model or "default").ask
        from lora_trainer.language import assistant

        self.report.phase("loading")
        loaded = assistant.of_base(settings.base_model, pairs.TOKENS * settings.count)
        self.control.check(self)
        return lambda prompt: loaded.ask(prompt, stop_asked=self.report.stop_asked)

    def _progress(self, done: int, total: int) -> None:
        self.step = done
        self.report.write(events.Progress(step=done))
        if done < total:
            self.control.check(self)
