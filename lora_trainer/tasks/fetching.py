"""Reports a model's download as a phase."""

from __future__ import annotations

import logging

from lora_trainer.tasks.report import Report

log = logging.getLogger(__name__)


class Fetching:
    """Reports a model's download, in megabytes."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def fetching(self, model: str, total: int) -> None:
        log.info("fetching %s", model)
        self._report.phase("downloading", max(1, round(total / 1e6)) if total else 0)

    def fetched(self, done: int) -> None:
        self._report.part_done(round(done / 1e6))

    def stop_asked(self) -> bool:
        return self._report.stop_asked()
