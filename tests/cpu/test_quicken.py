from __future__ import annotations

import pytest
import torch

from lora_trainer.adapters.injected import add_adapters
from lora_trainer.cpu import attention, quicken
from lora_trainer.cpu.adapters import LowRankLinear
from lora_trainer.cpu.convolutions import PointwiseConv2d, PrepackedConv2d
from lora_trainer.settings.training import LoraSettings
from tests.tiny import small_parts


def kinds_after(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, can: bool
) -> tuple[set[type[torch.nn.Module]], list[bool]]:
    """The classes of a UNet with adapters, and whether attention was asked for."""
    parts, asked = small_parts(), []
    parts.unet.to(dtype)
    add_adapters(parts, LoraSettings(), seed=0)
    monkeypatch.setattr(quicken, "can_prepack", lambda: can)
    monkeypatch.setattr("lora_trainer.cpu.convolutions.can_prepack", lambda: can)
    monkeypatch.setattr(PrepackedConv2d, "lay_out", lambda self: None)
    monkeypatch.setattr(attention, "activate", lambda: asked.append(True))
    quicken.quicken(parts.unet, dtype)
    return {type(module) for module in parts.unet.modules()}, asked


def test_a_model_in_bfloat16_gets_all_forms(monkeypatch):
    kinds, asked = kinds_after(torch.bfloat16, monkeypatch, can=True)
    assert {PrepackedConv2d, PointwiseConv2d, LowRankLinear} <= kinds
    assert torch.nn.Conv2d not in kinds and asked == [True]


@pytest.mark.parametrize(("dtype", "can"), [(torch.float32, True), (torch.bfloat16, False)])
def test_others_stay_as_they_are(dtype, can, monkeypatch):
    kinds, asked = kinds_after(dtype, monkeypatch, can)
    assert not {PrepackedConv2d, PointwiseConv2d, LowRankLinear} & kinds
    assert torch.nn.Conv2d in kinds and asked == []
