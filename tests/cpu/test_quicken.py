from __future__ import annotations

import pytest
import torch

from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.cpu import attention, quicken
from lora_trainer.cpu.adapters import LowRankLinear
from lora_trainer.cpu.convolutions import PointwiseConv2d, PrepackedConv2d, can_prepack
from lora_trainer.settings.training import LoraSettings
from tests.made import small_checkpoint

packs = pytest.mark.skipif(not can_prepack(), reason="no bfloat16 in this processor's convolutions")


def parts_of(lora_type: str, dtype: torch.dtype, *, prepacked: bool = False) -> Parts:
    """A small UNet with adapters."""
    checkpoint = open_checkpoint(small_checkpoint())
    parts = checkpoint.outline()
    parts.unet = checkpoint.load_unet(dtype, prepacked=prepacked)
    add_adapters(parts, LoraSettings(lora_type=lora_type), seed=0)
    return parts


def answers(parts: Parts, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the gradients of all adapters."""
    numbers = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 16, 16, generator=numbers)
    text = torch.randn(2, 77, parts.unet.config.cross_attention_dim, generator=numbers)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = parts.unet(latents, torch.tensor([10, 500]), text).sample
    (output.float() * torch.randn(output.shape, generator=numbers)).sum().backward()
    found = [one.grad for one in parts.unet.parameters() if one.grad is not None]
    return output.detach().float(), torch.cat([one.flatten() for one in found])


@packs
@pytest.mark.parametrize("lora_type", ["lora", "locon"])
def test_a_model_in_bfloat16_gets_all_forms(monkeypatch, lora_type):
    asked = []
    monkeypatch.setattr(attention, "activate", lambda: asked.append(True))
    parts = parts_of(lora_type, torch.bfloat16, prepacked=True)
    quicken.quicken(parts.unet)
    kinds = {type(module) for module in parts.unet.modules()}
    assert {PrepackedConv2d, PointwiseConv2d, LowRankLinear} <= kinds and asked == [True]
    # LoCon's own, which learn, are plain
    assert (torch.nn.Conv2d in kinds) == (lora_type == "locon")
    plain, exact = (parts_of(lora_type, dtype) for dtype in (torch.bfloat16, torch.float32))
    for ours, theirs, true in zip(
        answers(parts, torch.bfloat16),
        answers(plain, torch.bfloat16),
        answers(exact, torch.float32),
        strict=True,
    ):
        assert ours.shape == true.shape and true.norm() > 0
        # as far from the true values as bfloat16 is anyway
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() <= 0.2 * true.norm()


@pytest.mark.parametrize(
    ("device", "dtype", "packs", "expected"),
    [
        ("cpu", torch.bfloat16, True, True),
        ("cpu", torch.bfloat16, False, False),
        ("cpu", torch.float32, True, False),
        ("cuda", torch.bfloat16, True, False),
    ],
)
def test_only_bfloat16_on_a_processor_that_has_it(monkeypatch, device, dtype, packs, expected):
    monkeypatch.setattr(quicken, "can_prepack", lambda: packs)
    assert quicken.can_quicken(torch.device(device), dtype) is expected
