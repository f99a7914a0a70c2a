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
    """Let a model with adapters use the forms of this package, and attention in this process. Its
    convolutions must have been prepacked already (Checkpoint.load_unet).
    """
    use_faster_layers(model)
    attention.activate()


def use_faster_layers(model: torch.nn.Module) -> None:
    """The layers alone: attention is replaced for the whole process."""
    multiply_pointwise(model)
    join_with_layers(model)
