"""LoRA: low-rank layers beside frozen ones (arXiv 2106.09685), for Linear and Conv2d.

    output = base(x) + strength * alpha / rank * up(down(dropout(x)))

For a convolution, down has its kernel, stride and padding; up is 1 x 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from lora_trainer.adapters.base import ALPHA_END, Adapter, LoraType, Size
from lora_trainer.families.base import Rows, Shape
from lora_trainer.lora import names
from lora_trainer.lora.names import Part
from lora_trainer.settings.training import LoraSettings

if TYPE_CHECKING:
    import torch

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
A, B = ".lora_A.weight", ".lora_B.weight"


class LowRank(LoraType):
    """Two matrices per layer."""

    id = "lora"
    label = "LoRA"
    sentence = "The attention layers, or the target modules that are chosen."
    webui_ends = (DOWN, UP)
    diffusers_ends = (A, B)

    def inject(
        self,
        part: Part,
        model: Any,
        sizes: Mapping[str, Size],
        settings: LoraSettings,
        generator: torch.Generator,
    ) -> Iterator[Adapter]:
        from lora_trainer.adapters.low_rank import inject

        return inject(part, model, sizes, settings.lora_dropout, generator)

    def weight_count(self, shape: Shape, size: Size) -> int:
        # down: rank x inputs (x kernel), up: outputs x rank
        return size.rank * (shape[0] + prod(shape[1:]))

    def joined(
        self, pieces: Sequence[tuple[Rows, Size, Mapping[str, torch.Tensor]]]
    ) -> tuple[dict[str, torch.Tensor], float]:
        """The downs below each other, the ups as blocks on the diagonal: exact. alpha / rank stays
        as it is.
        """
        import torch

        scale = pieces[0][1].alpha / pieces[0][1].rank
        rank = sum(size.rank for _, size, _ in pieces)
        down = torch.cat([tensors[DOWN] for _, _, tensors in pieces])
        first = pieces[0][2][UP]
        up = first.new_zeros((pieces[0][0].of, rank, *first.shape[2:]))
        column = 0
        for rows, size, tensors in pieces:
            own = size.alpha / size.rank
            block = tensors[UP] if own == scale else tensors[UP] * (own / scale)
            up[rows.first : rows.first + rows.count, column : column + size.rank] = block
            column += size.rank
        return {DOWN: down, UP: up}, scale * rank

    def fits(self, base: Shape, shapes: Mapping[str, Shape]) -> bool:
        ends = self.webui_ends if DOWN in shapes else self.diffusers_ends
        return names.fits(base, shapes[ends[0]], shapes[ends[1]])

    def is_idle(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        up = tensors[UP] if UP in tensors else tensors[B]
        return not bool(up.count_nonzero())

    def effect(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        down, up = tensors[DOWN].float(), tensors[UP].float()
        scale = float(tensors[ALPHA_END]) / down.shape[0] if ALPHA_END in tensors else 1.0
        return scale * (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


TYPES = (LowRank(),)
