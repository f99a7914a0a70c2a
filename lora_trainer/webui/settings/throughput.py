"""How fast this machine trains: read from what its earlier runs said of themselves. No run of the
same kind yet, no number.

Comes in: the folder of all runs. Goes out: how long a run of a kind takes, from its first word to
its last. Called by run_estimate.py. Only the beginning and the end of each run's events are read,
and each run once for as long as it does not grow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import ConfigError
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig

END = 16_384
"""Bytes at the end of events.jsonl that are looked at: some eighty steps."""
LONGEST_WAKING = 300.0
FEWEST_STEPS = 10
"""The first steps of a run are slow, and the average needs a few."""


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """What decides the pace, and so must be alike for one run to speak for another."""

    family: str
    resolution: int
    batch_size: int
    gradient_checkpointing: bool
    train_text_encoder: bool
    optimizer: str
    device: str
    """What was asked for (auto, cuda:1 ...): this machine's answer to it stays the same."""


@dataclass(frozen=True, kw_only=True)
class ThroughputRecord:
    kind: RunKind
    images_per_second: float
    changed: float
    before: float = 0.0
    """Seconds from its first word to its first step: looking at the images, loading, encoding."""
    after: float = 0.0
    """Seconds from its last step to its end: the LoRA file, a round of previews. 0: it has not
    ended.
    """


class Throughput:
    """Thread-safe. `runs`: the folder that holds the run folders."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._read: dict[Path, tuple[tuple[int, int], ThroughputRecord | None]] = {}

    def seconds(self, kind: RunKind, images: float, preview_rounds: int) -> float | None:
        """How long a run takes that trains so many images and stops so often for previews; None if
        there was no run of its kind.
        """
        known = self._newest(kind)
        if known is None or not known.images_per_second:
            return None
        return known.before + images / known.images_per_second + known.after * (1 + preview_rounds)

    def _newest(self, kind: RunKind) -> ThroughputRecord | None:
        """The newest run of this kind, of any size of batch if none had the same."""
        with self._lock:
            records = [record for record in self._records() if _alike(record.kind, kind)]
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
    """`resolution` in pixels: what `auto` came to."""
    training = settings.training
    return RunKind(
        family=family,
        resolution=resolution,
        batch_size=training.batch_size,
        gradient_checkpointing=training.gradient_checkpointing,
        train_text_encoder=settings.lora.train_text_encoder,
        optimizer=training.optimizer,
        device=training.device,
    )


def _alike(one: RunKind, other: RunKind) -> bool:
    return (
        one.family,
        one.resolution,
        one.gradient_checkpointing,
        one.train_text_encoder,
        one.optimizer,
        one.device,
    ) == (
        other.family,
        other.resolution,
        other.gradient_checkpointing,
        other.train_text_encoder,
        other.optimizer,
        other.device,
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
    family, before = _beginning(folder)
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


def _beginning(folder: RunFolder) -> tuple[str, float]:
    """The family in the run's first `planned` event, and the seconds until its first step."""
    family, started = "", 0.0
    with folder.events.open("rb") as stream:
        for line in stream:
            event = events.from_line(line.decode("utf-8", errors="replace"))
            if isinstance(event, events.Started):
                started = started or event.time - _waking(folder, event.time)
            elif isinstance(event, events.Planned):
                family = event.family
            elif isinstance(event, events.Progress) and event.loss is not None:
                return family, max(0.0, event.time - started) if started else 0.0
    return family, 0.0


def _waking(folder: RunFolder, first_word: float) -> float:
    """Seconds from the start of the run's process to its first word; 0 where another process has
    been at work there since.
    """
    started = files.read_json(folder.worker, lambda told: float(told["started"]), 0.0)
    return first_word - started if 0.0 < first_word - started < LONGEST_WAKING else 0.0
