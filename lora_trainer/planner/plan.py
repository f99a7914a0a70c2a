"""Settings and free memory -> Plan: the predicted peak, whether it fits, and the cheapest changes
that make it fit. Without torch: the estimate of a step's memory is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lora_trainer.planner.formula import StepBytes
from lora_trainer.settings import schema
from lora_trainer.settings.training import RunConfig
from lora_trainer.training.optimizers import OPTIMIZERS

Estimate = Callable[[RunConfig], StepBytes | None]
"""The memory of a step with these settings; `resolution` is set. None: unknown."""

CONTEXT_BYTES = 512 * 2**20
"""GPU memory of a process besides tensors: the CUDA context, loaded kernels, handles and workspaces
of cuBLAS and cuDNN. The usual 0.3 to 0.5 GiB, rounded up; not measured.
"""
ALLOCATOR_SHARE = 0.05
"""What the caching allocator reserves beyond live tensors, as a share of the activations; not
measured.
"""
PROCESS_BYTES = 450 * 2**20
"""Main memory of a worker process besides tensors: Python and the torch stack. Measured
(BENCHMARKS).
"""
SIZE_STEP = 64
"""Interval of the smaller resolutions that are tried, in pixels; down to half of the requested one.
"""


COSTS = {
    "batch_size": 0.1,
    "gradient_checkpointing": 0.4,
    "blocks_to_swap": 0.3,
    "base_precision": 0.55,
    "optimizer": 0.9,
}
"""Cost of a change as a fraction of a step's time; the cheapest is tried first. batch_size: each
halving. gradient_checkpointing: as measured on a CPU. blocks_to_swap: three times as much for all
blocks. 8-bit weights and an 8-bit optimizer (which needs a package) cost little time, but accuracy.
"""
LESS = 0.95
"""After a run ran out of memory, the next settings must need at most this share of its peak."""
SWAPPED = (0.25, 0.5, 0.75, 1.0)
"""Shares of the blocks that are tried for blocks_to_swap."""


@dataclass(frozen=True, kw_only=True)
class CheaperSettings:
    """Settings with which the run fits: flat keys -> values; and the peak with them, in bytes."""

    settings: dict[str, Any]
    peak: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory of a run on a device with `free` bytes (None: unknown)."""

    step: StepBytes
    overhead: int
    free: int | None
    change: CheaperSettings | None
    """None if it fits without changes, or with none of them."""

    @property
    def peak(self) -> int:
        return max(self.step.peak, self.step.encoding) + self.overhead

    @property
    def fits(self) -> bool | None:
        return None if self.free is None else self.peak <= self.free

    @property
    def previews_fit(self) -> bool | None:
        """Whether previews fit; if not, training continues without previews."""
        return None if self.free is None else self.step.preview + self.overhead <= self.free


def make_plan(
    config: RunConfig, estimate: Estimate, device: str, free: int | None, block_count: int = 0
) -> Plan | None:
    """The plan for a device of this type (cuda, cpu ...); None if the estimate is unknown for these
    settings. block_count: the number of blocks that can be swapped.
    """
    step = estimate(config)
    if step is None:
        return None
    plan = Plan(step=step, overhead=overhead_of(step, device), free=free, change=None)
    if free is None or plan.fits:
        return plan
    return replace(plan, change=_first_that_fits(config, estimate, device, free, block_count))


def overhead_of(step: StepBytes, device: str) -> int:
    """Bytes that the process needs besides the tensors of a step."""
    if device == "cpu":
        return PROCESS_BYTES
    return CONTEXT_BYTES + round(ALLOCATOR_SHARE * step.activations)


def peak_with(
    config: RunConfig, settings: Mapping[str, Any], estimate: Estimate, device: str
) -> int | None:
    """The predicted peak with these changes, in bytes; None if unknown."""
    plan = make_plan(with_changes(config, settings), estimate, device, None)
    return None if plan is None else plan.peak


