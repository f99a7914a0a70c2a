"""Where a checkpoint has several layers in one, their adapters are written as one, exactly, and
read back as they were.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.apply import LoraTag, applied, effects
from lora_trainer.adapters.continued import begin_from, match
from lora_trainer.adapters.export import export, export_diffusers, verify
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.parts import FlowSchedule, Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.families.base import NativePaths, Rows
from lora_trainer.lora.changes import open_changes
from lora_trainer.lora.describe import describe
from lora_trainer.lora.names import base_layers, module_names
from lora_trainer.settings.training import LoraSettings
from tests.families.one_more.toy import Toy, build

METADATA = {"ss_network_dim": "2", "ss_base_model_version": "toy_v1"}
KV = "lora_unet_kv"


class Fused(Toy):
    """The toy, whose file has key and value in one layer."""

    diffusers_parts = {"unet": "transformer"}  # noqa: RUF012

    def layer_names(self, parts):
        return lambda part, path: f"lora_unet_{self.native(part, path)}"

    def native(self, part, path):
        return "kv" if path in ("key", "value") else path

    def fused_rows(self, parts):
        rows = {"key": Rows(0, 32, 64), "value": Rows(32, 32, 64)}
        return lambda part, path: rows.get(path)

    def native_paths(self, parts):
        return NativePaths(of_layer=self.native, as_hosts_read=lambda part, path: path)


def made(*targets: str, alpha: float = 3.0, rank: int = 2, seed: int = 5):
    torch.manual_seed(1)
    unet = build("denoiser")
    # text states have 24 numbers, so that key and value have the same inputs
    parts = Parts(family=Fused(), schedule=FlowSchedule(), unet=unet)
    settings = LoraSettings(target_modules=targets, lora_rank=rank, lora_alpha=alpha)
    return parts, add_adapters(parts, settings, seed), settings


def fill(adapters):
    generator = torch.Generator().manual_seed(7)
    for _, parameter in adapters.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def predicted(parts):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        noisy, hidden = (torch.randn(s, generator=generator) for s in ((2, 16, 4, 4), (2, 5, 24)))
        return parts.unet(noisy, torch.tensor([0.2, 0.7]), hidden, torch.ones(2, 5))


@pytest.fixture
def file(tmp_path):
    parts, adapters, _ = made("query", "key", "value")
    fill(adapters)
    export(adapters, parts, tmp_path / "x.safetensors", METADATA, torch.float32)
    return tmp_path / "x.safetensors"


def test_the_file_has_one_adapter_for_both_and_their_effect(file):
    parts, adapters, _ = made("query", "key", "value")
    fill(adapters)
    tensors = load_file(file)
    assert {name.split(".")[0] for name in tensors} == {KV, "lora_unet_query"}
    assert tensors[f"{KV}.lora_down.weight"].shape == (4, 24)
    assert tensors[f"{KV}.lora_up.weight"].shape == (64, 4)
    assert tensors[f"{KV}.lora_up.weight"][:32, 2:].count_nonzero() == 0
    assert float(tensors[f"{KV}.alpha"]) == 6.0
    assert module_names(parts)[KV] == (64, 24)
    by_path = {adapter.path: adapter for adapter in adapters.layers}
    wanted = torch.cat([1.5 * by_path[path].up @ by_path[path].down for path in ("key", "value")])
    torch.testing.assert_close(effects(file)[KV], wanted)
    live = predicted(parts)
    adapters.remove()
    before = predicted(parts)
    with applied(parts, [LoraTag(file, 1.0)]):
        torch.testing.assert_close(predicted(parts), live, rtol=1e-5, atol=1e-5)
    assert torch.equal(predicted(parts), before)


def test_a_layer_without_an_adapter_has_zero_rows(tmp_path):
    parts, adapters, _ = made("value")
    fill(adapters)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA, torch.float32)
    assert report.module_count == 1
    up = load_file(tmp_path / "x.safetensors")[f"{KV}.lora_up.weight"]
    assert up.shape == (64, 2) and up[:32].count_nonzero() == 0 < up[32:].count_nonzero()


@pytest.mark.parametrize("rank", [2, 4])
def test_reading_it_back_gives_the_factors_as_they_were(file, rank):
    changes = open_changes(file)
    usual = changes.usual(convolutions=False)
    assert (usual.rank, usual.scale) == (2, 1.5)
    _, earlier, _ = made("query", "key", "value")
    fill(earlier)
    parts, adapters, settings = made("query", "key", "value", rank=rank, alpha=rank * 1.5)
    beginning = begin_from(adapters, match(changes, parts, settings))
    assert (beginning.kept, beginning.continued) == (1.0, 3)
    assert beginning.notes() == []
    for ours, theirs in zip(adapters.layers, earlier.layers, strict=True):
        assert torch.equal(ours.down[:2], theirs.down) and torch.equal(ours.up[:, :2], theirs.up)
        assert ours.up[:, 2:].count_nonzero() == 0


def test_what_is_not_trained_of_it_is_told(file):
    parts, adapters, settings = made("query", "value")
    beginning = begin_from(adapters, match(open_changes(file), parts, settings))
    assert beginning.left_out == (KV,) and beginning.continued == 2 and beginning.kept == 1.0


def test_another_trainers_adapter_of_the_whole_layer_is_divided(tmp_path):
    down, up = torch.randn(2, 24), torch.randn(64, 2)
    tensors = {
        f"diffusion_model.kv.lora_{end}.weight": one for end, one in (("A", down), ("B", up))
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"alpha": "2"})
    parts, adapters, settings = made("key", "value", alpha=2.0)
    assert begin_from(adapters, match(open_changes(tmp_path / "x.safetensors"), parts, settings))
    for adapter, rows in zip(adapters.layers, (up[:32], up[32:]), strict=True):
        torch.testing.assert_close(adapter.up @ adapter.down, rows @ down)


def test_rows_of_another_model_are_refused(tmp_path):
    tensors = {
        f"{KV}.lora_down.weight": torch.ones(2, 24),
        f"{KV}.lora_up.weight": torch.ones(9, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    parts, adapters, settings = made("key", "value")
    with pytest.raises(LoraFileError, match="a layer of 9 does not fit"):
        begin_from(adapters, match(open_changes(tmp_path / "x.safetensors"), parts, settings))


def test_inspect_compares_it_with_the_whole_layer(file):
    parts, _, _ = made("key")
    description = describe(file, base_layers(parts))
    assert (description.unmatched, description.misshapen) == ((), ())


def test_diffusers_form_has_the_layers_apart(tmp_path):
    parts, adapters, _ = made("key", "value")
    fill(adapters)
    export_diffusers(adapters, parts, tmp_path / "d.safetensors", METADATA, torch.float32)
    assert sorted(load_file(tmp_path / "d.safetensors")) == sorted(
        f"transformer.{path}.lora_{end}.weight" for path in ("key", "value") for end in "AB"
    )


def test_the_check_of_a_file_notices_missing_rows(file, tmp_path):
    tensors = load_file(file)
    tensors[f"{KV}.lora_up.weight"] = tensors[f"{KV}.lora_up.weight"][:32].contiguous()
    save_file(tensors, tmp_path / "short.safetensors")
    parts, _, _ = made("key")
    with pytest.raises(LoraFileError, match="shapes that do not fit"):
        verify(tmp_path / "short.safetensors", module_names(parts))
