"""How fast this machine trains, from the events of earlier runs of the same kind.

Only the beginning and the end of each run's events are read; the result is cached until the file
changes. Called by the tab and by `plan`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import ConfigError
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig

END = 16_384
"""Bytes read at the end of events.jsonl: about eighty steps."""
LONGEST_STARTUP = 300.0
"""Seconds from the start of the process to its first event."""
FEWEST_STEPS = 10
"""Shorter runs are not used: their first steps are slow."""


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """The settings that determine the speed."""

    family: str
    base_model_size: int
    """Bytes of its file; 0 if unknown."""
    resolution: int
    batch_size: int
    gradient_checkpointing: bool
    base_precision: str
    blocks_to_swap: int
    train_text_encoder: bool
    optimizer: str
    device: str
    """The setting `device`, or `devices` (auto, cuda:1, all ...), which means the same on one
    machine.
    """


@dataclass(frozen=True, kw_only=True)
class ThroughputRecord:
    kind: RunKind
    images_per_second: float
    changed: float
    """Modification time of the run's events file, in seconds since the epoch."""
    before: float = 0.0
    """Seconds from the start to the first step: check, loading, encoding."""
    after: float = 0.0
    """Seconds from the last step to the end: export, previews; 0 if the run has not finished."""


class Throughput:
    """Thread-safe. `runs`: the parent of the run folders."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._read: dict[Path, tuple[tuple[int, int], ThroughputRecord | None]] = {}

    def seconds(self, kind: RunKind, images: float, preview_rounds: int) -> float | None:
        """Estimated duration of a run with this many images and rounds of previews; None if there
        is no run of this kind.
        """
        known = self._newest(kind)
        if known is None or not known.images_per_second:
            return None
        return known.before + images / known.images_per_second + known.after * (1 + preview_rounds)

    def seconds_per_image(self, kind: RunKind) -> float | None:
        """Seconds of training per image in the newest run of this kind; None if there is none."""
        known = self._newest(kind)
        return 1 / known.images_per_second if known and known.images_per_second else None

    def _newest(self, kind: RunKind) -> ThroughputRecord | None:
        """The newest run of this kind, with the same batch size if there is one."""
        with self._lock:
            records = [record for record in self._records() if _same_speed(record.kind, kind)]
        same = [record for record in records if record.kind.batch_size == kind.batch_size]
        return max(same or records, key=lambda record: record.changed, default=None)

    def _records(self) -> Iterator[ThroughputRecord]:
        try:
            folders = [path for path in self._runs.iterdir() if path.is_dir()]
        except OSError:
            return
        for path in folders:
            folder = RunFolder(path)
            try:
                details = folder.events.stat()
            except OSError:
                continue
            signature = (details.st_mtime_ns, details.st_size)
            known = self._read.get(path)
            if known is None or known[0] != signature:
                known = self._read[path] = (
                    signature,
                    _record(folder, details.st_size, details.st_mtime),
                )
            if known[1] is not None:
                yield known[1]


def kind_of(settings: RunConfig, family: str, resolution: int) -> RunKind:
    """`resolution` in pixels, `auto` resolved."""
    training = settings.training
    return RunKind(
        family=family,
        base_model_size=_size(settings.checkpoint.base_model),
        resolution=resolution,
        batch_size=training.batch_size,
        gradient_checkpointing=training.gradient_checkpointing,
        base_precision=settings.checkpoint.base_precision.replace("auto", "same"),
        blocks_to_swap=training.blocks_to_swap or 0,
        train_text_encoder=settings.lora.train_text_encoder,
        optimizer=training.optimizer,
        device=training.device if training.devices == "auto" else training.devices,
    )


def _size(base_model: Path) -> int:
    try:
        return base_model.stat().st_size
    except OSError:
        return 0


def _similar(one: int, other: int) -> bool:
    """Whether files of these sizes can contain the same model: a weight takes one to four bytes.
    Keeps the tiny models of a family apart, which are a hundred times faster.
    """
    return not one or not other or max(one, other) <= 8 * min(one, other)


def _same_speed(one: RunKind, other: RunKind) -> bool:
    return _similar(one.base_model_size, other.base_model_size) and other == replace(
        one, batch_size=other.batch_size, base_model_size=other.base_model_size
    )


def _record(folder: RunFolder, size: int, changed: float) -> ThroughputRecord | None:
    last = events.read_events(folder.events, max(0, size - END))[0]
    steps = [
        event for event in last if isinstance(event, events.Progress) and event.images_per_second
    ]
    if not steps or steps[-1].step < FEWEST_STEPS:
        return None
    try:
        settings = training.read(folder.config)
    except ConfigError:
        return None
    family, before = _first_step(folder)
    resolution = settings.dataset.resolution
    if not family or resolution is None:
        return None
    after = last[-1].time - steps[-1].time if isinstance(last[-1], events.Finished) else 0.0
    return ThroughputRecord(
        kind=kind_of(settings, family, resolution),
        images_per_second=steps[-1].images_per_second or 0.0,
        changed=changed,
        before=before,
        after=max(0.0, after),
    )


def _first_step(folder: RunFolder) -> tuple[str, float]:
    """The family in the run's first `planned` event, and the seconds until its first step."""
    family, started = "", 0.0
    with folder.events.open("rb") as stream:
        for line in stream:
            event = events.from_line(line.decode("utf-8", errors="replace"))
            if isinstance(event, events.Started):
                started = started or event.time - _startup_seconds(folder, event.time)
            elif isinstance(event, events.Planned):
                family = event.family
            elif isinstance(event, events.Progress) and event.loss is not None:
                return family, max(0.0, event.time - started) if started else 0.0
    return family, 0.0


def _startup_seconds(folder: RunFolder, first_event: float) -> float:
    """Seconds from the start of the process to the first event; 0 if unknown, because another
    process has resumed the run since.
    """
    started = files.read_json(folder.worker, lambda values: float(values["started"]), 0.0)
    return first_event - started if 0.0 < first_event - started < LONGEST_STARTUP else 0.0
