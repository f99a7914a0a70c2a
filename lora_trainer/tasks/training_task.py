"""The course of every training: assemble, resume, the loop with its hooks, the final LoRA.

A subclass says which base models it trains, and assembles the trainer.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lora_trainer.errors import Message, ProcessLost
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import schema
from lora_trainer.settings import training as settings
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.conclusion import Conclusion
from lora_trainer.tasks.control import Control, Requests
from lora_trainer.tasks.hooks import hooks_of
from lora_trainer.tasks.hooks.previewing import Previewing, card_of
from lora_trainer.tasks.provenance import Provenance, differences, require_same
from lora_trainer.tasks.report import Report
from lora_trainer.tasks.training_run import (
    Assembled,
    LoadedOptimizer,
    Prepared,
    Start,
    TrainingRun,
)
from lora_trainer.training.loop import EndedEarly, Loop, Outcome, StopRequested
from lora_trainer.training.scalars import Scalars
from lora_trainer.training.train import Trainer


class TrainingTask(Task):
    """Runs a training."""

    settings_file: ClassVar[str] = "config.yaml"

    def __init__(self, folder: RunFolder, report: Report) -> None:
        super().__init__(folder, report)
        self.requested = settings.read(folder.config)
        self.control = Control(report)
        self.started = time.time()

    @classmethod
    def accepts(cls, folder: RunFolder) -> bool:
        return super().accepts(folder) and cls.trains(_base_model(folder))

    @classmethod
    @abstractmethod
    def trains(cls, base_model: Path | None) -> bool:
        """Whether this task is for a base model of this kind; None: the settings name none."""

    @abstractmethod
    def assemble(self, start: Start) -> Assembled:
        """Check, encode and load everything. The adapters are those of the first step. Raises
        StopRequested.
        """

    def run(self) -> Outcome:
        start = self.processes.first(lambda: Start.of(self.folder))
        self.report.write(events.Started(resumed_from=start.step if start.state else None))
        for note in self.notes:
            self.report.warn(note)
        self._warn_of_damage(start)
        try:
            assembled = self.assemble(start)
        except StopRequested:
            return self._stop_without_saving(start)
        trainer = assembled.trainer
        self._warn_of_no_validation(assembled)
        self._warn_of_uneven_shares(assembled)
        self.control.occupy(LoadedOptimizer(trainer, trainer.device))
        if start.state:
            trainer.load_state_dict(start.state)
        if not self.processes.is_first:
            return self._take_part(trainer)
        assembled.output.keep_earlier_result(trainer.plan.step_count)
        with contextlib.closing(Scalars(self.folder.logs, trainer.step)) as scalars:
            run = TrainingRun(
                **vars(assembled),
                folder=self.folder,
                report=self.report,
                control=self.control,
                scalars=scalars,
            )
            return self._train(run, start)

    def _take_part(self, trainer: Trainer) -> Outcome:
        """Train the share of a process that is not the first, which does everything else."""
        try:
            Loop(trainer, (), self.processes).run()
        except StopRequested:
            return "stopped"
        except EndedEarly:
            pass
        return "finished"

    def _warn_of_damage(self, start: Start) -> None:
        hint = "Only the time of those steps is lost. If it happens again, check the disk."
        for note in start.notes:
            self.report.warn(note, hint=hint)

    def _warn_of_no_validation(self, assembled: Assembled) -> None:
        """Images or texts that were to be validated on, in a training shorter than a check."""
        wanted = self.requested.validation
        if assembled.validation is None and (wanted.validation_split or wanted.validation_dir):
            self.report.warn(
                "no validation loss is measured: {steps} steps are fewer than one check is worth",
                hint=("Train longer; or set validation_split to 0, so that all are trained on."),
                steps=assembled.trainer.plan.step_count,
            )

    def _warn_of_uneven_shares(self, assembled: Assembled) -> None:
        note = settings.uneven(assembled.prepared.config.training, self.processes.count)
        if note is not None:
            self.report.warn(note, hint=Message(settings.UNEVEN_HINT, note.values))

    def provenance(
        self, prepared: Prepared, examples: Mapping[str, str], start: Start
    ) -> Provenance:
        """The run's provenance. Warns of what has changed since the state was written."""
        provenance = Provenance.of(prepared.config, examples, prepared.device)
        require_same(provenance, self.processes.first(lambda: provenance))
        hint = "Training continues, but the LoRA will differ from that of an uninterrupted run."
        for note in differences(start.state.get("provenance") if start.state else None, provenance):
            self.report.warn(note, hint=hint)
        return provenance

    def _train(self, run: TrainingRun, start: Start) -> Outcome:
        loop = Loop(run.trainer, [Requests(self.control), *hooks_of(run)], self.processes)
        self.report.phase("training", run.trainer.plan.step_count)
        try:
            loop.run()
        except StopRequested:
            if run.trainer.step > start.step:
                return self._stop(loop, run)
            return self._stop_without_saving(start)
        except ProcessLost:
            if run.trainer.step > start.step:
                run.output.save(run.trainer)
            raise
        except EndedEarly as end:
            self.report.warn(end.reason)
        run.trainer.require_learned()
        return self._finish(loop, run)

    def _stop(self, loop: Loop[Trainer], run: TrainingRun) -> Outcome:
        loop.request("save")
        saved = run.output.saved_file(run.trainer.step)
        conclusion = Conclusion(run)
        conclusion.judge()
        conclusion.write_report()
        self.report.write(events.Stopped(step=run.trainer.step, file=self.folder.relative(saved)))
        return "stopped"

    def _stop_without_saving(self, start: Start) -> Outcome:
        """Stop without anything new since the resume point."""
        saved = [event for event in self.folder.read_state().saved if event.step == start.step]
        self.report.write(events.Stopped(step=start.step, file=saved[-1].file if saved else ""))
        return "stopped"

    def _finish(self, loop: Loop[Trainer], run: TrainingRun) -> Outcome:
        # the file first: the previews may fail
        target = run.output.save_final(run.trainer)
        loop.saved(target)
        conclusion = Conclusion(run)
        made = Previewing(run).make_final(conclusion.strength)
        conclusion.judge()
        conclusion.note_in(target)
        strength = conclusion.strength
        delivered = run.output.deliver(target, card_of(self.folder, made, strength), strength)
        conclusion.write_report()
        # a finished run is rarely resumed, and its cache may be larger than everything else
        shutil.rmtree(self.folder.cache, ignore_errors=True)
        self.report.write(
            events.Finished(
                step=run.trainer.step,
                file=self.folder.relative(target),
                delivered=str(delivered) if delivered else "",
            )
        )
        return "finished"


def _base_model(folder: RunFolder) -> Path | None:
    """The base model of the settings, which may be wrong otherwise. Raises ConfigError for a file
    that is not YAML.
    """
    named = schema.read_mapping(folder.config).get("base_model")
    return Path(schema.unquoted(named)).expanduser() if isinstance(named, str) else None
