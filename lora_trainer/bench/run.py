"""Measures a training on a published architecture in a worker process: phases, steps, memory.

It times the same program that users run: the worker process starts, checks and encodes images,
loads the model and trains. The times are those of its events.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from lora_trainer.bench.models import PublishedModel
from lora_trainer.errors import RunError
from lora_trainer.jobs.start import note_death, start_worker
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig

WARM_UP = 2
"""First steps, which are not counted: they select kernels."""
FEWEST_STEPS = WARM_UP + 1
POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The measurements of one training."""

    device: str
    """Display name of the device."""
    precision: str
    """mixed_precision as resolved: no, fp16 or bf16."""
    seconds_per_step: float
    """Median of the steps after the warm-up."""
    fastest_step: float
    slowest_step: float
    first_step: float
    """Seconds from the start of the process to the end of the first step."""
    phases: Mapping[str, float]
    """Phase up to the first step -> seconds. `starting`: until the worker's first event. The last
    one includes the first step.
    """
    peak: int
    """Peak GPU memory in bytes; on a CPU, of the process."""
    host_peak: int
    """Peak resident memory of the process in bytes, polled every POLL_SECONDS."""
    losses: tuple[float, ...]


def make_images(folder: Path, count: int, side: int) -> None:
    """Write square images of smooth noise with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"smooth colours, number {number}\n", "utf-8")


def make_config(
    model: PublishedModel, folder: Path, steps: int, changes: Mapping[str, Any]
) -> RunConfig:
    """The settings of the training: defaults, without optional work that takes time. Writes the
    model and the images into `folder`.
    """
    asked = {"resolution": model.resolution, "batch_size": 1, "lora_rank": 8, **changes}
    images = folder / f"images-{asked['resolution']}"
    make_images(images, max(8, 2 * int(asked["batch_size"])), int(asked["resolution"]))
    return training.from_mapping(
        {
            **model.write(folder),
            "train_data_dir": images,
            "output_dir": folders.free_name(folder / "run"),
            "max_train_steps": steps,
            "save_steps": steps,
            "validation_split": 0,
            "sample_encoder": "no",
            "keep_encoded": False,
            **asked,
        }
    )


def measure(config: RunConfig) -> tuple[Timing, RunConfig]:
    """Run the training. Returns the measurements, and the settings with every `auto` resolved.
    Raises RunError if it fails or has no steps after the warm-up.
    """
    with folders.begun(config.output.output_dir, training.to_yaml(config)) as folder:
        started = time.time()
        worker = start_worker(folder)
        host_peak = _watch(worker)
    note_death(folder, worker.returncode, started)
    state = folder.read_state()
    if state.failure is not None:
        raise RunError(
            "the training failed: {message}",
            hint=state.failure.hint,
            message=state.failure.message,
        )
    timing = timing_of(folder.read_events(), started, host_peak)
    return timing, training.read(folder.config)


def timing_of(happened: Sequence[events.Event], started: float, host_peak: int = 0) -> Timing:
    """The measurements from a run's events. started: start time of its process. Raises RunError for
    fewer than FEWEST_STEPS steps.
    """
    steps = [one for one in happened if isinstance(one, events.Progress) and one.loss is not None]
    seconds = [after.time - before.time for before, after in itertools.pairwise(steps)]
    counted = seconds[WARM_UP - 1 :]
    if not counted:
        raise RunError(
            "{count} steps are too few to measure",
            hint="Use {fewest} or more.",
            count=len(steps),
            fewest=FEWEST_STEPS,
        )
    planned = next((one for one in happened if isinstance(one, events.Planned)), events.Planned())
    return Timing(
        device=planned.device,
        precision=planned.precision,
        seconds_per_step=statistics.median(counted),
        fastest_step=min(counted),
        slowest_step=max(counted),
        first_step=steps[0].time - started,
        phases=dict(_phases(happened, started, steps[0].time)),
        peak=max(one.memory or 0 for one in steps),
        host_peak=host_peak,
        losses=tuple(one.loss for one in steps if one.loss is not None),
    )


def _phases(
    happened: Sequence[events.Event], started: float, ended: float
) -> Iterator[tuple[str, float]]:
    """(phase, seconds) up to `ended`; the times of a repeated phase are added."""
    marks = [("starting", started)]
    for one in happened:
        if isinstance(one, events.Started):
            marks.append(("checking", one.time))
        elif isinstance(one, events.Phase) and one.time < ended and one.phase != marks[-1][0]:
            marks.append((one.phase, one.time))
    spent: dict[str, float] = {}
    ends = [moment for _, moment in marks[1:]] + [ended]
    for (name, begun), end in zip(marks, ends, strict=True):
        spent[name] = spent.get(name, 0.0) + end - begun
    yield from spent.items()


def _watch(worker: subprocess.Popen[bytes]) -> int:
    """Wait until the worker process exits. Returns its peak resident memory in bytes."""
    most = 0
    process = psutil.Process(worker.pid)
    try:
        while worker.poll() is None:
            with contextlib.suppress(psutil.Error):
                most = max(most, process.memory_info().rss)
            time.sleep(POLL_SECONDS)
    except BaseException:
        worker.kill()
        worker.wait()
        raise
    return most
