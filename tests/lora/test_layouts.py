"""Keys of LoRA files as the trainers write them: whose they are, for which model, and what each
WebUI makes of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.errors import CheckpointError
from lora_trainer.lora import describe as describe_module
from lora_trainer.lora.describe import Description, describe
from lora_trainer.lora.layouts import split_key

KOHYA, PEFT, OLD = (
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
)


def described(
    path: Path,
    names: list[str],
    ends: tuple[str, str],
    width: int,
    height: int = 8,
    metadata: dict[str, str] | None = None,
) -> Description:
    down, up = torch.ones(1, width, dtype=torch.float16), torch.ones(height, 1, dtype=torch.float16)
    tensors = {f"{name}.{ends[0]}": down.clone() for name in names} | {
        f"{name}.{ends[1]}": up.clone() for name in names
    }
    safetensors.torch.save_file(tensors, path, metadata)
    return describe(path)


SD = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT_SD = SD.replace(".", "_")
ALL, NONE = "loads all its layers.", "does not load its only layer."

FILES = {
    "kohya SD1": ([f"lora_unet_{FLAT_SD}"], KOHYA, 768, "kohya", ("sd1",), (ALL, ALL, ALL)),
    "kohya SD2": (
        [f"lora_unet_{FLAT_SD}"],
        KOHYA,
        1024,
        "kohya",
        ("sd2",),
        (ALL, ALL, "does not run SD2 models."),
    ),
    "kohya SDXL": (
        ["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"],
        KOHYA,
        640,
        "kohya",
        ("sdxl",),
        (ALL, ALL, ALL),
    ),
    "kohya SDXL with diffusers' layers": (
        ["lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn1_to_q"],
        KOHYA,
        1280,
        "kohya",
        ("sdxl",),
        (ALL, ALL, ALL),
    ),
    "kohya SDXL, a layer that A1111 knows under SGM's name alone": (
        ["lora_unet_add_embedding_linear_1"],
        KOHYA,
        2816,
        "kohya",
        ("sdxl",),
        (NONE, ALL, ALL),
    ),
    "kohya text encoder": (
        ["lora_te_text_model_encoder_layers_0_mlp_fc1"],
        KOHYA,
        768,
        "kohya",
        ("sd1",),
        (ALL, ALL, ALL),
    ),
    "OneTrainer SDXL": (
        ["unet.input_blocks.4.1.transformer_blocks.1.attn1.to_q"],
        KOHYA,
        640,
        "OneTrainer",
        ("sdxl",),
        (NONE, NONE, NONE),
    ),
    "OneTrainer text encoder": (
        ["clip_g.text_model.encoder.layers.0.mlp.fc1"],
        KOHYA,
        1280,
        "OneTrainer",
        ("sdxl",),
        (NONE, NONE, NONE),
    ),
    "OneTrainer FLUX.1, older": (
        ["lora_transformer_single_transformer_blocks_0_attn_to_q"],
        KOHYA,
        3072,
        "OneTrainer (older)",
        ("flux", "chroma"),
        None,
    ),
    "diffusers SDXL": (
        ["unet." + SD.replace("blocks.0.attn2", "blocks.1.attn1")],
        PEFT,
        640,
        "diffusers",
        ("sdxl",),
        (NONE, NONE, NONE),
    ),
    "diffusers SDXL, projections": (
        ["unet.up_blocks.0.attentions.0.transformer_blocks.9.ff.net.2"],
        PEFT,
        640,
        "diffusers",
        ("sdxl",),
        (NONE, ALL, ALL),
    ),
    "diffusers, older": (
        [f"unet.{SD}"],
        OLD,
        768,
        "diffusers (older)",
        ("sd1",),
        (NONE, NONE, NONE),
    ),
    "diffusers, first": (
        [SD.replace("to_k", "processor.to_k_lora").removesuffix(".weight")],
        ("down.weight", "up.weight"),
        768,
        "diffusers (older)",
        ("sd1",),
        (NONE, ALL, ALL),
    ),
    "PEFT": ([f"base_model.model.{SD}"], PEFT, 768, "PEFT", ("sd1",), (NONE, NONE, NONE)),
    "LyCORIS": ([f"lycoris_{FLAT_SD}"], KOHYA, 768, "LyCORIS", ("sd1",), (NONE, ALL, ALL)),
    "kohya FLUX.1": (
        ["lora_unet_double_blocks_0_img_mod_lin"],
        KOHYA,
        3072,
        "kohya",
        ("flux",),
        ("does not run FLUX.1 models.", ALL, ALL),
    ),
    "ComfyUI FLUX.1": (
        ["diffusion_model.single_blocks.0.modulation.lin"],
        PEFT,
        3072,
        "ComfyUI",
        ("flux",),
        ("does not run FLUX.1 models.", ALL, ALL),
    ),
    "diffusers FLUX.1": (
        ["transformer.single_transformer_blocks.0.norm.linear"],
        PEFT,
        3072,
        "diffusers",
        ("flux",),
        ("does not run FLUX.1 models.", ALL, ALL),
    ),
    "kohya FLUX.1 with diffusers' layers": (
        ["lora_unet_single_transformer_blocks_0_norm_linear"],
        KOHYA,
        3072,
        "kohya",
        ("flux",),
        ("does not run FLUX.1 models.", NONE, NONE),
    ),
    "ComfyUI klein 9B": (
        ["diffusion_model.double_blocks.0.img_attn.qkv"],
        PEFT,
        4096,
        "ComfyUI",
        ("klein9b",),
        ("does not run FLUX.2 klein 9B models.", "does not run FLUX.2 klein 9B models.", ALL),
    ),
    "ComfyUI klein 4B": (
        ["diffusion_model.single_blocks.0.linear2"],
        PEFT,
        12288,
        "ComfyUI",
        ("klein4b",),
        None,
    ),
    "diffusers klein 4B": (
        ["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"],
        PEFT,
        3072,
        "diffusers",
        ("klein4b",),
        None,
    ),
    "Chroma": (
        ["lora_unet_distilled_guidance_layer_layers_0_in_layer"],
        KOHYA,
        5120,
        "kohya",
        ("chroma",),
        ("does not run Chroma models.", ALL, ALL),
    ),
    "kohya SD3.5": (
        ["lora_unet_joint_blocks_0_x_block_attn_qkv"],
        KOHYA,
        1536,
        "kohya",
        ("sd3",),
        None,
    ),
    "diffusers SD3.5": (
        ["transformer.transformer_blocks.0.attn.to_q"],
        PEFT,
        1536,
        "diffusers",
        ("sd3",),
        ("does not run SD3 models.", NONE, "does not run SD3 models."),
    ),
    "musubi Z-Image": (
        ["lora_unet_layers_0_attention_qkv"],
        KOHYA,
        3840,
        "kohya",
        ("zimage",),
        None,
    ),
    "diffusers Z-Image": (
        ["transformer.layers.0.attention.to_q"],
        PEFT,
        3840,
        "diffusers",
        ("zimage",),
        ("does not run Z-Image models.", "does not run Z-Image models.", ALL),
    ),
    "musubi Z-Image with diffusers' layers": (
        ["lora_unet_layers_0_attention_to_q"],
        KOHYA,
        3840,
        "kohya",
        ("zimage",),
        ("does not run Z-Image models.", "does not run Z-Image models.", NONE),
    ),
    "Lumina 2": (["lora_unet_layers_0_feed_forward_w1"], KOHYA, 2304, "kohya", ("lumina2",), None),
    "kohya Anima": (
        ["lora_unet_blocks_0_cross_attn_q_proj"],
        KOHYA,
        2048,
        "kohya",
        ("anima",),
        ("does not run Anima models.", "does not run Anima models.", ALL),
    ),
    "diffusers Anima": (
        ["transformer.transformer_blocks.0.attn2.to_k"],
        PEFT,
        1024,
        "diffusers",
        ("anima",),
        ("does not run Anima models.", "does not run Anima models.", NONE),
    ),
    "diffusers Qwen-Image": (
        ["transformer.transformer_blocks.0.img_mlp.net.2"],
        PEFT,
        12288,
        "diffusers",
        ("qwen",),
        ("does not run Qwen-Image models.", "does not run Qwen-Image models.", ALL),
    ),
    "musubi Wan": (
        ["lora_unet_blocks_0_self_attn_q"],
        KOHYA,
        5120,
        "kohya",
        ("wan",),
        ("does not run Wan models.", "does not run Wan models.", ALL),
    ),
    "ComfyUI Wan": (["diffusion_model.blocks.0.ffn.0"], PEFT, 5120, "ComfyUI", ("wan",), None),
    "Krea 2": (["diffusion_model.blocks.0.attn.wq"], PEFT, 2048, "ComfyUI", ("krea2",), None),
    "HunyuanVideo": (
        ["lora_unet_double_blocks_0_img_mlp_fc1"],
        KOHYA,
        3072,
        "kohya",
        ("hunyuan_video",),
        None,
    ),
}


@pytest.mark.parametrize(
    ("layer", "width", "stated", "expected"),
    [
        ("img_attn_proj", 3072, "flux2_klein_4b", ("klein4b",)),
        ("img_attn_proj", 3072, "flux1", ("flux",)),
        ("img_attn_proj", 3072, "", ("flux", "chroma")),
        ("img_attn_proj", 4096, "flux1", ("klein9b",)),
        ("txt_mlp_2", 9216, "flux1", ("klein4b",)),
        ("txt_mlp_2", 12288, "flux2_klein_4b", ("flux", "chroma")),
    ],
)
def test_the_metadata_decide_where_klein_has_the_layers_of_flux_1(
    tmp_path: Path, layer: str, width: int, stated: str, expected: tuple[str, ...]
) -> None:
    metadata = {"ss_base_model_version": stated} if stated else None
    name = f"lora_unet_double_blocks_0_{layer}"
    found = described(tmp_path / "x.safetensors", [name], KOHYA, width, 3072, metadata)
    assert found.families == expected


def test_what_all_webuis_make_of_a_file_is_one_line(tmp_path: Path) -> None:
    def lines(names: list[str], width: int) -> list[str]:
        text = described(tmp_path / "x.safetensors", names, KOHYA, width).to_text()
        return [
            line.removeprefix("WebUIs:").strip()
            for line in text.splitlines()
            if line.startswith("WebUIs:")
        ]

    known = [
        f"lora_unet_down_blocks_1_attentions_{index}_transformer_blocks_0_attn2_to_k"
        for index in range(2)
    ]
    onetrainer = [
        f"unet.input_blocks.4.1.transformer_blocks.{index}.attn1.to_q" for index in range(3)
    ]
    assert lines(known, 768) == ["A1111, Forge and Forge Neo load all its layers."]
    assert lines(onetrainer, 640) == ["A1111, Forge and Forge Neo load none of its 3 layers."]


def test_whatever_is_said_of_a_webui_can_be_said_of_all() -> None:
    source = Path(describe_module.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'"(\{host\} [^"]*)"', source)) == set(describe_module.TOGETHER)


@pytest.mark.parametrize("kind", FILES)
def test_each_layout_is_known_by_name_and_what_each_webui_makes_of_it(
    kind: str, tmp_path: Path
) -> None:
    names, ends, width, layout, families, hosts = FILES[kind]
    if kind == "diffusers, first":
        tensors = {
            f"{names[0]}.down.weight": torch.ones(1, width),
            f"{names[0]}.up.weight": torch.ones(8, 1),
        }
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
        found = describe(tmp_path / "x.safetensors")
    else:
        found = described(tmp_path / "x.safetensors", names, ends, width)
    assert (found.names, found.families) == (layout, families)
    with pytest.raises(CheckpointError, match="is a LoRA, not a checkpoint"):
        detect_file(tmp_path / "x.safetensors")
    if hosts is not None:
        assert [str(host) for host in found.hosts] == [
            f"{name} {told}"
            for name, told in zip(("A1111", "Forge", "Forge Neo"), hosts, strict=True)
        ]


def test_metadata_decides_between_models_with_the_same_layers(tmp_path: Path) -> None:
    names = ["lora_unet_double_blocks_0_img_attn_qkv"]
    assert described(tmp_path / "x.safetensors", names, KOHYA, 3072).families == ("flux", "chroma")
    found = described(
        tmp_path / "x.safetensors",
        names,
        KOHYA,
        3072,
        metadata={"modelspec.architecture": "chroma/lora"},
    )
    assert (found.family, found.family_source) == ("chroma", "metadata")
    # what is said does not count against what is there
    assert described(
        tmp_path / "x.safetensors",
        names,
        KOHYA,
        3072,
        metadata={"ss_base_model_version": "sdxl_base_v1-0"},
    ).families == ("flux", "chroma")


@pytest.mark.parametrize(
    ("tensors", "width"),
    [
        (
            {
                "hada_w1_a": (8, 2),
                "hada_w1_b": (2, 2048),
                "hada_w2_a": (8, 2),
                "hada_w2_b": (2, 2048),
            },
            2048,
        ),
        ({"lokr_w1": (8, 8), "lokr_w2_a": (80, 8), "lokr_w2_b": (8, 256)}, 2048),
        ({"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 8), "lokr_w2": (80, 256)}, 2048),
        ({"diff": (8, 2048)}, 2048),
    ],
)
def test_the_family_of_lycoris_files_is_read_from_the_width_of_the_text(
    tensors: dict[str, tuple[int, int]], width: int, tmp_path: Path
) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    safetensors.torch.save_file(
        {f"{name}.{end}": torch.ones(shape) for end, shape in tensors.items()},
        tmp_path / "x.safetensors",
    )
    found = describe(tmp_path / "x.safetensors")
    assert (found.family, found.family_source) == ("sdxl", f"text states of {width} numbers")


REAL = [
    f"lora_unet_{block}_attentions_{index}_transformer_blocks_0_{attention}_to_k"
    for attention in ("attn2", "attn1")
    for block, count in [*((f"down_blocks_{n}", 2) for n in range(3)), ("mid_block", 1)]
    for index in range(count)
] + [
    f"lora_unet_up_blocks_{block}_attentions_{index}_transformer_blocks_0_attn1_to_k"
    for block in (1, 2, 3)
    for index in range(3)
]
"""Layers that SD1 has."""


def test_forge_passes_over_a_file_of_which_it_does_not_know_more_than_twelve_keys(
    tmp_path: Path,
) -> None:
    known = REAL[:20]
    strange = [
        f"unet.down_blocks.{index}.attentions.0.transformer_blocks.0.attn1.to_k"
        for index in range(7)
    ]
    hosts = [
        str(host)
        for host in described(tmp_path / "x.safetensors", known + strange, KOHYA, 768).hosts
    ]
    assert hosts == [
        "A1111 loads 20 of its 27 layers.",
        "Forge does not know 14 of its 54 keys, and ignores the whole file.",
        "Forge Neo loads 20 of its 27 layers.",
    ]


@pytest.mark.parametrize(
    ("strange_count", "line"),
    [
        (20, "Forge Neo loads 20 of its 40 layers."),
        (21, "Forge Neo does not know 42 of its 82 keys, and ignores the whole file."),
    ],
)
def test_forge_neo_passes_over_a_file_of_which_it_does_not_know_more_than_half(
    tmp_path: Path, strange_count: int, line: str
) -> None:
    known = REAL[:20]
    strange = [
        f"unet.down_blocks.{index}.attentions.0.transformer_blocks.0.attn1.to_k"
        for index in range(strange_count)
    ]
    found = described(tmp_path / "x.safetensors", known + strange, KOHYA, 768)
    assert str(found.hosts[-1]) == line


@pytest.mark.parametrize(
    ("key", "name", "role"),
    [
        ("a.b.lora_A.default.weight", "a.b", "down"),
        ("a.b.lora_B.my_style.weight", "a.b", "up"),
        ("a.b.lora_magnitude_vector", "a.b", "magnitude"),
        ("a.processor.to_q_lora.up.weight", "a.processor.to_q", "up"),
        ("a.to_out.0.lora_linear_layer.down.weight", "a.to_out.0", "down"),
        ("a.oft_R.weight", "a", "blocks"),
        ("a.alpha", "a", "alpha"),
    ],
)
def test_a_key_is_a_layer_and_what_stands_behind_it(key: str, name: str, role: str) -> None:
    parsed = split_key(key)
    assert parsed is not None
    assert (parsed[0], parsed[2].role) == (name, role)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "alpha",
        ".alpha.x",
        "model.layers.0.q_proj.bias",
        "a" * 1000 + ".alpha",
        "bundle_emb.x.clip_l",
    ],
)
def test_other_keys_are_nobodys(key: str) -> None:
    assert split_key(key) is None
