"""The end of a training: the verdict, its place in the LoRA file, and the report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lora_trainer import report, verdict
from lora_trainer.lora.metadata import verdict_keys
from lora_trainer.settings.training import DEFAULT_STRENGTH
from lora_trainer.tasks.training_run import TrainingRun
from lora_trainer.verdict import Verdict
from lora_trainer.verdict.judge import judged

log = logging.getLogger(__name__)


class Conclusion:
    """Judges a run and writes its report. The trained files are safe by then: whatever fails here
    is a warning.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._verdict: Verdict | None = None
        with self._only_warned(template="the run could not be evaluated: {reason}"):
            self._verdict = verdict.judge(run.folder)

    @property
    def strength(self) -> float:
        """The strength to recommend for the last step: as set, as measured, or the usual one."""
        stated = self._run.prepared.config.output.preferred_weight
        if stated is not None:
            return stated
        if self._verdict is None:
            return DEFAULT_STRENGTH
        return self._verdict.strength_of(self._run.trainer.step)

    def judge(self) -> None:
        """Judge everything that was measured, write verdict.json and the event."""
        self._run.report.phase("concluding")
        with self._only_warned(template="the run could not be evaluated: {reason}"):
            self._verdict = verdict.judge(self._run.folder)
            if self._verdict is not None:
                verdict.write(self._run.folder, self._verdict)
                self._run.report.write(judged(self._verdict))

    def note_in(self, target: Path) -> None:
        """Put the verdict into the metadata of the final LoRA file."""
        found = self._verdict
        if found is None:
            return
        # the first sentence names no images: LoRA files are published
        keys = verdict_keys(str(found.sentences[0]), self.strength)
        with self._only_warned(
            template="the evaluation could not be written into the LoRA file: {reason}"
        ):
            self._run.output.add_metadata(target, keys)

    def write_report(self) -> None:
        """Write report.html."""
        with self._only_warned(template="the report could not be written: {reason}"):
            report.write(self._run.folder, self._run.output.images, self._verdict)

    @contextlib.contextmanager
    def _only_warned(self, *, template: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.warning("%s", template, exc_info=True)
            self._run.report.warn(
                template,
                hint="The LoRA itself is complete. The details are in the run's log.",
                reason=f"{type(error).__name__}: {error}",
            )
