"""Where a training on a processor takes its faster forms."""

from __future__ import annotations

import torch

from lora_trainer.cpu import attention
from lora_trainer.cpu.adapters import join_with_layers
from lora_trainer.cpu.convolutions import can_prepack, multiply_pointwise, prepack_convolutions


def quicken(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let a frozen model with adapters, trained in `dtype` under autocast, use the forms of this
    package, and attention in this process. Does nothing unless dtype is bfloat16 and the processor
    computes in it.
    """
    if dtype != torch.bfloat16 or not can_prepack():
        return
    prepack_convolutions(model)
    multiply_pointwise(model)
    join_with_layers(model)
    attention.activate()
