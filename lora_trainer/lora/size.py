"""How large a LoRA will be, before there is one: the checkpoint's layers and the settings go in,
the number of its weights comes out.

Called by the tab, to say what a run takes. No torch: `Family.layer_shapes` has the shapes from the
checkpoint's header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from lora_trainer.families.base import Shape
from lora_trainer.settings.training import LoraSettings


def parameter_count(
    layers: Mapping[str, Iterable[tuple[str, Shape]]], settings: LoraSettings
) -> int:
    """Weights of the LoRA that these settings give. 0: none of the layers' names is asked for."""
    shapes = [shape for name, shape in layers["unet"] if _is_target(name, settings.target_modules)]
    if settings.train_text_encoder:
        shapes += [
            shape
            for name, shape in layers["text_encoder"]
            if _is_target(name, settings.text_encoder_targets)
        ]
    # down is rank x inputs (with the kernel, if it is a convolution), up is outputs x rank
    return settings.lora_rank * sum(shape[0] + prod(shape[1:]) for shape in shapes)


def _is_target(name: str, targets: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
