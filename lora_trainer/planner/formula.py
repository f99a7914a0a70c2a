"""The memory of a training in a closed formula: under a millisecond, without torch.

    predict(family, layers, config, precision) -> StepBytes; None if it is not in the table

    peak        = weights + adapters + optimizer + max(activations, gradients)
    activations = batch_size (per_image + per_pixel pixels + per_pixel_and_rank pixels rank
                  + per_text chunks of captions that are encoded in each step)
                  + per_weight LoRA weights

The constants of each architecture are in constants.json, which tests/benchmark/memory_table.py
generates. They are fitted to planner.accounting with the rules of a graphics card: the models'
sizes, and for each LoRA type a step with torch's layers and one with those of `frozen`, which save
neither inputs nor dequantized weights. The formula is within 5 % of the accounting (BENCHMARKS.md).
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
from lora_trainer.families.base import TILE, Family, Shape
from lora_trainer.frozen.blocks import SLOTS, spread
from lora_trainer.settings.training import DEFAULT_RANK, RunConfig
from lora_trainer.training.optimizers import state_bytes

Precision = Literal["full", "half"]
"""Of the frozen model. full: float32; half: bfloat16 or float16."""
Layers = Mapping[str, Iterable[tuple[str, Shape]]]
"""`Family.layer_shapes`."""
TABLE = Path(__file__).with_name("constants.json")
BYTES = {"full": 4, "half": 2}
KEPT_BYTES = {"int8": 1, "fp8": 1}
"""Bytes of a frozen weight by base_precision, without the scales (one per hundreds of weights)."""
ADAPTER_BYTES = 4
"""Bytes of an adapter weight, and of its gradient: float32."""
CHUNK = 75
"""Tokens of a caption that a text encoder processes at once."""


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes at the peak of a step. activations: including the gradients that exist at the peak."""

    weights: int
    adapters: int
    optimizer: int
    activations: int
    encoding: int
    """Peak of encoding the captions and images, before the model is loaded."""
    preview: int
    """Peak of generating a preview, while model, adapters and optimizer are loaded too."""

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.activations


def predict(
    family: Family, layers: Layers, config: RunConfig, precision: Precision
) -> StepBytes | None:
    """The memory of a step; an upper bound for fewer target modules than the default. None if the
    table lacks the architecture or LoRA type. config: `resolution` is set.
    """
    entry = _entry(family.id, _matrix_weights(layers))
    resolution = config.dataset.resolution
    step = None if entry is None else _step(entry, config, precision)
    if entry is None or step is None or resolution is None:
        return None
    count = parameter_count(family, layers, config.lora)
    text_encoders = entry["text_encoder_weights"] * BYTES[precision]
    if config.checkpoint.base_precision in KEPT_BYTES:
        # quantized weights take one byte instead of two; embeddings and small ones do not change
        text_encoders -= entry["text_encoder_kept"] * (BYTES[precision] - 1)
    weights = _unet_bytes(entry, config, precision)
    if config.lora.train_text_encoder:
        weights += text_encoders
    adapters = count * ADAPTER_BYTES
    optimizer = round(count * state_bytes(config.training))
    return StepBytes(
        weights=weights,
        adapters=adapters,
        optimizer=optimizer,
        activations=_activations(step, config, count, resolution),
        encoding=max(text_encoders, _vae_bytes(entry["encoding"], config, resolution)),
        preview=weights
        + adapters
        + optimizer
        + _vae_bytes(entry["decoding"], config, config.samples.sample_size or resolution),
    )


def block_count(family: Family, layers: Layers) -> int:
    """The number of blocks that can be swapped; 0 if the table has no such architecture."""
    entry = _entry(family.id, _matrix_weights(layers))
    return 0 if entry is None else len(entry["block_weights"])


def keeps_frozen(config: RunConfig) -> bool:
    """Whether the blocks' layers are those of `frozen`."""
    return config.checkpoint.base_precision in KEPT_BYTES or bool(config.training.blocks_to_swap)


def _unet_bytes(entry: Mapping[str, Any], config: RunConfig, precision: Precision) -> int:
    """Bytes of the UNet's weights on the device."""
    blocks, swapped = entry["block_weights"], config.training.blocks_to_swap or 0
    kept = KEPT_BYTES.get(config.checkpoint.base_precision, BYTES[precision])
    away = [blocks[number] for number in spread(swapped, len(blocks))]
    here = sum(blocks) - sum(away) + SLOTS * max(away, default=0)
    return int((entry["unet_weights"] - sum(blocks)) * BYTES[precision] + here * kept)


def _vae_bytes(line: Mapping[str, float], config: RunConfig, side: int) -> int:
    tiled = min(side, TILE) if config.training.vae_tiling else side
    return round(line["fixed"] + line["per_pixel"] * tiled**2)


def _step(
    entry: Mapping[str, Any], config: RunConfig, precision: Precision
) -> Mapping[str, float] | None:
    """The constants of a step; None if they were not measured."""
    asked = config.lora.lora_type, precision, config.training.gradient_checkpointing
    for step in entry["steps"]:
        if (step["lora_type"], step["precision"], step["checkpointing"]) == asked:
            if not keeps_frozen(config):
                return step  # type: ignore[no-any-return]
            return {**step, **step["frozen"]} if "frozen" in step else None
    return None


def _activations(step: Mapping[str, float], config: RunConfig, count: int, resolution: int) -> int:
    training = config.training
    pixels, rank = resolution**2, config.lora.lora_rank or DEFAULT_RANK
    per_image = step["per_image"] + step["per_pixel"] * pixels
    per_image += step["per_pixel_and_rank"] * pixels * rank
    if config.lora.lora_dropout:
        # what each adapter is given, with the rest dropped, and which it was
        per_image += step["dropout_per_image"] + step["dropout_per_pixel"] * pixels
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


def _entry(family: str, matrix_weights: int) -> Mapping[str, Any] | None:
    key = (family, matrix_weights)
    return next(
        (entry for entry in _table() if (entry["family"], entry["matrix_weights"]) == key), None
    )


def _matrix_weights(layers: Layers) -> int:
    """Number of weights in the UNet's matrices and kernels, which identifies the architecture."""
    return sum(prod(shape) for _, shape in layers["unet"])
