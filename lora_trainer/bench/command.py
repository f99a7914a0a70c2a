"""The command `bench`: measures trainings on published architectures; prints a table or JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer import __version__
from lora_trainer.bench import models
from lora_trainer.bench.run import Timing, make_config, measure
from lora_trainer.bench.speed import matmul_rate
from lora_trainer.checkpoint.load import open_as_set
from lora_trainer.planner.accounting import step_flops
from lora_trainer.planner.command import ask as plan
from lora_trainer.settings import training
from lora_trainer.training.device import choose_device

GIB = 2**30
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measured training."""

    model: str
    settings: Mapping[str, Any]
    """resolution, batch_size, lora_rank, and the changed settings."""
    timing: Timing
    flops: int
    """Floating-point operations of one step."""
    planned_peak: int
    """Bytes that `plan` predicted for the device."""
    matmul_rate: float
    """Floating-point operations per second of matrix multiplications on this device."""

    @property
    def share_of_matmul_rate(self) -> float:
        """A step's floating-point operations per second as a share of `matmul_rate`."""
        return self.flops / self.timing.seconds_per_step / self.matmul_rate

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "version": __version__,
            "torch": torch.__version__,
            "model": self.model,
            **{key: _plain(value) for key, value in self.settings.items()},
            **asdict(self.timing),
            "planned_peak": self.planned_peak,
            "flops": self.flops,
            "matmul_rate": self.matmul_rate,
            "share_of_matmul_rate": self.share_of_matmul_rate,
        }

    def to_row(self) -> str:
        """As a table row under HEADING."""
        timing = self.timing
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in timing.phases.items())
        changed = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return (
            f"| {self.model} {changed} | {timing.precision} | {timing.seconds_per_step:.3f}"
            f" ({timing.fastest_step:.3f} to {timing.slowest_step:.3f}) |"
            f" {self.share_of_matmul_rate:.0%} | {timing.peak / GIB:.2f}"
            f" ({self.planned_peak / GIB:.2f}) | {timing.host_peak / GIB:.2f} |"
            f" {timing.first_step:.1f} ({phases}) |"
        )


HEADING = (
    "| training | precision | s/step | of the matmul rate | peak (planned), GiB | process, GiB |"
    " first step, s |\n| --- | --- | --- | --- | --- | --- | --- |"
)


def bench(
    names: Sequence[str],
    steps: int,
    changes: Mapping[str, Any],
    folder: Path | None = None,
) -> Iterator[Result]:
    """Measure a training of each model. folder: keeps the model files for later calls (default: a
    temporary folder). Raises ConfigError for an unknown model or setting, RunError if a training
    fails.
    """
    chosen = [models.named(name) for name in names]
    rates: dict[tuple[str, str], float] = {}
    with _place(folder) as place:
        for model in chosen:
            asked = make_config(model, place, steps, changes)
            planned = plan(asked).plan.peak
            timing, config = measure(asked)
            device, dtype = choose_device(config.training.device), DTYPES[timing.precision]
            kind = (str(device), timing.precision)
            if kind not in rates:
                rates[kind] = matmul_rate(device, dtype)
            shown = {"resolution", "batch_size", "lora_rank", *changes}
            values = training.to_mapping(config)
            yield Result(
                model=model.name,
                settings={key: values[key] for key in values if key in shown},
                timing=timing,
                flops=step_flops(open_as_set(config.checkpoint), config, dtype),
                planned_peak=planned,
                matmul_rate=rates[kind],
            )


def to_text(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    device, rate = results[0].timing.device, results[0].matmul_rate
    return "\n".join(
        [
            f"On {device}; its matrix multiplications reach {rate / 1e12:.2f} TFLOP/s.",
            HEADING,
            *(result.to_row() for result in results),
        ]
    )


def to_json(results: Sequence[Result]) -> str:
    return json.dumps([result.to_mapping() for result in results], indent=1)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="lora-trainer-bench-") as made:
        yield Path(made)
