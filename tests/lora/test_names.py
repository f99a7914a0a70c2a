"""Every name we write is one that A1111 and Forge look up. Their lookup rules are written here a
second time, from their sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_trainer import families
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.names import rename, unet_modules
from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.demo import EMBEDDED
from lora_trainer.lora.names import adaptable_layers, fits, module_names
from tests.tiny import tiny_parts

TEXT_LAYERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
DEPTHS = {"sd1": ((1, 1, 1, 0), 1), "sd2": ((1, 1, 1, 0), 1), "sdxl": ((0, 2, 10), 10)}
"""Transformer blocks at each resolution, and in the middle."""


def full_size_unet(family: str) -> UNet2DConditionModel:
    """The true architecture, without memory for its weights."""
    attention = {
        "sd1": {"attention_head_dim": 8, "cross_attention_dim": 768},
        "sd2": {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
    }
    with torch.device("meta"):
        if family != "sdxl":
            return UNet2DConditionModel(**attention[family], use_linear_projection=family == "sd2")
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def full_size_parts(family: str) -> Parts:
    return Parts(family=families.get(family), schedule=NoiseSchedule(), unet=full_size_unet(family))


def webui_name(family: str, part: str, path: str) -> str:
    return families.get(family).layer_names(full_size_parts(family))(part, path)


# --- the hosts' own module lists, as ldm and sgm build them ---------------------------------------


def resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Iterator[tuple[str, str]]:
    pairs = [
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.3", "conv2"),
        ("skip_connection", "conv_shortcut"),
    ]
    pairs = pairs if shortcut else pairs[:3]
    yield from ((f"{ldm}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in pairs)


def transformer(ldm: str, diffusers: str, depth: int) -> Iterator[tuple[str, str]]:
    ends = [
        f"{attention}.{layer}"
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    ends += ["ff.net.0.proj", "ff.net.2"]
    for end in [
        "proj_in",
        "proj_out",
        *(f"transformer_blocks.{block}.{end}" for block in range(depth) for end in ends),
    ]:
        yield f"{ldm}.{end}", f"{diffusers}.{end}"


def host_unet(family: str) -> dict[str, str]:
    """diffusers' path -> the host's module path, for every layer that can hold a LoRA."""
    depths, middle = DEPTHS[family]
    pairs = [("input_blocks.0.0", "conv_in"), ("out.2", "conv_out")]
    pairs += [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
    ]
    if family == "sdxl":
        pairs += [
            ("label_emb.0.0", "add_embedding.linear_1"),
            ("label_emb.0.2", "add_embedding.linear_2"),
        ]
    index = 1
    for level, depth in enumerate(depths):
        for layer in range(2):
            # the widths of SD1 are 320, 640, 1280, 1280: the last level does not widen
            wider = layer == 0 and level > 0 and not (family != "sdxl" and level == 3)
            pairs += resnet(
                f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{layer}", shortcut=wider
            )
            pairs += (
                transformer(
                    f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{layer}", depth
                )
                if depth
                else []
            )
            index += 1
        if level < len(depths) - 1:
            pairs.append((f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            index += 1
    pairs += resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    pairs += transformer("middle_block.1", "mid_block.attentions.0", middle)
    pairs += resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)
    index = 0
    for block, depth in enumerate(reversed(depths)):
        for layer in range(3):
            pairs += resnet(
                f"output_blocks.{index}.0", f"up_blocks.{block}.resnets.{layer}", shortcut=True
            )
            pairs += (
                transformer(
                    f"output_blocks.{index}.1", f"up_blocks.{block}.attentions.{layer}", depth
                )
                if depth
                else []
            )
            if block < len(depths) - 1 and layer == 2:
                pairs.append(
                    (
                        f"output_blocks.{index}.{2 if depth else 1}.conv",
                        f"up_blocks.{block}.upsamplers.0.conv",
                    )
                )
            index += 1
    return {diffusers: f"diffusion_model.{ldm}" for ldm, diffusers in pairs}


def open_clip(prefix: str, layer_count: int) -> set[str]:
    ends = ("attn", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    return {
        f"{prefix}model.transformer.resblocks.{layer}.{end}"
        for layer in range(layer_count)
        for end in ends
    }


def clip(prefix: str) -> set[str]:
    return {
        f"{prefix}transformer.text_model.encoder.layers.{layer}.{end}"
        for layer in range(12)
        for end in TEXT_LAYERS
    }


def host_modules(family: str) -> set[str]:
    """network_layer_mapping: every module's path with underscores for dots."""
    text = {"sd1": clip(""), "sd2": open_clip("", 24), "sdxl": {*clip("0_"), *open_clip("1_", 32)}}[
        family
    ]
    return {path.replace(".", "_") for path in (*host_unet(family).values(), *text)}


