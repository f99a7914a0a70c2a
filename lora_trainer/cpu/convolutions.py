"""Convolutions: frozen ones whose weights are laid out once as oneDNN wants them, and those of one
pixel as products of matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lora_trainer.frozen.layers import WithoutWeightGradient

TYPICAL_SIDE = 32
"""Height and width in elements of the inputs that layouts are chosen for. They are as fast for
other sizes; without a size, oneDNN assumes one of about the kernel's, with which some gradients
take twice as long.
"""


class PrepackedConv2d(torch.nn.Conv2d):
    """A frozen convolution with its weight in oneDNN's own layouts, one for the output and one for
    the gradient of the input, in place of torch's. Plain convolutions lay it out again at every
    call.

    A module becomes one by `prepack_convolutions`; its weight is then to be given with `take`. The
    state dict has no weight, and nothing can be merged into it. The layouts do not depend on the
    size of the images, so that neither does the result depend on the sizes seen before.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        # PEFT makes a convolution's adapter of its base layer's class
        return torch.nn.Conv2d(*arguments, **options) if arguments else super().__new__(cls)

    def take(self, weight: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Keep this weight, (out, in, height, width) of any float dtype, in both layouts."""
        weight = weight.to(device, dtype).contiguous()
        shared = (self.stride, self.dilation, 1)
        inputs, outputs = (
            (1, channels, TYPICAL_SIDE, TYPICAL_SIDE)
            for channels in (self.in_channels, self.out_channels)
        )
        self._for_output: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, *shared, inputs
        )
        self._for_gradient: torch.Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight, self.padding, (0, 0), *shared, outputs
        )
        self._parameters.pop("weight", None)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """A new copy, in torch's layout."""
        return self._for_output.to_dense()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        input = input.to(self._for_output.dtype)
        if torch.is_grad_enabled() and input.requires_grad:
            return WithoutWeightGradient.apply(input, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.compute(input)

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs,
            self._for_output,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            1,
            "none",
            [],
            "",
        )
        return output

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of an input of this shape (B, C, H, W), by that of the output."""
        rest = [
            shape[2 + axis]
            - (gradient.shape[2 + axis] - 1) * self.stride[axis]
            + 2 * int(self.padding[axis])
            - self.dilation[axis] * (self.kernel_size[axis] - 1)
            - 1
            for axis in (0, 1)
        ]
        result: torch.Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            gradient.to(self._for_gradient.dtype).contiguous(),
            self._for_gradient,
            None,
            self.padding,
            rest,
            self.stride,
            self.dilation,
            1,
            "none",
            [],
            "",
        )
        return result


class PointwiseConv2d(torch.nn.Conv2d):
    """A 1x1 convolution as a product of matrices: oneDNN's convolution is slower by a tenth to a
    half, and with the few channels of a LoRA it takes several times as long. oneDNN's layouts for
    them fit some sizes only: with one that does not fit it takes up to 100 times as long.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.ndim != 4:
            return super().forward(input)
        dtype = torch.bfloat16
        bias = None if self.bias is None else self.bias.to(dtype)
        output: torch.Tensor = _Pointwise.apply(input.to(dtype), self.weight.to(dtype), bias)  # type: ignore[no-untyped-call]
        return output


class _Pointwise(torch.autograd.Function):
    """weight input + bias, for an input (B, C, H, W) and a frozen bias."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        matrix, images = weight.flatten(1), inputs.flatten(2)
        output = images.new_empty((len(images), len(matrix), images.shape[2]))
        for image, result in zip(images, output, strict=True):
            if bias is None:
                torch.mm(matrix, image, out=result)
            else:
                torch.addmm(bias[:, None], matrix, image, out=result)
        return output.view(len(images), len(matrix), *inputs.shape[2:])

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        matrix, given, images = weight.flatten(1), gradient.flatten(2), inputs.flatten(2)
        of_inputs = of_weight = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.empty_like(images, memory_format=torch.contiguous_format)
            for one, result in zip(given, of_inputs, strict=True):
                torch.mm(matrix.T, one, out=result)
            of_inputs = of_inputs.view(inputs.shape)
        if ctx.needs_input_grad[1]:
            given, images = (one.transpose(0, 1).flatten(1) for one in (given, images))
            of_weight = (given @ images.T).view(weight.shape)
        return of_inputs, of_weight, None


def prepack_convolutions(model: torch.nn.Module) -> int:
    """Make PrepackedConv2d of a model's convolutions, except 1x1 ones. The caller makes sure that
    they stay frozen, and that the processor computes in bfloat16 (`quicken.can_quicken`). They take
    the memory of their weights twice; in float32 they gain too little for that. Returns how many
    there are.
    """
    found = prepackable(model)
    for module in found:
        module.__class__ = PrepackedConv2d
    return len(found)


def multiply_pointwise(model: torch.nn.Module) -> int:
    """Make PointwiseConv2d of the 1x1 convolutions in bfloat16, and of those that learn, which
    autocast would compute in it. Returns how many there are.
    """
    found = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Conv2d
        and module.kernel_size == module.stride == (1, 1)
        and module.groups == 1
        and not any(module.padding)
        and module.weight.device.type == "cpu"
        and (module.weight.dtype == torch.bfloat16 or module.weight.requires_grad)
        and (module.bias is None or not module.bias.requires_grad)
    ]
    for module in found:
        module.__class__ = PointwiseConv2d
    return len(found)


def layout_bytes(
    model: torch.nn.Module, dtype: torch.dtype, in_8_bits: Iterable[torch.nn.Module] = ()
) -> int:
    """Bytes that prepacked convolutions take beyond their plain weights in this model, frozen and
    in this dtype on the processor. in_8_bits: its blocks whose weights are kept so, and which are
    not prepacked.
    """
    if dtype != torch.bfloat16 or not can_prepack():
        return 0
    kept = {module for block in in_8_bits for module in block.modules()}
    return sum(
        module.weight.numel() * dtype.itemsize
        for module in prepackable(model)
        if module not in kept
    )


def prepackable(model: torch.nn.Module) -> list[torch.nn.Conv2d]:
    """The convolutions that `prepack_convolutions` would change."""
    return [
        module
        for module in model.modules()
        if type(module) is torch.nn.Conv2d
        and module.groups == 1
        and max(module.kernel_size) > 1
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
    ]


def can_prepack() -> bool:
    """Whether this processor and this torch have what PrepackedConv2d needs: tried out."""
    probe = torch.nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    weight = probe.weight
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        prepack_convolutions(probe)
        assert isinstance(probe, PrepackedConv2d)
        probe.take(weight, torch.bfloat16, torch.device("cpu"))
        image = torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
        probe(image).sum().backward()
        _ = probe.weight
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True
