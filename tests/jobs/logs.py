"""Run folders for tests, written by hand: the events a worker would have written, in a moment."""

from __future__ import annotations

from pathlib import Path

import yaml

from lora_trainer.runs import events
from lora_trainer.runs.events import Event, EventWriter
from lora_trainer.runs.folder import RunFolder

SETTINGS = {
    "train_data_dir": "/images/ink",
    "base_model": "/models/base.safetensors",
    "name": "ink",
    "max_train_steps": 10,
    "preferred_weight": 0.7,
}


def write_run(path: Path, *history: Event, start: float = 1000.0, **settings: object) -> RunFolder:
    """A run folder with these events, one second apart from `start` on."""
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(
        yaml.safe_dump({**SETTINGS, "output_dir": str(path), **settings}, allow_unicode=True),
        encoding="utf-8",
    )
    append(folder, *history, start=start)
    return folder


def append(folder: RunFolder, *history: Event, start: float = 1000.0) -> None:
    moments = iter(range(len(history)))
    writer = EventWriter(folder.events, clock=lambda: start + next(moments))
    for event in history:
        writer.write(event)
    writer.close()


def steps(first: int, last: int) -> list[Event]:
    """Progress from step `first` to `last`, whose loss is a hundredth of the step."""
    return [
        events.Progress(step=step, loss=step / 100, smoothed_loss=step / 50)
        for step in range(first, last + 1)
    ]


BEGUN: tuple[Event, ...] = (
    events.Started(),
    events.Planned(name="ink", family="sd1", step_count=10, epoch_count=2, image_count=5),
)
TRAINED: tuple[Event, ...] = (*BEGUN, events.Phase(phase="training", total=10), *steps(1, 10))
FINISHED: tuple[Event, ...] = (*TRAINED, events.Finished(step=10, file="ink.safetensors"))
