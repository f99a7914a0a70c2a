from __future__ import annotations

import copy

import pytest
import torch

from lora_trainer.cpu.convolutions import (
    PointwiseConv2d,
    PrepackedConv2d,
    can_prepack,
    multiply_pointwise,
    prepack_convolutions,
)

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


def prepacked(plain: torch.nn.Conv2d) -> torch.nn.Conv2d:
    """Another module, that has taken this one's weight."""
    packed = copy.deepcopy(plain)
    assert prepack_convolutions(packed) == 1 and isinstance(packed, PrepackedConv2d)
    packed.take(plain.weight, torch.bfloat16, torch.device("cpu"))
    return packed


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
    packed = prepacked(plain)
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
    first, second = (prepacked(convolution(**SHAPES[0])) for _ in range(2))
    for size in ((16, 16), (5, 30)):
        seen(first, size)
    for ours, fresh in zip(seen(first), seen(second), strict=True):
        assert torch.equal(ours, fresh)


@packs
def test_a_weight_is_kept_in_its_layouts_alone():
    """It is given back as it was, and cannot be replaced unnoticed."""
    plain = convolution(**SHAPES[0])
    packed = prepacked(plain)
    assert [name for name, _ in packed.named_parameters()] == ["bias"]
    assert torch.equal(packed.weight, plain.weight)
    with pytest.raises((AttributeError, KeyError)):
        packed.weight = torch.nn.Parameter(plain.weight)


@packs
def test_weights_of_any_form_are_laid_out():
    """In another dtype, in an order of their own, and in memory that is used again."""
    plain = convolution(**SHAPES[0])
    expected = seen(prepacked(plain))
    for given in (
        plain.weight.float().to(memory_format=torch.channels_last),
        plain.weight.clone(),
    ):
        packed = copy.deepcopy(plain)
        prepack_convolutions(packed)
        assert isinstance(packed, PrepackedConv2d)
        packed.take(given, torch.bfloat16, torch.device("cpu"))
        given.zero_()
        assert all(map(torch.equal, seen(packed), expected))


def test_grouped_convolutions_and_those_of_one_pixel_stay_as_they_are():
    grouped = torch.nn.Conv2d(24, 40, 3, groups=2)
    plain = (grouped, convolution(kernel_size=1), torch.nn.Conv2d(24, 40, 3, padding="same"))
    assert prepack_convolutions(torch.nn.ModuleList(plain)) == 0
    assert {type(module) for module in plain} == {torch.nn.Conv2d}


def test_convolutions_of_one_pixel_are_products():
    """With frozen weights, and with those of an adapter, in float32 under autocast."""
    frozen, down = convolution(kernel_size=1), convolution(kernel_size=1, bias=False)
    learning = torch.nn.Conv2d(40, 8, 1, bias=False)
    others = (
        convolution(**SHAPES[0]),
        convolution(kernel_size=1, stride=2),
        convolution(kernel_size=1, padding=1),
        torch.nn.Conv2d(24, 40, 1, groups=2).bfloat16().requires_grad_(False),
        torch.nn.Conv2d(24, 40, 1).requires_grad_(False),
    )
    model = torch.nn.Sequential(frozen, learning)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    assert multiply_pointwise(torch.nn.ModuleList([model, down, *others])) == 3
    assert {type(one) for one in (frozen, learning, down)} == {PointwiseConv2d}
    assert {type(one) for one in others} == {torch.nn.Conv2d}

    def outcome(of: torch.nn.Sequential, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(2, 9, 12, 24, generator=generator).bfloat16().permute(0, 3, 1, 2)
        weights = torch.randn(2, 8, 9, 12, generator=generator).bfloat16()
        images = images.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            output = of(images)
        (output.float() * weights.float()).sum().backward()
        assert images.grad is not None and of[1].weight.grad is not None
        return [output.detach(), images.grad, of[1].weight.grad]

    true = outcome(exact, torch.float32)
    theirs, found = outcome(plain, torch.bfloat16), outcome(model, torch.bfloat16)
    for one, other, value in zip(found, theirs, true, strict=True):
        assert one.shape == value.shape and one.dtype == other.dtype
        assert (one - value).norm() < 0.015 * value.norm()
        assert (other - value).norm() < 0.015 * value.norm()
    with torch.no_grad():
        image = torch.randn(1, 24, 8, 8)
        expected = torch.nn.functional.conv2d(image.bfloat16(), down.weight)
        torch.testing.assert_close(down(image), expected, rtol=0.02, atol=0.02)
