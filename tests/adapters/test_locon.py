"""LoCon: the plain LoRA's layers and the UNet's convolutions, each with its own rank and alpha."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.adapters.export import export, export_diffusers, verify
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.errors import ConfigError
from lora_trainer.lora.names import diffusers_names, module_names
from lora_trainer.settings.training import LoraSettings
from tests.adapters.test_export import METADATA, STRENGTHS, close, live, merge
from tests.adapters.test_injected import fill, predictions
from tests.lora.test_names import full_size_parts
from tests.tiny import tiny_parts

SETTINGS = LoraSettings(lora_type="locon", lora_rank=4, lora_alpha=2.7, conv_rank=2, conv_alpha=1.5)


def test_it_learns_the_layers_that_kohyas_conv_dim_learns():
    """192 attention layers of SD1.5, and of its 22 ResNet blocks, 3 downsamplers and 3 upsamplers:
    44 convolutions, 22 embedding layers, 14 shortcuts, 6 samplers.
    """
    adapters = add_adapters(full_size_parts("sd1"), SETTINGS, seed=0)
    sizes = {adapter.path: (adapter.size.rank, adapter.size.alpha) for adapter in adapters.layers}
    assert len(sizes) == 192 + 44 + 22 + 14 + 6
    assert sizes["down_blocks.0.resnets.0.conv1"] == (2, 1.5)
    assert sizes["down_blocks.0.downsamplers.0.conv"] == (2, 1.5)
    assert sizes["down_blocks.0.resnets.0.time_emb_proj"] == (4, 2.7)
    assert sizes["down_blocks.1.resnets.0.conv_shortcut"] == (4, 2.7)
    assert sizes["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] == (4, 2.7)
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & set(sizes)
    paths = list(sizes)
    model = [path for path, _ in full_size_parts("sd1").unet.named_modules() if path in sizes]
    assert paths == model


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_hosts_merge_it_to_what_training_had(family, tmp_path):
    parts = tiny_parts(family)
    adapters = add_adapters(parts, SETTINGS, seed=0)
    fill(adapters)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA, torch.float32)
    assert report.module_count == adapters.module_count and report.idle_modules == 0
    written = safetensors.torch.load_file(tmp_path / "x.safetensors")
    weights = [weight for name, weight in written.items() if not name.endswith(".alpha")]
    assert sum(weight.numel() for weight in weights) == adapters.parameter_count
    base, merged, before = tiny_parts(family), tiny_parts(family), 0.0
    for strength in STRENGTHS:
        expected = live(parts, adapters, strength)
        merge(merged, tmp_path / "x.safetensors", strength - before)
        before = strength
        close(predictions(merged), expected)
    with applied(base, [LoraTag(tmp_path / "x.safetensors", 1.0)]):
        close(predictions(base), expected)
    export_diffusers(adapters, parts, tmp_path / "d.safetensors", METADATA)
    verify(tmp_path / "d.safetensors", diffusers_names(parts), form="diffusers")


def test_a_convolutions_adapter_has_its_kernel_and_its_own_alpha_in_the_file(tmp_path):
    parts = tiny_parts("sd1")
    adapters = add_adapters(parts, SETTINGS, seed=0)
    export(adapters, parts, tmp_path / "x.safetensors", METADATA)
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    base = module_names(parts)[name]
    assert tuple(tensors[f"{name}.lora_down.weight"].shape) == (2, base[1], 3, 3)
    assert tuple(tensors[f"{name}.lora_up.weight"].shape) == (base[0], 2, 1, 1)
    assert tensors[f"{name}.alpha"].item() == 1.5


def test_a_fresh_one_changes_nothing_and_its_seed_is_its_own(tmp_path):
    parts = tiny_parts("sd1")
    before = predictions(parts)
    first = add_adapters(parts, SETTINGS, seed=5)
    close(predictions(parts), before)
    again = add_adapters(tiny_parts("sd1"), SETTINGS, seed=5).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())


def test_left_at_auto_convolutions_have_the_rank_of_the_rest():
    adapters = add_adapters(tiny_parts("sd1"), LoraSettings(lora_type="locon", lora_rank=3), seed=0)
    assert {(adapter.size.rank, adapter.size.alpha) for adapter in adapters.layers} == {(3, 3.0)}


def test_a_convolution_rank_without_a_locon_is_told():
    with pytest.raises(ConfigError, match="conv_rank is set, but lora_type is lora"):
        LoraSettings(conv_rank=4)
    with pytest.raises(ConfigError, match="lora_type is 'lokon', but must be one of: lora, locon"):
        LoraSettings(lora_type="lokon")
