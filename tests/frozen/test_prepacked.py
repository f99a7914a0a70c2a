from __future__ import annotations

import copy

import pytest
import torch

from lora_trainer.frozen import prepacked
from lora_trainer.frozen.prepacked import PrepackedConv2d, can_prepack, prepack_convolutions

packs = pytest.mark.skipif(not can_prepack(), reason="no bfloat16 in this processor's convolutions")
SHAPES = (
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
)


def convolution(**shape: object) -> torch.nn.Conv2d:
    torch.manual_seed(1)
    return torch.nn.Conv2d(24, 40, **shape).to(torch.bfloat16).requires_grad_(False)


def seen(model: torch.nn.Module, size: tuple[int, int] = (9, 12)) -> tuple[torch.Tensor, ...]:
    """Output, and gradient of the input, of one batch of two."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(2, 24, *size, generator=generator).bfloat16().requires_grad_()
    output = model(image)
    weights = torch.randn(output.shape, generator=generator)
    (output.float() * weights).sum().backward()
    assert image.grad is not None
    return output.detach().float(), image.grad.float()


@packs
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_prepacked_convolution_answers_as_the_plain_one_does(shape):
    plain = convolution(**shape)
    packed = copy.deepcopy(plain)
    assert prepack_convolutions(packed) == 1 and isinstance(packed, PrepackedConv2d)
    exact = copy.deepcopy(plain).float()
    for ours, theirs, true in zip(seen(packed), seen(plain), seen_in_float(exact), strict=True):
        assert ours.shape == true.shape
        # as far from the true values as bfloat16 is anyway
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 1e-6
    with torch.no_grad():
        image = torch.randn(1, 24, 8, 8)
        torch.testing.assert_close(packed(image), plain(image.bfloat16()), rtol=0.02, atol=0.02)


def seen_in_float(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(2, 24, 9, 12, generator=generator).bfloat16().float().requires_grad_()
    output = model(image)
    weights = torch.randn(output.shape, generator=generator)
    (output * weights.bfloat16().float()).sum().backward()
    assert image.grad is not None
    return output.detach(), image.grad


@packs
def test_the_result_depends_on_no_size_that_was_seen_before():
    first, second = convolution(**SHAPES[0]), convolution(**SHAPES[0])
    assert prepack_convolutions(torch.nn.ModuleList([first, second])) == 2
    for size in ((16, 16), (5, 30)):
        seen(first, size)
    for ours, fresh in zip(seen(first), seen(second), strict=True):
        assert torch.equal(ours, fresh)


@packs
def test_a_changed_weight_is_laid_out_again():
    packed = convolution(**SHAPES[0])
    prepack_convolutions(packed)
    before = seen(packed)
    packed.weight.mul_(2)
    packed.bias.mul_(2)
    for ours, twice in zip(before, seen(packed), strict=True):
        assert torch.equal(2 * ours, twice)


def test_what_learns_is_in_float32_or_has_one_pixel_stays_as_it_is():
    learning = convolution(**SHAPES[0]).requires_grad_()
    exact = convolution(**SHAPES[0]).float()
    grouped = torch.nn.Conv2d(24, 40, 3, groups=2).bfloat16().requires_grad_(False)
    plain = (learning, exact, grouped, convolution(kernel_size=1))
    assert prepack_convolutions(torch.nn.ModuleList(plain)) == 0
    assert {type(module) for module in plain} == {torch.nn.Conv2d}


def test_a_processor_that_cannot_keeps_plain_convolutions(monkeypatch):
    monkeypatch.setattr(prepacked, "can_prepack", lambda: False)
    plain = convolution(**SHAPES[0])
    assert prepack_convolutions(plain) == 0 and type(plain) is torch.nn.Conv2d
