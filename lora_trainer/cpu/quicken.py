"""Where a training on a processor takes its faster forms."""

from __future__ import annotations

import torch

from lora_trainer.cpu import attention
from lora_trainer.cpu.adapters import join_with_layers
from lora_trainer.cpu.convolutions import can_prepack, multiply_pointwise


def can_quicken(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model that is frozen in `dtype` and trained under autocast may use the forms of
    this package: in bfloat16, on a processor that computes in it.
    """
    return device.type == "cpu" and dtype == torch.bfloat16 and can_prepack()


def quicken(model: torch.nn.Module) -> None:
    """Let such a model, with its adapters, use them, and attention in this process. Its
    convolutions were to be prepacked before they had their weights.
    """
    use_faster_layers(model)
    attention.activate()


def use_faster_layers(model: torch.nn.Module) -> None:
    """The same without attention."""
    multiply_pointwise(model)
    join_with_layers(model)
