"""The memory of a training step in a closed formula: under a millisecond, without torch.

    predict(family, layers, config, precision) -> StepBytes, or None for what is not in the table

    peak        = weights + adapters + optimizer + max(activations, gradients)
    activations = batch_size (per_image + per_pixel pixels + per_pixel_and_rank pixels rank
                  + per_text chunks of captions that are encoded in each step)
                  + per_weight LoRA weights

The constants of each architecture are in constants.json, fitted to planner.accounting as on a
graphics card by tests/benchmark/memory_table.py, which makes them anew. The formula is within 5 %
of the accounting (BENCHMARKS.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.adapters.size import parameter_count
from lora_trainer.families.base import Family, Shape
from lora_trainer.settings.training import DEFAULT_RANK, RunConfig
from lora_trainer.training.optimizers import state_bytes

Precision = Literal["full", "half"]
"""Of the frozen model: float32, or bfloat16 and float16."""
Layers = Mapping[str, Iterable[tuple[str, Shape]]]
"""`Family.layer_shapes`."""
TABLE = Path(__file__).with_name("constants.json")
BYTES = {"full": 4, "half": 2}
ADAPTER_BYTES = 4
"""Bytes of an adapter's weight, and of its gradient: float32."""
CHUNK = 75
"""Tokens of a caption that a text encoder takes at once."""


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes at the peak of a step. activations: with the gradients that exist at that time."""

    weights: int
    adapters: int
    optimizer: int
    activations: int
    preview: int
    """Peak of making a preview, when model, adapters and optimizer are loaded too."""

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.activations


def is_known(family: Family, layers: Layers, lora_type: str) -> bool:
    """Whether the table has this architecture and type of LoRA."""
    return _entry(family.id, _matrix_weights(layers), lora_type) is not None


def predict(
    family: Family, layers: Layers, config: RunConfig, precision: Precision
) -> StepBytes | None:
    """The memory of a step. config: with `resolution` set. None: the table has no such architecture
    or type of LoRA. For fewer target modules than the default it is an upper bound.
    """
    entry = _entry(family.id, _matrix_weights(layers), config.lora.lora_type)
    resolution = config.dataset.resolution
    if entry is None or resolution is None:
        return None
    count = parameter_count(family, layers, config.lora)
    weights = entry["unet_weights"] * BYTES[precision]
    if config.lora.train_text_encoder:
        weights += entry["text_encoder_weights"] * BYTES[precision]
    adapters = count * ADAPTER_BYTES
    optimizer = round(count * state_bytes(config.training))
    decoding = entry["decoding"]
    side = config.samples.sample_size or resolution
    return StepBytes(
        weights=weights,
        adapters=adapters,
        optimizer=optimizer,
        activations=_activations(entry, config, precision, count, resolution),
        preview=round(
            weights + adapters + optimizer + decoding["fixed"] + decoding["per_pixel"] * side**2
        ),
    )


def _activations(
    entry: Mapping[str, Any], config: RunConfig, precision: Precision, count: int, resolution: int
) -> int:
    training = config.training
    step = next(
        step
        for step in entry["steps"]
        if (step["precision"], step["checkpointing"])
        == (precision, training.gradient_checkpointing)
    )
    pixels, rank = resolution**2, config.lora.lora_rank or DEFAULT_RANK
    per_image = step["per_image"] + step["per_pixel"] * pixels
    per_image += step["per_pixel_and_rank"] * pixels * rank
    if config.lora.train_text_encoder:
        per_image += step["per_text"] * config.checkpoint.max_token_length / CHUNK
    gradients = count * ADAPTER_BYTES
    # with accumulation, the first batch's gradients exist during the second one's passes
    kept = gradients if training.gradient_accumulation_steps > 1 else 0
    activations: float = training.batch_size * per_image + step["per_weight"] * count + kept
    return max(round(activations), gradients)


@cache
def _table() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = files.load_json(TABLE)
    return found


def _entry(family: str, matrix_weights: int, lora_type: str) -> Mapping[str, Any] | None:
    key = (family, matrix_weights, lora_type)
    return next(
        (
            entry
            for entry in _table()
            if (entry["family"], entry["matrix_weights"], entry["lora_type"]) == key
        ),
        None,
    )


def _matrix_weights(layers: Layers) -> int:
    """Weights of the UNet's matrices and kernels, which tell one architecture from another."""
    return sum(prod(shape) for _, shape in layers["unet"])
