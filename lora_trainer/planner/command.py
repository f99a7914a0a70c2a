"""The command `plan`: the memory and time of a run on this machine's device, or on a graphics card
of a given size.

    ask(config, card) -> Answer       with to_text() and to_json()

Architectures of the closed formula take no time; for others a step is counted, which takes seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any

import psutil
import torch

from lora_trainer.checkpoint.load import Checkpoint, open_as_set
from lora_trainer.cpu.convolutions import layout_bytes
from lora_trainer.errors import CheckpointError, ConfigError
from lora_trainer.families.base import TILE
from lora_trainer.language.detect import is_language_model
from lora_trainer.lora.changes import open_changes
from lora_trainer.planner import accounting, formula
from lora_trainer.planner.formula import BYTES, Precision, StepBytes
from lora_trainer.planner.limits import share_of
from lora_trainer.planner.plan import (
    Estimate,
    Plan,
    make_plan,
    of_share,
    process_count,
    with_changes,
)
from lora_trainer.planner.throughput import Throughput, kind_of
from lora_trainer.settings.training import DEFAULT_RANK, RunConfig, memory_bytes
from lora_trainer.training.device import (
    choose_device,
    choose_precision,
    describe_device,
    listed_devices,
)
from lora_trainer.training.optimizers import require_optimizer, state_bytes

GIB = 2**30
HEAP_OF_STEP = 1.3
"""What glibc's heap takes on a processor per byte of a step's activations: it finds no freed block
for an aligned one of the same size. Measured: 1.2 to 1.6 (BENCHMARKS).
"""
HEAP_OF_ENCODING = 2.5
"""The same per byte of encoding an image, whose tensors are few and large. Measured: 1.8 to 2.7."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A plan and the run that it is for."""

    plan: Plan
    config: RunConfig
    family: str
    device: str
    """Display name of the device."""
    precision: Precision
    counted: bool
    """Whether a step was counted instead of using the formula."""
    seconds_per_step: float | None
    """None without an earlier run of this kind in the parent folder of output_dir."""

    def to_json(self) -> str:
        plan, step = self.plan, self.plan.step
        values: dict[str, Any] = {
            "family": self.family,
            "device": self.device,
            "resolution": self.config.dataset.resolution,
            "batch_size": self.config.training.batch_size,
            "bytes_per_weight": BYTES[self.precision],
            "counted": self.counted,
            "peak_bytes": plan.peak,
            "weights_bytes": step.weights,
            "adapters_bytes": step.adapters,
            "optimizer_bytes": step.optimizer,
            "activations_bytes": step.activations,
            "overhead_bytes": plan.overhead,
            "encoding_bytes": step.encoding + plan.overhead,
            "preview_bytes": step.preview + plan.overhead,
            "card_bytes": plan.free,
            "fits": plan.fits,
            "previews_fit": plan.previews_fit,
            "changes": plan.change.settings if plan.change else ({} if plan.fits else None),
            "changed_peak_bytes": plan.change.peak if plan.change else None,
            "seconds_per_step": self.seconds_per_step,
        }
        return json.dumps(values, indent=1)

    def to_text(self) -> str:
        plan, step, training = self.plan, self.plan.step, self.config.training
        lines = [
            f"{self.family}, {self.config.dataset.resolution} pixels, batch_size"
            f" {training.batch_size}, on {self.device}:",
            f"  model {_gib(step.weights)}, LoRA and optimizer"
            f" {_gib(step.adapters + step.optimizer)}, a step {_gib(step.activations)}, the"
            f" process {_gib(plan.overhead)}",
            f"  peak {_gib(plan.peak)}; while images are encoded"
            f" {_gib(step.encoding + plan.overhead)}, while a preview is made"
            f" {_gib(step.preview + plan.overhead)}",
        ]
        if self.seconds_per_step is not None:
            lines.append(f"  {self.seconds_per_step:.2f} s a step, as in an earlier run")
        return "\n".join([*lines, *self._verdict()])

    def _verdict(self) -> list[str]:
        plan = self.plan
        if plan.free is None:
            return []
        if plan.fits:
            found = [f"It fits: {_gib(plan.free)} are free."]
            if not plan.previews_fit:
                found.append("There is no memory for previews; a smaller sample_size needs less.")
            return found
        found = [f"It does not fit: {_gib(plan.free)} are free."]
        if plan.change is None:
            return [*found, "No change of settings makes it fit. Use a smaller lora_rank or model."]
        changes = ", ".join(
            f"{key}: {_written(value)}" for key, value in plan.change.settings.items()
        )
        return [*found, f"It fits with {changes}: peak {_gib(plan.change.peak)}."]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The inputs of a plan."""

    checkpoint: Checkpoint
    config: RunConfig
    """Every `auto` that affects memory is resolved."""
    kind: str
    """Device type: cpu, cuda ..."""
    name: str
    """Display name of the device."""
    free: int | None
    """Bytes of free memory; None if unknown."""
    precision: Precision
    estimate: Estimate
    counted: bool
    """Whether steps are counted, which takes seconds each, instead of using the formula."""

    @cached_property
    def block_count(self) -> int:
        """The number of blocks that can be swapped."""
        return len(self.checkpoint.family.blocks(self.checkpoint.outline().unet))

    def may(self, settings: Mapping[str, Any]) -> bool:
        """Whether this machine supports these changes: False if the optimizer is not available."""
        try:
            require_optimizer(with_changes(self.config, settings).training, torch.device(self.kind))
        except ConfigError:
            return False
        return True

    def with_settings(self, config: RunConfig) -> RunConfig:
        """`config`, resolved like `self.config`."""
        return _resolved(config, self.checkpoint)


def situation(
    config: RunConfig, card: str | None = None, processes: int | None = None
) -> Situation:
    """The inputs of a plan for these settings: on a graphics card with the memory `card` ("8GB"),
    else on the device of the settings with its free memory, reduced to the share that earlier runs
    could use. processes: number of training processes (default: from the settings).

    Raises ConfigError, CheckpointError, LoraFileError.
    """
    base = config.checkpoint
    if is_language_model(base.base_model):
        raise CheckpointError(
            "{path} is a language model, whose memory is not predicted",
            hint="Start a training with few steps: its report states the peak.",
            path=base.base_model,
        )
    checkpoint = open_as_set(base)
    checkpoint.require_parts()
    kind, name, free = _device(config, card)
    precision = _precision(config, checkpoint, kind)
    resolved = _resolved(config, checkpoint)
    estimate, counted = _estimate(checkpoint, resolved, precision, kind)
    if processes is None:
        processes = process_count(config.training.devices, torch.cuda.device_count())
    estimate = of_share(estimate, processes)
    if free is not None and card is None:
        free = int(free * share_of(config.output.output_dir.parent, name))
    return Situation(
        checkpoint=checkpoint,
        config=resolved,
        kind=kind,
        name=name,
        free=free,
        precision=precision,
        estimate=estimate,
        counted=counted,
    )


def ask(config: RunConfig, card: str | None = None) -> Answer:
    """The plan for these settings: see `situation`."""
    here = situation(config, card)
    resolved, checkpoint = here.config, here.checkpoint
    plan = make_plan(resolved, here.estimate, here.kind, here.free, here.block_count)
    assert plan is not None, "what the formula does not know is counted"
    known = Throughput(config.output.output_dir.parent)
    images = resolved.training.batch_size * resolved.training.gradient_accumulation_steps
    size = resolved.dataset.resolution or 0
    per_image = known.seconds_per_image(kind_of(resolved, checkpoint.family.id, size))
    return Answer(
        plan=plan,
        config=resolved,
        family=checkpoint.family.name,
        device=here.name,
        precision=here.precision,
        counted=here.counted,
        seconds_per_step=None if per_image is None or card else per_image * images,
    )


def card_bytes(text: str) -> int:
    """ "8GB" -> bytes. Raises ConfigError for other text."""
    size = memory_bytes(text)
    if size is None:
        raise ConfigError(
            "--card is {text!r}",
            hint=("Use the memory of a graphics card, such as 8GB or 11.5GB."),
            text=text,
        )
    return size


def _device(config: RunConfig, card: str | None) -> tuple[str, str, int | None]:
    """Type, name and free bytes of the device."""
    asked = config.training.device
    if card is not None:
        size = card_bytes(card)
        if not asked.startswith(("auto", "cuda")):
            raise ConfigError(
                "--card is given, but device is {device}",
                hint="Omit --card, or add --set device=auto.",
                device=asked,
            )
        return "cuda", f"a card of {size / GIB:g} GB", size
    device = choose_device(listed_devices(asked, config.training.devices)[0])
    require_optimizer(config.training, device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return device.type, describe_device(device), int(free)


def _precision(config: RunConfig, checkpoint: Checkpoint, kind: str) -> Precision:
    asked = config.checkpoint.mixed_precision
    if kind == "cuda" and asked == "auto":
        return "half"
    dtype = choose_precision(asked, torch.device(kind), checkpoint.unet_parameter_count)
    return "full" if dtype == torch.float32 else "half"


def _resolved(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """The settings; every `auto` that affects memory is resolved."""
    if config.lora.init_lora is not None:
        config = config.replace(**open_changes(config.lora.init_lora).rank_and_alpha(config.lora))
    resolution = config.dataset.resolution or checkpoint.native_resolution
    return config.replace(
        resolution=resolution,
        lora_rank=config.lora.lora_rank or DEFAULT_RANK,
        sample_size=config.samples.sample_size or min(resolution, 2048) // 8 * 8,
    )


def _estimate(
    checkpoint: Checkpoint, config: RunConfig, precision: Precision, kind: str
) -> tuple[Estimate, bool]:
    """The formula on a graphics card if it knows the architecture; else the accounting."""
    family = checkpoint.family
    layers = family.layer_shapes(checkpoint.path, checkpoint.detected)

    def predicted(changed: RunConfig) -> StepBytes | None:
        return formula.predict(family, layers, changed, precision)

    if kind != "cpu" and predicted(config) is not None:
        return predicted, False
    dtype = _dtype_of(precision)
    peaks = (
        cache(lambda side: accounting.encoding_peak(checkpoint, (side, side), dtype, kind)),
        cache(lambda side: accounting.decoding_peak(checkpoint, (side, side))),
    )
    return cache(lambda changed: _counted(checkpoint, changed, precision, kind, *peaks)), True


def _counted(
    checkpoint: Checkpoint,
    config: RunConfig,
    precision: Precision,
    kind: str,
    encoding_peak: Callable[[int], int],
    decoding_peak: Callable[[int], int],
) -> StepBytes:
    dtype = _dtype_of(precision)
    step = accounting.account(checkpoint, config, dtype, kind)
    optimizer = round(step.adapters / formula.ADAPTER_BYTES * state_bytes(config.training))
    side = config.dataset.resolution or 0
    preview = config.samples.sample_size or side
    if config.training.vae_tiling:
        side, preview = min(side, TILE), min(preview, TILE)
    weights = step.weights
    if kind == "cpu":
        unet = checkpoint.outline().unet
        groups = checkpoint.family.blocks(unet)
        kept = config.checkpoint.base_precision in formula.KEPT_BYTES
        weights += layout_bytes(unet, dtype, chain.from_iterable(groups) if kept else ())
    loaded = weights + step.adapters + optimizer
    on_heap = kind == "cpu" and sys.platform == "linux"
    images = encoding_peak(side) * (HEAP_OF_ENCODING if on_heap else 1)
    activations = step.activations * (HEAP_OF_STEP if on_heap else 1)
    return StepBytes(
        weights=weights,
        adapters=step.adapters,
        optimizer=optimizer,
        activations=round(activations) + step.gradients,
        encoding=max(round(images), accounting.text_encoding_peak(checkpoint, config, dtype, kind)),
        preview=loaded + decoding_peak(preview),
    )


def _dtype_of(precision: Precision) -> torch.dtype:
    return torch.float32 if precision == "full" else torch.bfloat16


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
