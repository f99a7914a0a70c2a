"""A frozen layer computes what torch's does with the weight that it keeps, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch

from lora_trainer.frozen.layers import FP8, FrozenLayer, freeze, layers_in, quantized

CPU = torch.device("cpu")
LAYERS = {
    "linear": (lambda: torch.nn.Linear(24, 16), (2, 5, 24)),
    "without bias": (lambda: torch.nn.Linear(24, 16, bias=False), (3, 24)),
    "convolution": (lambda: torch.nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 7)),
    "stride": (lambda: torch.nn.Conv2d(8, 4, 3, stride=2, padding=1), (1, 8, 8, 8)),
    "1 x 1": (lambda: torch.nn.Conv2d(8, 4, 1), (1, 8, 4, 4)),
}


def both_passes(layer, inputs):
    inputs = inputs.clone().requires_grad_()
    out = layer(inputs)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return out.detach(), inputs.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["same", "int8", "fp8"])
@pytest.mark.parametrize("name", LAYERS)
def test_both_passes_are_torchs_with_the_kept_weight(name, precision, dtype):
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    plain = make().to(dtype).requires_grad_(False)
    frozen = copy.deepcopy(plain)
    (layer,) = freeze([frozen], precision)
    layer.take(plain.weight, dtype, CPU)
    assert layer.weight.dtype == {"same": dtype, "int8": torch.int8, "fp8": FP8}[precision]
    whole = layer.whole()
    assert (whole.dtype, whole.shape) == (dtype, plain.weight.shape)
    plain.weight.data = whole.clone()
    inputs = torch.randn(shape, dtype=dtype)
    for ours, theirs in zip(both_passes(frozen, inputs), both_passes(plain, inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_float32_inputs_are_cast_as_by_autocast():
    plain = torch.nn.Linear(24, 16).bfloat16().requires_grad_(False)
    frozen = copy.deepcopy(plain)
    freeze([frozen], "same")[0].take(plain.weight, torch.bfloat16, CPU)
    inputs = torch.randn(3, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (ours, our_gradient), (theirs, gradient) = (
            both_passes(one, inputs) for one in (frozen, plain)
        )
    assert ours.dtype == theirs.dtype == torch.bfloat16 and torch.equal(ours, theirs)
    assert our_gradient.dtype == torch.float32 and torch.equal(our_gradient, gradient)


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.011), ("fp8", 0.03)])
def test_eight_bits_are_near_weights_of_any_size_and_keep_zeros(precision, error):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-4, 1, 64)[:, None]
    weight[7] = 0
    kept, scale = quantized(weight, precision)
    assert kept.element_size() == 1 and scale.shape == (64, 1)
    found = kept.float() * scale
    assert torch.equal(found[7], weight[7])
    rows = weight.norm(dim=1) > 0
    away = (found - weight).norm(dim=1)[rows] / weight.norm(dim=1)[rows]
    assert away.max() < error
    if precision == "fp8":
        assert torch.equal(scale.log2(), scale.log2().round()), "powers of two: exact in any dtype"


def test_neither_the_input_nor_the_whole_weight_is_kept_for_the_backward_pass():
    saved = []
    for precision in ("same", "int8"):
        (layer,) = freeze([torch.nn.Conv2d(4, 4, 3).requires_grad_(False)], precision)
        layer.take(torch.randn(4, 4, 3, 3), torch.float32, CPU)
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda one: one):
            layer(torch.randn(1, 4, 8, 8, requires_grad=True))
    assert saved == []


def test_moving_a_model_changes_no_kept_number():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)).requires_grad_(False)
    (layer,) = freeze(layers_in([model]), "fp8")
    assert isinstance(model[0], FrozenLayer)
    layer.take(torch.randn(4, 4), torch.float32, CPU)
    before, scale = layer.weight.clone(), layer.scale.clone()
    model.to(torch.bfloat16)
    assert model[1].weight.dtype == torch.bfloat16
    assert layer.weight.dtype == FP8 and torch.equal(layer.weight.float(), before.float())
    assert torch.equal(layer.scale, scale)
    model.to("meta")
    assert layer.weight.is_meta and layer.scale.is_meta