def a1111_finds(key: str, modules: set[str], family: str) -> str | None:
    """A1111 1.10.1, networks.py load_network: translate, look up; else without _q_proj; else by
    plain replacement of the prefix.
    """
    translated = a1111_translates(key, family == "sd2")
    if translated in modules:
        return translated
    joint = re.fullmatch(r"(.*)_([qkv]_proj)", translated)
    if joint and joint[1] in modules:
        return joint[1]
    for ours, theirs in (
        ("lora_unet", "diffusion_model"),
        ("lora_te1_text_model", "0_transformer_text_model"),
    ):
        if ours in key and key.replace(ours, theirs) in modules:
            return key.replace(ours, theirs)
    return None


def a1111_translates(key: str, is_sd2: bool) -> str:
    resnet_ends = {
        "conv1": "in_layers_2",
        "conv2": "out_layers_3",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
    }
    slot = {"attentions": 1, "resnets": 0}
    if match := re.fullmatch(r"lora_unet_conv_in", key):
        return "diffusion_model_input_blocks_0_0"
    if match := re.fullmatch(r"lora_unet_conv_out", key):
        return "diffusion_model_out_2"
    if match := re.fullmatch(r"lora_unet_time_embedding_linear_(\d)", key):
        return f"diffusion_model_time_embed_{int(match[1]) * 2 - 2}"
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        return f"diffusion_model_input_blocks_{1 + int(match[1]) * 3 + int(match[3])}_{slot[match[2]]}_{resnet_ends.get(match[4], match[4])}"
    if match := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", key):
        return f"diffusion_model_middle_block_{1 if match[1] == 'attentions' else int(match[2]) * 2}_{resnet_ends.get(match[3], match[3])}"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        return f"diffusion_model_output_blocks_{int(match[1]) * 3 + int(match[3])}_{slot[match[2]]}_{resnet_ends.get(match[4], match[4])}"
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", key):
        return f"diffusion_model_input_blocks_{3 + int(match[1]) * 3}_0_op"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", key):
        return f"diffusion_model_output_blocks_{2 + int(match[1]) * 3}_{2 if int(match[1]) > 0 else 1}_conv"
    if match := re.fullmatch(r"lora_te(2?)_text_model_encoder_layers_(\d+)_(.+)", key):
        if not match[1] and not is_sd2:
            return f"transformer_text_model_encoder_layers_{match[2]}_{match[3]}"
        end = (
            match[3]
            .replace("self_attn", "attn")
            .replace("mlp_fc1", "mlp_c_fc")
            .replace("mlp_fc2", "mlp_c_proj")
        )
        return f"{'1_' if match[1] else ''}model_transformer_resblocks_{match[2]}_{end}"
    return key


def forge_knows(family: str) -> set[str]:
    """Forge, comfyui_lora_collection/lora.py: the UNet under ldm's and under diffusers' names, the
    text encoders under kohya's.
    """
    paths = [
        path.removeprefix("diffusion_model.") for pair in host_unet(family).items() for path in pair
    ]
    unet = {"lora_unet_" + path.replace(".", "_") for path in paths}
    prefixes = {
        "sd1": {"lora_te": 12},
        "sd2": {"lora_te": 24},
        "sdxl": {"lora_te1": 12, "lora_te2": 32},
    }[family]
    text = {
        f"{prefix}_text_model_encoder_layers_{layer}_{end.replace('.', '_')}"
        for prefix, count in prefixes.items()
        for layer in range(count)
        for end in TEXT_LAYERS
    }
    return unet | text


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_both_hosts_find_every_layer_of_the_unet_and_a1111_finds_the_right_one(family: str) -> None:
    expected = host_unet(family)
    parts = full_size_parts(family)
    layer_name = parts.family.layer_names(parts)
    names = {path: layer_name("unet", path) for path in expected}
    assert set(names.values()) == set(module_names(parts))
    assert {
        path: a1111_finds(name, host_modules(family), family) for path, name in names.items()
    } == {path: module.replace(".", "_") for path, module in expected.items()}
    assert set(names.values()) <= forge_knows(family)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_both_hosts_find_every_layer_of_the_text_encoders(family: str) -> None:
    names = [name for name in module_names(tiny_parts(family)) if name.startswith("lora_te")]
    assert len(names) == (36 if family == "sdxl" else 18)
    assert [name for name in names if a1111_finds(name, host_modules(family), family) is None] == []
    assert set(names) <= forge_knows(family)


