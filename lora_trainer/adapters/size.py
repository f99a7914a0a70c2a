"""The number of weights of a LoRA, from the checkpoint's layers and the settings, before training.

Used by the tab. Without torch: `Family.layer_shapes` reads the checkpoint's header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_trainer.adapters import types
from lora_trainer.families.base import Family, Shape
from lora_trainer.lora.names import is_target
from lora_trainer.settings.training import LoraSettings


def parameter_count(
    family: Family, layers: Mapping[str, Iterable[tuple[str, Shape]]], settings: LoraSettings
) -> int:
    """Number of weights; 0 if no layer matches the targets."""
    settings, lora_type = family.learning(settings), types.get(settings.lora_type)
    targets = settings.target_modules
    if targets:
        targets = (*targets, *lora_type.more_targets(family, "unet"))
    text_targets = settings.text_encoder_targets if settings.train_text_encoder else ()
    shapes = [
        shape
        for part, names in (("unet", targets), ("text_encoder", text_targets))
        for name, shape in layers[part]
        if is_target(name, names)
    ]
    return sum(lora_type.weight_count(shape, lora_type.size(shape, settings)) for shape in shapes)
