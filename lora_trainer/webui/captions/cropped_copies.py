"""Crops selected images into a new dataset, one job after the other in threads. The originals are
not changed.

    copies.start(...) -> Copy      copies.find(id) -> Copy, with its progress
    copy.stop = True               cancels it

Uses dataset.crop. Created by app.py, called by the routes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_trainer.dataset.crop import crop_folder
from lora_trainer.dataset.findings import Finding
from lora_trainer.errors import DatasetError, LoraTrainerError
from lora_trainer.settings.training import DatasetSettings
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.datasets import settings_draft
from lora_trainer.webui.datasets.registry import Datasets

State = Literal["running", "done", "failed", "stopped"]
SIZES = (64, 4096)

log = logging.getLogger("lora_trainer.webui")


@dataclass(kw_only=True)
class Copy:
    """A job and its progress."""

    id: str
    total: int
    state: State = "running"
    done: int = 0
    dataset: str | None = None
    """The id of the new dataset when finished."""
    notes: tuple[Finding, ...] = ()
    error: LoraTrainerError | None = None
    stop: bool = False


class _CopyStopped(Exception):
    """The job was cancelled."""


@dataclass
class Copies:
    """The jobs of this process. Thread-safe."""

    datasets: Datasets
    _known: dict[str, Copy] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def start(
        self,
        source: Path,
        name: str,
        names: Sequence[str],
        *,
        size: int,
        buckets: bool,
        subject: bool,
    ) -> Copy:
        """Crop the images called `names` in `source` into a new dataset. Raises DatasetError for an
        invalid size or name.
        """
        low, high = SIZES
        if not low <= size <= high:
            hint = "Use {low} to {high}; 512, 768 and 1024 are usual."
            raise DatasetError(
                "{size} is not a valid image size", hint=hint, size=size, low=low, high=high
            )
        if not names:
            raise DatasetError("no image was chosen", hint="Choose some, or choose all.")
        dataset = self.datasets.create(name)
        # the copy has the same subject, so it gets the same trigger word
        settings_draft.inherit(source, dataset.path)
        copy = Copy(id=uuid.uuid4().hex, total=len(names))
        self._known[copy.id] = copy
        settings = DatasetSettings(train_data_dir=source)

        def run() -> None:
            with self._turn:
                self._run(
                    copy,
                    dataset.id,
                    lambda heard: (
                        crop_folder(
                            settings,
                            dataset.path,
                            size=size,
                            into_buckets=buckets,
                            subject=subject,
                            only=names,
                            progress=heard,
                        ).findings
                    ),
                )

        threading.Thread(target=run, name="lora-trainer-copies", daemon=True).start()
        return copy

    def find(self, identity: str) -> Copy:
        """Raises NotFound."""
        if identity not in self._known:
            raise NotFound("this cropping job no longer exists", hint="Reload the page.")
        return self._known[identity]

    def _run(self, copy: Copy, identity: str, make: Any) -> None:
        def heard(done: int, total: int) -> None:
            copy.done, copy.total = done, total
            if copy.stop:
                raise _CopyStopped

        state: State = "failed"
        try:
            copy.notes = make(heard)
            state = "done"
        except _CopyStopped:
            state = "stopped"
        except LoraTrainerError as problem:
            copy.error = problem
        except Exception as problem:
            log.exception("while making copies")
            copy.error = LoraTrainerError(
                "the copies could not be made: {reason}",
                hint="Check the free space on the disk.",
                reason=problem,
            )
        if state == "done" or copy.done:
            copy.dataset = identity
        else:
            # an empty dataset is removed
            self.datasets.delete(identity)
        # last: who sees that the job is done looks for the dataset
        copy.state = state
