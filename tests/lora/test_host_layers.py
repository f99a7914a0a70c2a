"""Which layer names of a LoRA file a WebUI finds. The counts of Forge Neo and Forge are those of
their own maps, asked with networks without weights.
"""

from __future__ import annotations

from typing import get_args

import pytest

from lora_trainer import families
from lora_trainer.lora import host_layers
from lora_trainer.lora.host_layers import HOST_NAMES, Place, layers, names, translations
from lora_trainer.lora.layouts import FAMILIES, TEXT, UNET
from lora_trainer.settings.training import WebUI
from tests.lora.other_trainers import attention_and_mlp, diffusers_layers, own_layers


def found(host: str, model: str, head: str) -> tuple[int, int]:
    """(how many of diffusers' attention and MLP layers are found under this prefix, of how many)"""
    asked = [
        head + (name.replace(".", "_") if head.endswith("_") else name)
        for name in attention_and_mlp(model)
    ]
    known = names(host, model)
    return sum(name in known and known[name].exists for name in asked), len(asked)


@pytest.mark.parametrize(
    ("host", "model", "dotted", "kohya"),
    [
        ("neo", "flux", (418, 418), 0),
        ("forge", "flux", (418, 418), 0),
        ("neo", "chroma", (418, 418), 0),
        ("forge", "chroma", (0, 418), 0),
        ("neo", "klein4b", (100, 100), 0),
        ("neo", "klein9b", (144, 144), 0),
        ("forge", "sd35m", (0, 337), 0),
        ("neo", "zimage", (238, 238), 102),
        ("neo", "qwen", (720, 720), 720),
        ("neo", "krea2", (256, 256), 0),
        ("neo", "anima", (0, 280), 0),
        ("neo", "sdxl", (0, 700), 700),
        ("a1111", "sdxl", (0, 700), 700),
    ],
)
def test_diffusers_names_that_are_found(
    host: str, model: str, dotted: tuple[int, int], kohya: int
) -> None:
    assert found(host, model, "transformer.") == dotted
    assert found(host, model, "lora_unet_") == (kohya, dotted[1])


@pytest.mark.parametrize("model", host_layers.models())
def test_the_models_own_names_are_found_by_every_webui_that_runs_it(model: str) -> None:
    own = own_layers(model)
    for host in HOST_NAMES:
        known = names(host, model)
        if not host_layers.runs(host, model):
            assert known == {}
            continue
        heads = (
            ["lora_unet_"] if host in ("a1111", "classic") else ["lora_unet_", "diffusion_model."]
        )
        for head in heads:
            for layer, shape in own.items():
                name = head + (layer.replace(".", "_") if head.endswith("_") else layer)
                assert (known[name].layer, known[name].shape) == (layer, shape)


@pytest.mark.parametrize("model", host_layers.models())
def test_every_name_of_diffusers_can_be_translated_to_a_layer_of_its_size(model: str) -> None:
    known = translations(model)
    rows: dict[str, int] = {}
    asked = attention_and_mlp(model)
    for name, shape in asked.items():
        place = known[UNET, name.replace(".", "_")]
        assert place.shape == shape
        rows[place.layer] = rows.get(place.layer, 0) + shape[0]
    shapes = layers("forge" if model.startswith("sd3") else "neo", model)
    # the split layers fill the fused ones, row by row
    assert all(count == shapes[UNET, layer][0] for layer, count in rows.items())
    assert host_layers.family_of(model) in FAMILIES


def test_rows_of_a_fused_layer() -> None:
    place = names("neo", "flux")["transformer.single_transformer_blocks.37.proj_mlp"]
    assert place == Place(
        part=UNET,
        layer="single_blocks.37.linear1",
        shape=(12288, 3072),
        first=9216,
        whole=(21504, 3072),
    )
    assert place.is_part
    qkv = names("neo", "flux")["diffusion_model.single_blocks.0.linear1_qkv"]
    assert (qkv.layer, qkv.first, qkv.shape) == ("single_blocks.0.linear1", 0, (9216, 3072))
    last = names("forge", "flux")["transformer.norm_out.linear"]
    assert (last.layer, last.swapped) == ("final_layer.adaLN_modulation.1", True)