def fitting(
    config: RunConfig,
    first: Mapping[str, Any],
    estimate: Estimate,
    device: str,
    free: int,
    block_count: int,
    may: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> tuple[dict[str, Any], int | None]:
    """The cheapest changes in addition to `first` that fit at the same resolution.

    may: whether changes are allowed. Returns all changes including `first`, and the peak in bytes
    (None if unknown). If nothing fits, those with the smallest peak.
    """
    begun = with_changes(config, first)
    plan = make_plan(begun, estimate, device, None)
    if plan is None or plan.peak <= free:
        return dict(first), None if plan is None else plan.peak
    tiled = {"vae_tiling": True} if plan.step.encoding + plan.overhead > free else {}
    best: tuple[dict[str, Any], int | None] = ({**first, **tiled}, plan.peak)
    for changes in ({}, *cheaper(begun, device, block_count)):
        settings = {**first, **changes, **tiled}
        peak = peak_with(config, settings, estimate, device)
        if peak is None or not may(settings):
            continue
        if peak <= free:
            return settings, peak
        if best[1] is None or peak < best[1]:
            best = settings, peak
    return best


def fastest_settings(config: RunConfig) -> dict[str, Any]:
    """Changes that save time and need more memory."""
    return {"gradient_checkpointing": False} if config.training.gradient_checkpointing else {}


def _first_that_fits(
    config: RunConfig, estimate: Estimate, device: str, free: int, block_count: int
) -> CheaperSettings | None:
    step = estimate(config)
    tiled: dict[str, Any] = {}
    if step is not None and step.encoding + overhead_of(step, device) > free:
        tiled = {"vae_tiling": True}

    def candidates() -> Iterator[dict[str, Any]]:
        yield {}
        yield from cheaper(config, device, block_count)
        smallest = smallest_settings(config, device, block_count)
        yield from ({**smallest, "resolution": size} for size in _sizes(config))

    for found in candidates():
        settings = {**found, **tiled}
        peak = peak_with(config, settings, estimate, device)
        if settings and peak is not None and peak <= free:
            return CheaperSettings(settings=settings, peak=peak)
    return None


def of_share(estimate: Estimate, count: int) -> Estimate:
    """The estimate for one of `count` processes, each of which has a share of every batch."""

    def estimate_share(config: RunConfig) -> StepBytes | None:
        share = -(-config.training.batch_size // count)
        return estimate(with_changes(config, {"batch_size": share}))

    return estimate if count == 1 else estimate_share


def process_count(devices: str, cards: int) -> int:
    """Number of processes of a run with the setting `devices` on a machine with `cards` GPUs."""
    return {"auto": 1, "all": max(1, cards)}.get(devices, len(devices.split(",")))


def with_changes(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config with settings of `cheaper`; like `RunConfig.replace`, but without validation."""

    def changed(group: Any) -> Any:
        own = {item.name for item in schema.fields_of(group)}
        return replace(group, **{key: value for key, value in settings.items() if key in own})

    return replace(
        config,
        training=changed(config.training),
        dataset=changed(config.dataset),
        checkpoint=changed(config.checkpoint),
    )


def cheaper(config: RunConfig, device: str, block_count: int = 0) -> Iterator[dict[str, Any]]:
    """Yields changes that need less memory, the cheapest first: a smaller batch_size with as many
    images per step, gradient_checkpointing, blocks_to_swap and base_precision if they are auto, an
    8-bit optimizer, and all combinations of these.
    """
    training = config.training
    asked = _asked(config)
    images = training.batch_size * training.gradient_accumulation_steps
    options: dict[str, list[Any]] = {
        "batch_size": _batch_sizes(training.batch_size),
        "gradient_checkpointing": [training.gradient_checkpointing, True],
        "blocks_to_swap": _swap_counts(config, device, block_count),
        "base_precision": [asked["base_precision"], *_smaller_precisions(config)],
        "optimizer": [training.optimizer, *_smaller_optimizers(training.optimizer, device)],
    }
    found: dict[tuple[Any, ...], tuple[float, dict[str, Any]]] = {}
    for values in product(*options.values()):
        chosen = dict(zip(options, values, strict=True))
        chosen["gradient_accumulation_steps"] = images // chosen["batch_size"]
        changes = {key: chosen[key] for key in asked if chosen[key] != asked[key]}
        if changes:
            cost = sum(_cost(key, value, config, block_count) for key, value in changes.items())
            found[values] = cost, changes
    yield from (changes for _, changes in sorted(found.values(), key=lambda one: one[0]))


def smallest_settings(config: RunConfig, device: str, block_count: int = 0) -> dict[str, Any]:
    """All changes that save memory at the same resolution, combined."""
    *_, found = {}, *cheaper(config, device, block_count)
    return found


def _asked(config: RunConfig) -> dict[str, Any]:
    training = config.training
    return {
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_checkpointing": training.gradient_checkpointing,
        "blocks_to_swap": training.blocks_to_swap,
        "base_precision": config.checkpoint.base_precision,
        "optimizer": training.optimizer,
    }


def _cost(key: str, value: Any, config: RunConfig, block_count: int) -> float:
    cost = COSTS.get(key, 0.0)
    if key == "batch_size":
        return cost * float(config.training.batch_size / value - 1)
    if key == "blocks_to_swap":
        return cost * float(1 + 2 * value / block_count)
    return cost


def _batch_sizes(asked: int) -> list[int]:
    return [size for size in range(asked, 0, -1) if asked % size == 0]


def _swap_counts(config: RunConfig, device: str, block_count: int) -> list[int | None]:
    asked = config.training.blocks_to_swap
    if asked is not None or device == "cpu":
        return [asked]
    counts = {round(share * block_count) for share in SWAPPED} - {0}
    return [None, *sorted(counts)]


def _smaller_precisions(config: RunConfig) -> list[str]:
    # int8 rather than fp8: as small, and more accurate
    return ["int8"] if config.checkpoint.base_precision == "auto" else []


def _smaller_optimizers(chosen: str, device: str) -> list[str]:
    """Its 8-bit variant if there is one for this device."""
    smaller = OPTIMIZERS.get(f"{chosen}8bit")
    return [smaller.name] if smaller and smaller.device in ("", device) else []


def _sizes(config: RunConfig) -> list[int]:
    """Smaller resolutions, largest first."""
    resolution = config.dataset.resolution
    assert resolution is not None, "the resolution is known"
    last = (resolution - 1) // SIZE_STEP * SIZE_STEP
    return list(range(last, max(SIZE_STEP, resolution // 2) - 1, -SIZE_STEP))
