"""LoCon: LoRA for the UNet's convolutions as well.

Targets the convolutions of ResNet blocks, down- and upsamplers, like kohya's `conv_dim`: 3 x 3 ones
with conv_rank and conv_alpha, 1 x 1 ones and Linear layers there with lora_rank and lora_alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from lora_trainer.adapters.base import Size
from lora_trainer.adapters.types.lora import LowRank
from lora_trainer.families.base import Family, Shape
from lora_trainer.lora.names import Part
from lora_trainer.settings.training import DEFAULT_RANK, LoraSettings


class LoCon(LowRank):
    """LoRA's two matrices, in more layers."""

    id = "locon"
    label = "LoCon"
    own_settings = ("conv_rank", "conv_alpha")
    sentence = (
        "The UNet's convolutions as well, which hold texture and fine shapes; in a larger file."
    )

    def more_targets(self, family: Family, part: Part) -> Sequence[str]:
        return family.convolution_targets if part == "unet" else ()

    def size(self, shape: Shape, settings: LoraSettings) -> Size:
        if prod(shape[2:]) == 1:
            return super().size(shape, settings)
        rank = settings.conv_rank or settings.lora_rank or DEFAULT_RANK
        return Size(rank, float(rank if settings.conv_alpha is None else settings.conv_alpha))

    def network_args(self, settings: LoraSettings) -> dict[str, Any]:
        size = self.size((1, 1, 3, 3), settings)
        return {"conv_dim": str(size.rank), "conv_alpha": f"{size.alpha:g}"}


TYPES = (LoCon(),)
