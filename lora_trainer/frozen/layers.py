"""Linear and Conv2d layers that never learn, and make their weight for each use.

    freeze(model, layers, "int8")     the layers' classes change; their weights are still missing
    layer.take(weight, dtype, device) as checkpoint.tensors does for each weight it reads

    int8    a number from -127 to 127, times a float32 scale for each output channel
    fp8     float8_e4m3fn, times a power of two for each output channel
    same    as it is: for layers whose weights are swapped (frozen.swap)

The forward and the backward pass each make the weight anew, and neither keeps it or the layer's
input. The arithmetic is otherwise that of torch's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

Precision = Literal["same", "int8", "fp8"]
FP8 = torch.float8_e4m3fn
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest number of each kind."""
SMALLEST_SCALE = 2.0**-24
"""The smallest number above zero in float16. Channels whose weights are all below 1e-5 get
coarser.
"""


class Home(Protocol):
    """Where the weights of layers lie that are not on the device."""

    def weight_of(self, layer: FrozenLayer) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer's weight as it is kept, and its scale, on the device: to be used before the
        next call.
        """

    def gather(self) -> None:
        """Take over the weights that the layers have taken, and leave placeholders there."""

    @property
    def hosted(self) -> list[torch.Tensor]:
        """What lies in main memory."""

    @property
    def resident(self) -> list[torch.Tensor]:
        """What it has on the device."""

    def release(self) -> None:
        """Leave the device; the next call comes back."""


@runtime_checkable
class TakesWeight(Protocol):
    """A layer that keeps its weight in a form of its own: any with a method of this name."""

    def take(self, weight: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Keep this weight, of any float dtype, in its form of this dtype, on this device. The
        tensor is used again afterwards.
        """


class FrozenLayer(torch.nn.Module):
    """What FrozenLinear and FrozenConv2d have in common."""

    weight: Any
    """As it is kept, in the shape of the layer's own. With a home: a placeholder of this shape."""
    precision: Precision
    dtype: torch.dtype
    """In which the layer computes."""
    scale: torch.Tensor | None
    """float32, (out, 1) or (out, 1, 1, 1)"""
    home: Home | None

    def take(self, weight: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Keep this weight, of any float dtype, on this device; with a home in main memory."""
        self.dtype = dtype
        if self.home is not None and device.type != "meta":
            device = torch.device("cpu")
        if self.precision == "same":
            # a copy: the reader's buffer is used again
            kept, scale = torch.empty(weight.shape, dtype=dtype, device=device).copy_(weight), None
        else:
            kept, scale = quantized(weight.to(device), self.precision)
        self.weight = torch.nn.Parameter(kept, requires_grad=False)
        self.scale = scale

    def whole(self) -> torch.Tensor:
        """The weight to compute with, in `dtype`."""
        kept, scale = (
            (self.weight.detach(), self.scale) if self.home is None else self.home.weight_of(self)
        )
        if scale is None:
            return kept
        if kept.dtype == FP8:
            # exact: the scale is a power of two
            return kept.to(self.dtype).mul_(scale.to(self.dtype))
        return torch.mul(kept, scale, out=torch.empty_like(kept, dtype=self.dtype))

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # as autocast does; what follows has one dtype
        return WithoutWeightGradient.apply(inputs.to(self.dtype), self)  # type: ignore[no-any-return, no-untyped-call]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move to another device; the numbers stay as they are kept."""
        weight = self._parameters.pop("weight")
        assert weight is not None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._parameters["weight"] = weight
        if self.home is not None:
            self.home.release()
        elif (moved := fn(weight.new_empty(0)).device) != weight.device:
            self.weight = torch.nn.Parameter(weight.to(moved), requires_grad=False)
            self.scale = None if self.scale is None else self.scale.to(moved)
        return self


class FrozenLinear(FrozenLayer, torch.nn.Linear):
    """torch.nn.Linear, frozen."""

    weight: Any

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.whole(), self.bias)

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self.whole()


class FrozenConv2d(FrozenLayer, torch.nn.Conv2d):
    """torch.nn.Conv2d, frozen."""

    weight: Any

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        # PEFT makes a convolution's adapter of its base layer's class
        return torch.nn.Conv2d(*arguments, **options) if arguments else super().__new__(cls)

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(inputs, self.whole(), self.bias)  # type: ignore[no-any-return]

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor:
        sizes = self.stride, self.padding, self.dilation, self.groups
        return conv2d_input(shape, self.whole(), gradient, *sizes)  # type: ignore[no-any-return, no-untyped-call]


KINDS: dict[type[torch.nn.Module], type[FrozenLayer]] = {
    torch.nn.Linear: FrozenLinear,
    torch.nn.Conv2d: FrozenConv2d,
}


class Computing(Protocol):
    """A layer whose weight does not learn."""

    def compute(self, inputs: torch.Tensor) -> torch.Tensor: ...

    def input_gradient(self, shape: torch.Size, gradient: torch.Tensor) -> torch.Tensor: ...


class WithoutWeightGradient(torch.autograd.Function):
    """A layer's `compute`, with its `input_gradient` and none of its weight."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Computing) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.compute(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.layer.input_gradient(ctx.shape, gradient), None


def layers_in(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The linear and convolution layers inside of modules, in their order."""
    kinds = (*KINDS, *KINDS.values())
    return [one for module in modules for one in module.modules() if type(one) in kinds]


def homes(model: torch.nn.Module) -> list[Home]:
    """Where the weights of this model's layers lie that are not on the device."""
    found = (layer.home for layer in model.modules() if isinstance(layer, FrozenLayer))
    return list({id(home): home for home in found if home is not None}.values())


def freeze(layers: Iterable[torch.nn.Module], precision: Precision) -> list[FrozenLayer]:
    """Make layers of KINDS frozen ones, in place. Their weights are to be given with `take`."""
    frozen: list[FrozenLayer] = []
    for layer in layers:
        if not isinstance(layer, FrozenLayer):
            layer.__class__ = KINDS[type(layer)]
        assert isinstance(layer, FrozenLayer)
        layer.precision, layer.scale, layer.home = precision, None, None
        frozen.append(layer)
    return frozen


def quantized(
    weight: torch.Tensor, precision: Literal["int8", "fp8"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight as it is kept, and its scales: weight ~ kept * scale."""
    weight = weight.float()
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = (largest / LARGEST[precision]).clamp_min_(SMALLEST_SCALE)
    if precision == "int8":
        return (weight / scale).round_().to(torch.int8), scale
    scale = torch.exp2(scale.log2().ceil())
    return (weight / scale).to(FP8), scale
