"""Made measurements: series with a known answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lora_trainer.settings import training
from lora_trainer.verdict import MeasuredStep, Measurements

BASE = 0.12
SAVES = tuple(range(0, 2001, 200))
"""Ten saves of 2,000 steps, and step 0."""

Curve = Callable[[int], float]


def approach(share: float, constant: float = 400.0) -> Curve:
    """A loss that falls by `share` of the checkpoint's, exponentially."""
    return lambda step: BASE * (1 - share * (1 - math.exp(-step / constant)))


def by_strength(best: float, share: float, base: float = BASE) -> dict[float, float]:
    """Losses of a parabola with its lowest at strength `best`."""
    return {
        strength: base * (1 - share * (1 - (1 - strength / best) ** 2))
        for strength in (0.5, 0.75, 1.0, 1.25)
    }


def measured(
    trained: Curve | None,
    held_out: Curve | None = None,
    change: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Measurements:
    """A run of 2,000 steps. `change(step, values)`: what else was measured at a step."""
    steps = []
    for step in SAVES:
        values: dict[str, Any] = {
            "training_loss": trained(step) if trained else None,
            "validation_loss": held_out(step) if held_out else None,
        }
        if change is not None:
            values |= change(step, values)
        steps.append(MeasuredStep(step=step, **values))
    config = training.from_mapping(
        {
            "train_data_dir": "/images",
            "base_model": "/base.safetensors",
            "output_dir": "/run",
            "name": "ink",
            "trigger_word": "inkstyle",
            "learning_rate": 3e-4,
            "lora_rank": 8,
            **(settings or {}),
        }
    )
    values = {
        "step": 2000,
        "step_count": 2000,
        "image_count": 40,
        "steps": tuple(steps),
        "saved": SAVES[1:],
        **more,
    }
    return Measurements(config=config, **values)
