"""The order of the blocks in diffusers' UNet2DConditionModel, whose members are registered in
another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def blocks(unet: Any) -> Iterator[tuple[Any, ...]]:
    """ResNet blocks, transformer blocks and resamplers, as they run. What a transformer has before
    its first block and after its last one belongs to those.
    """
    for down in unet.down_blocks:
        yield from _level(down)
    middle = unet.mid_block
    yield (middle.resnets[0],)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        yield from _transformer(attention)
        yield (resnet,)
    for up in unet.up_blocks:
        yield from _level(up)


def _level(level: Any) -> Iterator[tuple[Any, ...]]:
    attentions = getattr(level, "attentions", [None] * len(level.resnets))
    for resnet, attention in zip(level.resnets, attentions, strict=True):
        yield (resnet,)
        if attention is not None:
            yield from _transformer(attention)
    samplers = getattr(level, "downsamplers", None) or getattr(level, "upsamplers", None)
    for sampler in samplers or ():
        yield (sampler,)


def _transformer(attention: Any) -> Iterator[tuple[Any, ...]]:
    last = len(attention.transformer_blocks) - 1
    for number, block in enumerate(attention.transformer_blocks):
        yield (
            *((attention.proj_in,) if number == 0 else ()),
            block,
            *((attention.proj_out,) if number == last else ()),
        )
