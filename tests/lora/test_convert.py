"""A LoRA under other trainers' names -> the same weights under the names that every WebUI loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.__main__ import main
from lora_trainer.adapters.apply import effects
from lora_trainer.adapters.export import export, export_diffusers, verify
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.convert import convert
from lora_trainer.lora.describe import describe
from lora_trainer.lora.file import read_header
from lora_trainer.lora.metadata import build
from lora_trainer.lora.names import base_layers, module_names
from lora_trainer.settings.training import LoraSettings
from tests.adapters.test_export import FEW
from tests.adapters.test_injected import fill
from tests.lora.test_metadata import config, facts
from tests.tiny import tiny_parts


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_our_diffusers_file_becomes_our_webui_file(family: str, tmp_path: Path) -> None:
    parts = tiny_parts(family)
    adapters = add_adapters(parts, LoraSettings(**FEW), seed=0)
    fill(adapters)
    about = build(facts(config(lora_rank=4), family=family))
    export(adapters, parts, tmp_path / "webui.safetensors", about, torch.float32)
    export_diffusers(adapters, parts, tmp_path / "diffusers.safetensors", about, torch.float32)
    convert(tmp_path / "diffusers.safetensors", tmp_path / "copy.safetensors")
    verify(tmp_path / "copy.safetensors", module_names(parts))
    wanted, found = effects(tmp_path / "webui.safetensors"), effects(tmp_path / "copy.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.allclose(wanted[name], found[name], rtol=1e-4, atol=1e-6) for name in wanted)
    assert describe(tmp_path / "copy.safetensors", base_layers(parts)).unmatched == ()


def test_onetrainers_sdxl_names_become_loadable_with_weights_and_alpha_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, source, copy = (
        "unet.output_blocks.5.1.transformer_blocks.1.attn2.to_k",
        tmp_path / "x.safetensors",
        tmp_path / "y.safetensors",
    )
    weights = {
        f"{name}.lora_down.weight": torch.randn(4, 2048).half(),
        f"{name}.lora_up.weight": torch.randn(640, 4).half(),
    }
    safetensors.torch.save_file(
        {
            **weights,
            f"{name}.alpha": torch.tensor(1.0),
            "bundle_emb.my person.clip_l": torch.ones(4, 768),
        },
        source,
        {"ot_branch": "x"},
    )
    assert "note:            A copy that every WebUI loads" in describe(source).to_text()
    assert main(["inspect", str(source), "--convert", str(copy)]) == 0
    assert f"Wrote {copy}." in capsys.readouterr().err
    flat, stored = (
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_k",
        safetensors.torch.load_file(copy),
    )
    assert {
        key: stored[key.replace(name, flat.replace("lora_unet_", "lora_unet_"))].tolist()
        for key in weights
    } == {key: tensor.tolist() for key, tensor in weights.items()}
    assert stored.keys() == {
        f"{flat}.alpha",
        f"{flat}.lora_down.weight",
        f"{flat}.lora_up.weight",
        "bundle_emb.my person.clip_l",
    }
    assert [str(host) for host in describe(copy).hosts][:1] == ["A1111 loads all its layers."]
    with pytest.raises(LoraFileError, match="exists already"):
        convert(source, copy)


@pytest.mark.parametrize(
    ("adapter", "stated", "scale", "alpha"),
    [
        ("", '"r": 16, "lora_alpha": 64, "use_rslora": true', 16.0, 256.0),
        ("", '"r": 16, "lora_alpha": 32', 2.0, 32.0),
        (".default", '"r": 16, "lora_alpha": 32', 2.0, 32.0),
    ],
)
def test_alpha_stated_elsewhere_is_written_where_the_webuis_look(
    tmp_path: Path, adapter: str, stated: str, scale: float, alpha: float
) -> None:
    name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {
        f"{name}.lora_A{adapter}.weight": torch.ones(16, 768),
        f"{name}.lora_B{adapter}.weight": torch.ones(320, 16),
    }
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{" + stated + "}")
    convert(tmp_path / "adapter_model.safetensors", tmp_path / "copy.safetensors")
    found = describe(tmp_path / "copy.safetensors")
    assert (found.scales, found.alphas, found.alpha_source) == ((scale,), (alpha,), "")
    copy = read_header(tmp_path / "copy.safetensors")
    assert {key.rpartition("to_k.")[2] for key in copy.tensors} == {
        "alpha",
        "lora_down.weight",
        "lora_up.weight",
    }
    assert copy.metadata["ss_base_model_version"] == "sd_v1"


def test_early_diffusers_names_of_the_last_layer_of_attention_become_the_webuis(
    tmp_path: Path,
) -> None:
    before = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor"
    after = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2"
    shapes = {"to_k": (768, 1280), "to_out": (1280, 1280)}
    tensors = {
        f"{before}.{name}_lora.{end}.weight": torch.ones(4, inner)
        if end == "down"
        else torch.ones(outer, 4)
        for name, (inner, outer) in shapes.items()
        for end in ("down", "up")
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "copy.safetensors")
    assert set(read_header(tmp_path / "copy.safetensors").tensors) == {
        f"{after}_{name}.lora_{end}.weight"
        for name in ("to_k", "to_out_0")
        for end in ("down", "up")
    }


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q", "lora_A.weight"),
        ("unet.mid_block.attentions.0.proj_in", "lora_magnitude_vector"),
    ],
)
def test_what_cannot_be_renamed_is_told(name: str, end: str, tmp_path: Path) -> None:
    tensors = {
        f"{name}.lora_A.weight": torch.ones(2, 3072),
        f"{name}.lora_B.weight": torch.ones(8, 2),
        f"{name}.{end}": torch.ones(2, 3072),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    assert "A copy that every WebUI loads" not in describe(tmp_path / "x.safetensors").to_text()
    with pytest.raises(LoraFileError, match="cannot be converted"):
        convert(tmp_path / "x.safetensors", tmp_path / "copy.safetensors")
    assert not (tmp_path / "copy.safetensors").exists()
