"""Settings and free memory -> Plan: the predicted peak, whether it fits, and the cheapest changes
that do. Without torch: the estimate of a step's memory is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lora_trainer.planner.formula import StepBytes
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.optimizers import OPTIMIZERS

Estimate = Callable[[RunConfig], StepBytes]
"""The memory of a step with these settings, whose `resolution` is set."""

CONTEXT_BYTES = 512 * 2**20
"""What a process takes of a card besides tensors: the CUDA context, loaded kernels, handles and
workspaces of cuBLAS and cuDNN. The usual 0.3 to 0.5 GiB, rounded up; not measured.
"""
ALLOCATOR_SHARE = 0.05
"""What the caching allocator holds beyond live tensors, as a share of those that come and go; not
measured.
"""
PROCESS_BYTES = 700 * 2**20
"""What a worker takes of main memory besides tensors: Python and the torch stack."""
SIZE_STEP = 64
"""Step in which a smaller resolution is looked for, in pixels; half of the asked one is the least.
"""


@dataclass(frozen=True, kw_only=True)
class CheaperSettings:
    """Settings with which it fits: flat keys -> values, and the peak with them."""

    settings: dict[str, Any]
    peak: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory of a run on a device with `free` bytes (None: unknown)."""

    step: StepBytes
    overhead: int
    free: int | None
    change: CheaperSettings | None
    """None if it fits as it is, or if nothing does."""

    @property
    def peak(self) -> int:
        return self.step.peak + self.overhead

    @property
    def fits(self) -> bool | None:
        return None if self.free is None else self.peak <= self.free

    @property
    def previews_fit(self) -> bool | None:
        """Whether previews fit; without memory for them, training goes on without previews."""
        return None if self.free is None else self.step.preview + self.overhead <= self.free


def make_plan(config: RunConfig, estimate: Estimate, device: str, free: int | None) -> Plan:
    """The plan for a device of this type (cuda, cpu ...)."""
    step = estimate(config)
    overhead = overhead_of(step, device)
    change = None
    if free is not None and step.peak + overhead > free:
        change = _first_that_fits(config, estimate, device, free)
    return Plan(step=step, overhead=overhead, free=free, change=change)


def overhead_of(step: StepBytes, device: str) -> int:
    """Bytes that the process takes besides the tensors of a step."""
    if device == "cpu":
        return PROCESS_BYTES
    return CONTEXT_BYTES + round(ALLOCATOR_SHARE * step.activations)


def _first_that_fits(
    config: RunConfig, estimate: Estimate, device: str, free: int
) -> CheaperSettings | None:
    for settings in cheaper(config, device):
        step = estimate(with_changes(config, settings))
        peak = step.peak + overhead_of(step, device)
        if peak <= free:
            return CheaperSettings(settings=settings, peak=peak)
    return None


def with_changes(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config with settings of `cheaper`: as `RunConfig.replace`, without its
    validation of everything else."""
    training = {key: value for key, value in settings.items() if key != "resolution"}
    resolution = settings.get("resolution", config.dataset.resolution)
    return replace(
        config,
        training=replace(config.training, **training),
        dataset=replace(config.dataset, resolution=resolution),
    )


def cheaper(config: RunConfig, device: str) -> Iterator[dict[str, Any]]:
    """Changes that need less memory, those that cost least first: a smaller batch_size with as many
    images per step, gradient_checkpointing, an 8-bit optimizer, a smaller resolution, and all of
    their combinations.
    """
    training, resolution = config.training, config.dataset.resolution
    assert resolution is not None, "the resolution is known"
    images = training.batch_size * training.gradient_accumulation_steps
    batch_sizes = [n for n in range(training.batch_size, 0, -1) if training.batch_size % n == 0]
    last = (resolution - 1) // SIZE_STEP * SIZE_STEP
    sizes = [resolution, *range(last, max(SIZE_STEP, resolution // 2) - 1, -SIZE_STEP)]
    checkpointing = [True] if training.gradient_checkpointing else [False, True]
    for size, optimizer, checkpoint, batch_size in product(
        sizes, _optimizers(training.optimizer, device), checkpointing, batch_sizes
    ):
        values = {
            "batch_size": batch_size,
            "gradient_accumulation_steps": images // batch_size,
            "gradient_checkpointing": checkpoint,
            "optimizer": optimizer,
            "resolution": size,
        }
        asked = {
            "batch_size": training.batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "gradient_checkpointing": training.gradient_checkpointing,
            "optimizer": training.optimizer,
            "resolution": resolution,
        }
        changed = {key: value for key, value in values.items() if value != asked[key]}
        if changed:
            yield changed


def _optimizers(chosen: str, device: str) -> list[str]:
    """The chosen one, and its 8-bit form where there is one for this device."""
    smaller = OPTIMIZERS.get(f"{chosen}8bit")
    return [chosen, smaller.name] if smaller and smaller.device in ("", device) else [chosen]