def test_names_are_those_of_kohya() -> None:
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert (
        webui_name("sd1", "unet", attention)
        == "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )
    assert (
        webui_name("sdxl", "unet", attention)
        == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"
    )
    assert (
        webui_name("sdxl", "unet", "up_blocks.1.attentions.2.proj_out")
        == "lora_unet_output_blocks_5_1_proj_out"
    )
    assert (
        webui_name("sdxl", "unet", "mid_block.resnets.1.conv2")
        == "lora_unet_middle_block_2_out_layers_3"
    )
    text = "text_model.encoder.layers.11.self_attn.q_proj"
    assert (
        webui_name("sd1", "text_encoder", text)
        == "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
    )
    assert (
        webui_name("sdxl", "text_encoder", text)
        == "lora_te1_text_model_encoder_layers_11_self_attn_q_proj"
    )
    assert (
        webui_name("sdxl", "text_encoder_2", text)
        == "lora_te2_text_model_encoder_layers_11_self_attn_q_proj"
    )


def test_a_text_encoder_of_a_newer_transformers_has_the_same_names() -> None:
    assert (
        webui_name("sd1", "text_encoder", "encoder.layers.0.mlp.fc1")
        == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    )


def test_the_projection_that_hosts_keep_as_a_bare_matrix_is_left_out() -> None:
    assert not [name for name in module_names(tiny_parts("sdxl")) if "projection" in name]


def test_shapes_fit_when_up_times_down_is_the_weight() -> None:
    assert fits((8, 6), (2, 6), (8, 2))
    assert fits((8, 6, 1, 1), (2, 6), (8, 2))
    assert fits((8, 6), (2, 6, 1, 1), (8, 2, 1, 1))
    assert fits((8, 6, 3, 3), (2, 6, 3, 3), (8, 2, 1, 1))
    assert not fits((8, 6, 3, 3), (2, 6, 1, 1), (8, 2, 1, 1))
    assert not fits((8, 6), (2, 5), (8, 2))
    assert not fits((8, 6), (2, 6), (7, 2))
    assert not fits((8, 6), (2, 6), (8, 3))
    assert not fits((8, 6), (6,), (8,))


def test_a_unet_of_another_depth_has_the_names_of_its_checkpoint_file() -> None:
    # A1111 reads down_blocks_1 as if every block had two layers: of the embedded checkpoint, one
    # layer deep, it would miss the second level
    parts = open_checkpoint(EMBEDDED).outline()
    modules, layer_name = unet_modules(parts.unet.config), parts.family.layer_names(parts)
    for path in adaptable_layers(parts.unet, parts.family):
        assert layer_name("unet", path) == "lora_unet_" + rename(path, modules).replace(".", "_"), (
            path
        )
    assert (
        layer_name("unet", "down_blocks.1.attentions.0.proj_in")
        == "lora_unet_input_blocks_3_1_proj_in"
    )


def test_an_upsampler_after_a_level_without_attention_has_the_files_own_name() -> None:
    # SD1's coarsest level has none, so that its upsampler is the block's second module, not the
    # third
    parts = full_size_parts("sd1")
    with torch.device("meta"):
        parts.unet = UNet2DConditionModel(layers_per_block=1)
    assert (
        parts.family.layer_names(parts)("unet", "up_blocks.0.upsamplers.0.conv")
        == "lora_unet_output_blocks_1_1_conv"
    )
