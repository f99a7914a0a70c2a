"""`plan`: what a run would need, on this machine's device or on a card of a given size.

    ask(config, card) -> Answer       with to_text() and to_json()

Architectures that the closed formula knows take no time; for others a step is counted, which takes
seconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch

from lora_trainer.checkpoint.load import Checkpoint, open_checkpoint
from lora_trainer.errors import CheckpointError, ConfigError
from lora_trainer.language.detect import is_language_model
from lora_trainer.lora.changes import open_changes
from lora_trainer.planner import accounting, formula
from lora_trainer.planner.formula import BYTES, Precision, StepBytes
from lora_trainer.planner.plan import Estimate, Plan, make_plan
from lora_trainer.planner.throughput import Throughput, kind_of
from lora_trainer.settings.training import DEFAULT_RANK, RunConfig
from lora_trainer.training.device import choose_device, choose_precision, describe_device
from lora_trainer.training.optimizers import require_optimizer, state_bytes

GIB = 2**30
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", re.IGNORECASE)
FEWEST_GB, MOST_GB = 0.5, 4096.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A plan with what it is about."""

    plan: Plan
    config: RunConfig
    family: str
    device: str
    """Its name for people."""
    precision: Precision
    counted: bool
    """Whether a step was counted, instead of the formula."""
    seconds_per_step: float | None
    """None without an earlier run of this kind beside output_dir."""

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
            f"  peak {_gib(plan.peak)}; while a preview is made"
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


def ask(config: RunConfig, card: str | None = None) -> Answer:
    """The plan for these settings: on a card of the size `card` ("8GB"), else on the device of the
    settings with what is free of its memory.

    Raises ConfigError, CheckpointError, LoraFileError.
    """
    base = config.checkpoint
    if is_language_model(base.base_model):
        raise CheckpointError(
            "{path} is a language model, whose memory is not predicted",
            hint="Start the training with few steps: its report names the peak.",
            path=base.base_model,
        )
    checkpoint = open_checkpoint(
        base.base_model,
        vae=base.vae,
        prediction_type=base.prediction_type,
        zero_terminal_snr=base.zero_terminal_snr,
    )
    kind, name, free = _device(config, card)
    precision = _precision(config, checkpoint, kind)
    resolved = _resolved(config, checkpoint)
    estimate, counted = _estimate(checkpoint, resolved, precision, kind)
    plan = make_plan(resolved, estimate, kind, free)
    known = Throughput(config.output.output_dir.parent)
    images = resolved.training.batch_size * resolved.training.gradient_accumulation_steps
    size = resolved.dataset.resolution or 0
    per_image = known.seconds_per_image(kind_of(resolved, checkpoint.family.id, size))
    return Answer(
        plan=plan,
        config=resolved,
        family=checkpoint.family.name,
        device=name,
        precision=precision,
        counted=counted,
        seconds_per_step=None if per_image is None or card else per_image * images,
    )


def card_bytes(text: str) -> int:
    """ "8GB" -> bytes, with 2**30 bytes in one as cards are sold. Raises ConfigError."""
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) if found else 0.0
    if not FEWEST_GB <= size <= MOST_GB:
        raise ConfigError(
            "--card is {text!r}", hint="Use a card's memory, such as 8GB or 11.5GB.", text=text
        )
    return int(size * GIB)


def _device(config: RunConfig, card: str | None) -> tuple[str, str, int | None]:
    """Type, name and free bytes of the device."""
    asked = config.training.device
    if card is not None:
        size = card_bytes(card)
        if not asked.startswith(("auto", "cuda")):
            raise ConfigError(
                "--card is given, but device is {device}",
                hint="Leave --card out, or add --set device=auto.",
                device=asked,
            )
        return "cuda", f"a card of {size / GIB:g} GB", size
    device = choose_device(asked)
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
    """The settings with every `auto` resolved that needs memory."""
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
    """The formula where it knows the architecture, on a card; else the accounting."""
    family = checkpoint.family
    layers = family.layer_shapes(checkpoint.path, checkpoint.detected)
    if kind != "cpu" and formula.predict(family, layers, config, precision) is not None:

        def predicted(changed: RunConfig) -> StepBytes:
            found = formula.predict(family, layers, changed, precision)
            assert found is not None, "no change makes it another architecture"
            return found

        return predicted, False
    return cache(lambda changed: _counted(checkpoint, changed, precision, kind)), True


def _counted(
    checkpoint: Checkpoint, config: RunConfig, precision: Precision, kind: str
) -> StepBytes:
    dtype = torch.float32 if precision == "full" else torch.bfloat16
    step = accounting.account(checkpoint, config, dtype, kind)
    optimizer = round(step.adapters / formula.ADAPTER_BYTES * state_bytes(config.training))
    size = config.samples.sample_size or config.dataset.resolution or 0
    loaded = step.weights + step.adapters + optimizer
    return StepBytes(
        weights=step.weights,
        adapters=step.adapters,
        optimizer=optimizer,
        activations=step.activations + step.gradients,
        preview=loaded + accounting.decoding_peak(checkpoint, (size, size)),
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