def test_a_name_may_be_read_and_lead_nowhere() -> None:
    norm = names("neo", "flux")["transformer.transformer_blocks.0.attn.norm_k"]
    assert (norm.layer, norm.exists) == ("double_blocks.0.img_attn.norm.key_norm.scale", False)


@pytest.mark.parametrize(
    ("host", "model", "name", "layer"),
    [
        ("a1111", "sd1", "lora_te_text_model_encoder_layers_11_mlp_fc1", True),
        ("a1111", "sd1", "lora_te1_text_model_encoder_layers_11_mlp_fc1", True),
        ("a1111", "sd1", "lora_te_text_model_encoder_layers_12_mlp_fc1", False),
        ("a1111", "sd1", "text_encoder.text_model.encoder.layers.0.mlp.fc1", False),
        ("a1111", "sd2", "lora_te_text_model_encoder_layers_22_mlp_fc1", True),
        ("a1111", "sdxl", "lora_te_text_model_encoder_layers_0_mlp_fc1", False),
        ("a1111", "sdxl", "lora_te2_text_model_encoder_layers_31_self_attn_q_proj", True),
        ("a1111", "sdxl", "lora_unet_up_blocks_0_upsamplers_0_conv", False),
        ("forge", "sdxl", "lora_unet_up_blocks_0_upsamplers_0_conv", True),
        ("forge", "sdxl", "text_encoder_2.text_model.encoder.layers.31.mlp.fc2", True),
        ("forge", "flux", "lora_te1_text_model_encoder_layers_0_self_attn_k_proj", True),
        ("forge", "flux", "lora_te2_encoder_block_23_layer_1_DenseReluDense_wi_0", True),
        (
            "neo",
            "flux",
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
            True,
        ),
        ("neo", "chroma", "lora_te1_encoder_block_0_layer_0_SelfAttention_q", True),
        ("neo", "anima", "lora_te_layers_27_self_attn_q_proj", True),
        ("neo", "anima", "lora_unet_llm_adapter_blocks_5_mlp_0", True),
        ("neo", "anima", "diffusion_model.llm_adapter.blocks.5.mlp.0", True),
        (
            "neo",
            "sd1",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
            True,
        ),
    ],
)
def test_text_encoders_and_odd_names(host: str, model: str, name: str, layer: bool) -> None:
    assert (name in names(host, model)) == layer


def test_shapes_are_those_of_the_published_models() -> None:
    assert layers("neo", "anima")[UNET, "t_embedder.1.linear_1"] == (2048, 2048)
    assert layers("neo", "klein9b")[UNET, "double_blocks.7.img_attn.qkv"] == (12288, 4096)
    assert layers("forge", "sd35m")[UNET, "joint_blocks.12.x_block.attn2.qkv"] == (4608, 1536)
    assert (UNET, "joint_blocks.13.x_block.attn2.qkv") not in layers("forge", "sd35m")
    assert layers("neo", "sd1")[TEXT, "text_model.encoder.layers.0.mlp.fc1"] == (3072, 768)
    assert len(diffusers_layers("anima")) == 454


@pytest.mark.parametrize(
    ("host", "family", "expected"),
    [
        ("neo", "sd2", False),
        ("neo", "sd3", False),
        ("neo", "zimage", True),
        ("a1111", "flux", False),
        ("a1111", "sd2", True),
        ("forge", "flux", True),
        ("forge", "klein4b", False),
        ("reforge", "anima", False),
        ("classic", "sdxl", True),
        ("neo", "unknown", None),
        ("unknown", "sd1", None),
    ],
)
def test_which_families_a_webui_loads(host: str, family: str, expected: bool | None) -> None:
    assert host_layers.loads(host, family) is expected


def test_every_family_is_loaded_by_a_webui() -> None:
    assert all(host_layers.hosts_of(family.id) for family in families.every())


def test_the_settings_name_the_same_webuis() -> None:
    assert list(get_args(WebUI)) == list(HOST_NAMES)
