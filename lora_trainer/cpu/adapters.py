"""A frozen linear layer in bfloat16 and its LoRA as one step of autograd."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear

from lora_trainer.adapters.low_rank import ADAPTER


class LowRankLinear(Linear):  # type: ignore[misc]
    """PEFT's LoRA of a linear layer. While it learns, what the LoRA adds is added up inside of the
    products, instead of in tensors of its own.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = (
            torch.is_grad_enabled()
            and x.ndim > 1
            and not (args or kwargs or self.disable_adapters or self.merged)
            and isinstance(self.lora_dropout[ADAPTER], torch.nn.Identity)
        )
        if not plain:
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        dtype = self.base_layer.weight.dtype
        return _LowRankLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
            x.to(dtype),
            self.lora_A[ADAPTER].weight.to(dtype),
            self.lora_B[ADAPTER].weight.to(dtype),
            self.base_layer,
            self.scaling[ADAPTER],
        )


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        base: torch.nn.Linear,
        scale: float,
    ) -> torch.Tensor:
        output = torch.nn.functional.linear(inputs, base.weight, base.bias)
        rows = inputs.flatten(0, -2)
        low = rows @ down.T
        output.view(-1, output.shape[-1]).addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(rows, low, down, up)
        ctx.base, ctx.scale, ctx.shape = base, scale, inputs.shape
        return output

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, None, None]:
        rows, low, down, up = ctx.saved_tensors
        given = gradient.flatten(0, -2)
        of_low = given @ up
        if ctx.scale != 1:
            of_low *= ctx.scale
        of_down, of_up = of_low.T @ rows, given.T @ low
        if ctx.scale != 1:
            of_up *= ctx.scale
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = (given @ ctx.base.weight).addmm_(of_low, down).view(ctx.shape)
        return of_inputs, of_down, of_up, None, None


def join_with_layers(model: torch.nn.Module) -> int:
    """Make LowRankLinear of the LoRAs of frozen bfloat16 linear layers on a processor. Returns how
    many there are.
    """
    found = [
        module
        for module in model.modules()
        if type(module) is Linear
        and type(module.base_layer) is torch.nn.Linear
        and module.base_layer.weight.device.type == "cpu"
        and module.base_layer.weight.dtype == torch.bfloat16
        and not module.base_layer.weight.requires_grad
    ]
    for module in found:
        module.__class__ = LowRankLinear
    return len(found)
