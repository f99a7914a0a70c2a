"""How large a LoRA will be, before there is one: the checkpoint's layers and the settings go in,
the number of its weights comes out.

Called by the tab, to say what a run takes. No torch: `Family.layer_shapes` has the shapes from the
checkpoint's header.
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
    """Weights of the LoRA that these settings give. 0: none of the layers' names is asked for."""
    settings, lora_type = family.learning(settings), types.get(settings.lora_type)
    targets = settings.target_modules
    if targets:
        targets = (*targets, *lora_type.more_targets(family, "unet"))
    learning = [shape for name, shape in layers["unet"] if is_target(name, targets)]
    if settings.train_text_encoder:
        learning += [
            shape
            for name, shape in layers["text_encoder"]
            if is_target(name, settings.text_encoder_targets)
        ]
    return sum(lora_type.weight_count(shape, lora_type.size(shape, settings)) for shape in learning)
