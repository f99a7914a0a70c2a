from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.export import export, export_diffusers
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import EMBEDDED
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.describe import describe
from lora_trainer.lora.metadata import build
from lora_trainer.lora.names import base_layers, diffusers_names
from lora_trainer.settings.training import LoraSettings
from tests.adapters.test_export import FEW
from tests.adapters.test_injected import fill
from tests.checkpoint.samples import safetensors_bytes
from tests.checkpoint.test_header import mutated
from tests.lora.test_metadata import config, facts
from tests.tiny import tiny_parts

UNET = "lora_unet_mid_block_attentions_0_proj_in"


def save(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    safetensors.torch.save_file(tensors, path, metadata)
    return path


def layer(
    name: str, down: torch.Tensor, up: torch.Tensor, alpha: float | None = None
) -> dict[str, torch.Tensor]:
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def test_our_own_file_is_described_in_full(tmp_path: Path) -> None:
    parts = tiny_parts("sd1")
    adapters = add_adapters(parts, LoraSettings(**FEW), seed=0)
    fill(adapters)
    settings = config(
        lora_rank=4,
        lora_alpha=2.7,
        trigger_word="sks cat",
        author="Ann",
        license="CC-BY-4.0",
        description="A cat.\nUse it at 0.7.",
        training_comment="My own photographs",
    )
    export(adapters, parts, tmp_path / "my cat.safetensors", build(facts(settings)))
    size = (tmp_path / "my cat.safetensors").stat().st_size
    found = describe(tmp_path / "my cat.safetensors", base_layers(parts))
    unet, text = found.parts["unet"].effect, found.parts["text_encoder"].effect
    assert found.to_text().splitlines() == [
        f"file:            {tmp_path / 'my cat.safetensors'} ({size / 1e6:.2f} MB)",
        "title:           my_cat",
        "description:     A cat. Use it at 0.7.",
        "author:          Ann",
        "licence:         CC-BY-4.0",
        "image credits:   My own photographs",
        "kind:            LoRA, kohya names of diffusers' layers",
        "family:          SD1 (metadata)",
        f"UNet:            48 layers, typical change of a weight {unet:.2e}",
        f"text encoder:    6 layers, typical change of a weight {text:.2e}",
        f"parameters:      {adapters.parameter_count:,} in F16",
        "rank:            4",
        "alpha:           2.7",
        "scale:           0.675 = alpha / rank",
        "trigger:         sks cat",
        "trained:         60 steps, 2 epochs",
        "base model:      雪 v1.5.safetensors",
        "images:          3",
        "resolution:      512x512, 448x576",
        "unmatched:       none: every layer fits the base model",
        "WebUIs:          A1111, Forge and Forge Neo load all its layers.",
    ]
    values = json.loads(found.to_json())
    assert (
        values["family"],
        values["ranks"],
        values["alphas"],
        values["module_count"],
        values["does_nothing"],
    ) == ("sd1", [4], [2.7], 54, False)
    assert (values["unmatched"], values["misshapen"], values["notes"], values["image_count"]) == (
        [],
        [],
        [],
        3,
    )


def test_the_effect_is_the_root_mean_square_of_the_merged_change(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 20, generator=generator), torch.randn(30, 3, generator=generator)
    path = save(
        tmp_path / "x.safetensors", layer("lora_unet_mid_block_attentions_0_proj_in", down, up, 1.5)
    )
    assert describe(path).parts["unet"].effect == pytest.approx(
        float((0.5 * up @ down).pow(2).mean().sqrt()), rel=1e-5
    )


def test_no_alpha_means_the_rank(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.safetensors",
        layer("lora_unet_mid_block_attentions_0_proj_in", torch.ones(2, 5), torch.ones(5, 2)),
    )
    found = describe(path)
    assert (found.ranks, found.alphas, found.scales, found.parts["unet"].effect) == (
        (2,),
        (),
        (1.0,),
        pytest.approx(2.0),
    )
    assert "alpha:           none (same as the rank)" in found.to_text()
    assert "There is no metadata: A1111 cannot tell its family." in found.to_text()


def test_a_lora_that_does_nothing_shows(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.safetensors",
        layer("lora_unet_mid_block_attentions_0_proj_in", torch.ones(2, 5), torch.zeros(5, 2), 1),
    )
    found = describe(path)
    assert found.does_nothing
    assert "All its weights are zero: it changes nothing." in found.to_text()
    assert (
        "1 layer, typical change of a weight 0.00e+00, 1 of them without effect" in found.to_text()
    )


def test_a_lora_with_nan_shows(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.safetensors",
        layer(
            "lora_unet_mid_block_attentions_0_proj_in",
            torch.ones(2, 5),
            torch.full((5, 2), float("nan")),
            1,
        ),
    )
    found = describe(path)
    assert "Some weights are NaN or infinite" in found.to_text() and json.loads(found.to_json())


def test_a_lora_of_another_base_shows_what_does_not_match(tmp_path: Path) -> None:
    parts, path = tiny_parts("sd1"), tmp_path / "x.safetensors"
    good = layer(
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        torch.ones(2, 32),
        torch.ones(128, 2),
    )
    wide = layer(
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k",
        torch.ones(2, 64),
        torch.ones(128, 2),
    )
    lost = layer(
        "lora_te2_text_model_encoder_layers_0_mlp_fc1", torch.ones(2, 64), torch.ones(128, 2)
    )
    found = describe(
        save(path, {**good, **wide, **lost}, {"ss_base_model_version": "sd_v1"}), base_layers(parts)
    )
    assert found.unmatched == ("lora_te2_text_model_encoder_layers_0_mlp_fc1",)
    assert found.misshapen == ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k",)
    assert "1 of 3 layers match nothing in this base model" in found.to_text()


def test_a_layer_of_another_shape_is_not_said_to_fit(tmp_path: Path) -> None:
    wide = layer(
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k",
        torch.ones(2, 64),
        torch.ones(128, 2),
    )
    text = describe(
        save(tmp_path / "x.safetensors", wide), base_layers(tiny_parts("sd1"))
    ).to_text()
    assert "misshapen:       1 layer:" in text and "fits the base model" not in text


def test_sdxl_matches_under_both_of_its_names(tmp_path: Path) -> None:
    names = ("lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_input_blocks_4_1_proj_out")
    tensors = {
        key: tensor
        for name in names
        for key, tensor in layer(name, torch.ones(2, 64), torch.ones(64, 2)).items()
    }
    found = describe(save(tmp_path / "x.safetensors", tensors), base_layers(tiny_parts("sdxl")))
    assert (found.unmatched, found.misshapen) == ((), ())


@pytest.mark.parametrize(
    ("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (640, None)]
)
def test_without_metadata_the_family_is_read_from_the_width_of_the_text(
    width: int, family: str | None, tmp_path: Path
) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    assert (
        describe(
            save(tmp_path / "x.safetensors", layer(name, torch.ones(2, width), torch.ones(5, 2)))
        ).family
        == family
    )


def test_an_sdxl_lora_that_a1111_would_hide_is_told(tmp_path: Path) -> None:
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    path = save(
        tmp_path / "x.safetensors",
        layer(name, torch.ones(2, 5), torch.ones(5, 2)),
        {"format": "pt"},
    )
    assert (
        "A1111 takes it for SD1 and hides it while an SDXL model is loaded"
        in describe(path).to_text()
    )


def test_diffusers_form_is_understood_and_warned_about(tmp_path: Path) -> None:
    parts = tiny_parts("sdxl")
    adapters = add_adapters(parts, LoraSettings(**FEW), seed=0)
    fill(adapters)
    export_diffusers(adapters, parts, tmp_path / "x.safetensors", build(facts(family="sdxl")))
    found = describe(tmp_path / "x.safetensors")
    assert (found.names, found.family, found.ranks) == ("diffusers", "sdxl", (4,))
    assert {part: description.module_count for part, description in found.parts.items()} == {
        "unet": 67,
        "text_encoder": 6,
        "text_encoder_2": 6,
    }
    # diffusers' projections have the names that Forge looks for, its attention has not
    assert [str(host) for host in found.hosts] == [
        "A1111 loads none of its 79 layers.",
        "Forge does not know 112 of its 158 keys, and ignores the whole file.",
        "Forge Neo does not know 112 of its 158 keys, and ignores the whole file.",
    ]
    # the scale is in the weights
    assert (found.scales, found.alphas) == ((1.0,), ())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_our_own_diffusers_file_fits_its_own_base(family: str, tmp_path: Path) -> None:
    parts = tiny_parts(family)
    adapters = add_adapters(parts, LoraSettings(**FEW), seed=0)
    export_diffusers(adapters, parts, tmp_path / "x.safetensors", build(facts(family=family)))
    found = describe(tmp_path / "x.safetensors", base_layers(parts))
    assert (found.unmatched, found.misshapen) == ((), ())
    assert "unmatched:       none: every layer fits the base model" in found.to_text()


def test_a_base_whose_blocks_are_one_layer_deep_has_a_place_for_each_of_its_own_layers(
    tmp_path: Path,
) -> None:
    # a name of the usual depth may be another layer's here
    base = open_checkpoint(EMBEDDED).outline()
    names = diffusers_names(base)
    tensors = {f"{name}.lora_A.weight": torch.ones(1, *shape[1:]) for name, shape in names.items()}
    tensors |= {
        f"{name}.lora_B.weight": torch.ones(shape[0], 1, *(1 for _ in shape[2:]))
        for name, shape in names.items()
    }
    found = describe(save(tmp_path / "x.safetensors", tensors), base_layers(base))
    assert (found.unmatched, found.misshapen, found.module_count) == ((), (), len(names))


def test_older_names_of_diffusers_are_understood(tmp_path: Path) -> None:
    tensors = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (
            torch.ones(2, 768)
        ),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight": (
            torch.ones(9, 2)
        ),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": (
            torch.ones(2, 9)
        ),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
            torch.ones(9, 2)
        ),
    }
    found = describe(save(tmp_path / "x.safetensors", tensors))
    assert (found.names, found.family, found.ranks, found.module_count) == (
        "diffusers (older)",
        "sd1",
        (2,),
        2,
    )


def test_a_language_models_lora_is_told(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    path = save(
        tmp_path / "x.safetensors",
        {f"{name}.lora_A.weight": torch.ones(2, 9), f"{name}.lora_B.weight": torch.ones(9, 2)},
    )
    assert "This LoRA belongs to a language model" in describe(path).to_text()


@pytest.mark.parametrize(
    ("tensors", "kind", "rank"),
    [
        (
            {
                **layer(
                    "lora_unet_mid_block_resnets_0_conv1",
                    torch.ones(2, 5, 1, 1),
                    torch.ones(5, 2, 1, 1),
                ),
                "lora_unet_mid_block_resnets_0_conv1.lora_mid.weight": torch.ones(2, 2, 3, 3),
            },
            "LoCon (LoRA with 3x3 convolutions)",
            (2,),
        ),
        ({f"{UNET}.oft_blocks": torch.ones(2, 4, 4)}, "OFT", ()),
        ({f"{UNET}.oft_blocks": torch.ones(2, 2, 4, 4)}, "BOFT", ()),
        (
            {f"{UNET}.{end}.weight": torch.ones(3, 3) for end in ("a1", "a2", "b1", "b2")},
            "GLoRA",
            (),
        ),
        ({f"{UNET}.weight": torch.ones(5), f"{UNET}.on_input": torch.tensor(1.0)}, "IA3", ()),
        ({f"{UNET}.w_norm": torch.ones(5), f"{UNET}.b_norm": torch.ones(5)}, "norms", ()),
        (
            layer(
                "lora_unet_mid_block_resnets_0_conv1",
                torch.ones(2, 5, 3, 3),
                torch.ones(5, 2, 1, 1),
            ),
            "LoCon (LoRA with 3x3 convolutions)",
            (2,),
        ),
        (
            {
                **layer(UNET, torch.ones(2, 5), torch.ones(5, 2)),
                f"{UNET}.dora_scale": torch.ones(5, 1),
            },
            "LoRA + DoRA",
            (2,),
        ),
        (
            {
                f"{UNET}.hada_w{n}_{x}": torch.ones(5, 3) if x == "a" else torch.ones(3, 5)
                for n in (1, 2)
                for x in "ab"
            },
            "LoHa",
            (3,),
        ),
        (
            {
                f"{UNET}.lokr_w1": torch.ones(2, 2),
                f"{UNET}.lokr_w2_a": torch.ones(4, 3),
                f"{UNET}.lokr_w2_b": torch.ones(3, 4),
            },
            "LoKr",
            (3,),
        ),
        ({f"{UNET}.diff": torch.ones(5, 5)}, "full difference", ()),
    ],
)
def test_kin_of_lora_are_named(
    tensors: dict[str, torch.Tensor], kind: str, rank: tuple[int, ...], tmp_path: Path
) -> None:
    found = describe(save(tmp_path / "x.safetensors", tensors))
    assert (found.kind, found.ranks) == (kind, rank)
    assert not found.does_nothing


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "is a checkpoint, not a LoRA"),
        ("first_stage_model.decoder.conv_in.weight", "is a VAE, not a LoRA"),
        ("lllite_unet_input_blocks_1_1.depth1.weight", "is a ControlNet-LLLite, not a LoRA"),
        ("single_blocks.0.norm.key_norm.scale", "holds no LoRA"),
        ("net.blocks.0.mlp.layer1.weight", "is a diffusion transformer, not a LoRA"),
        ("encoder.block.0.layer.0.SelfAttention.k.weight", "is a text encoder, not a LoRA"),
        ("control_model.input_blocks.0.0.weight", "is a ControlNet, not a LoRA"),
        ("emb_params", "is an embedding, not a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "is a diffusers UNet, not a LoRA"),
        ("something.else", "holds no LoRA: it has weights such as something.else"),
    ],
)
def test_what_is_not_a_lora_gets_a_sentence(key: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match=what):
        describe(save(tmp_path / "x.safetensors", {key: torch.ones(2)}))


def test_a_missing_file_a_pickle_and_half_a_file_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no file"):
        describe(tmp_path / "x.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(LoraFileError, match="is a pickle"):
        describe(tmp_path / "x.pt")
    path = save(tmp_path / "y.safetensors", layer(UNET, torch.ones(2, 500), torch.ones(500, 2)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoraFileError, match="is cut off"):
        describe(path)


def test_eight_bit_floats_are_measured(tmp_path: Path) -> None:
    tensors = layer(
        UNET,
        torch.full((2, 5), 0.5).to(torch.float8_e4m3fn),
        torch.ones(5, 2).to(torch.float8_e4m3fn),
        1,
    )
    found = describe(save(tmp_path / "x.safetensors", tensors))
    assert (found.dtypes, found.scales, found.parts["unet"].effect) == (
        ("F8_E4M3",),
        (0.5,),
        pytest.approx(0.5),
    )


def test_weights_of_a_type_that_nobody_reads_are_described_all_the_same(tmp_path: Path) -> None:
    entry = {
        f"{UNET}.lora_{half}.weight": {
            "dtype": "F4",
            "shape": shape,
            "data_offsets": [start, start + 5],
        }
        for half, shape, start in (("down", [2, 5], 0), ("up", [5, 2], 5))
    }
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(entry, bytes(10)))
    found = describe(tmp_path / "x.safetensors")
    assert (found.parts["unet"].effect, found.ranks) == (None, (2,))
    assert "Weights of type F4 were not measured." in found.to_text()


@pytest.mark.parametrize(
    "tensors",
    [
        {
            f"{UNET}.lora_down.weight": torch.tensor(1.0),
            f"{UNET}.lora_up.weight": torch.tensor(1.0),
        },
        {f"{UNET}.lora_down.weight": torch.ones(0, 5), f"{UNET}.lora_up.weight": torch.ones(5, 0)},
        {f"{UNET}.lora_down.weight": torch.ones(4), f"{UNET}.lora_up.weight": torch.ones(4)},
        {f"{UNET}.lora_down.weight": torch.ones(2, 5)},
        {**layer(UNET, torch.ones(2, 5), torch.ones(5, 2)), f"{UNET}.alpha": torch.ones(0)},
        layer(UNET, torch.ones(2, 5), torch.ones(5, 2), float("nan")),
        layer(UNET, torch.ones(90_000, 1), torch.ones(1, 90_000), 1),
        {f"{UNET}.lokr_w1": torch.ones(()), f"{UNET}.lokr_w2_b": torch.ones(3)},
        {f"{UNET}.hada_w1_b": torch.ones(0, 0)},
    ],
)
def test_impossible_shapes_are_described_without_a_scale_that_is_made_up(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    found = describe(save(tmp_path / "x.safetensors", tensors), base_layers(tiny_parts("sd1")))
    assert json.loads(found.to_json())["module_count"] == 1
    assert found.to_text()
    assert found.scales in (None, (), (1.0,), (1 / 90_000,))


def test_a_folder_stands_for_the_lora_in_it(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no .safetensors file in"):
        describe(tmp_path)
    tensors = layer(UNET, torch.ones(2, 5), torch.ones(5, 2))
    save(tmp_path / "style.safetensors", tensors)
    assert describe(tmp_path).path == tmp_path / "style.safetensors"
    save(tmp_path / "other.safetensors", tensors)
    with pytest.raises(LoraFileError, match="holds 2 files: other.safetensors, style.safetensors"):
        describe(tmp_path)
    save(tmp_path / "adapter_model.safetensors", tensors)
    assert describe(tmp_path).path == tmp_path / "adapter_model.safetensors"


def test_whatever_is_wrong_in_a_lora_file_it_is_described_or_told(tmp_path: Path) -> None:
    values = {
        "ss_steps": "12",
        "modelspec.resolution": "512x512",
        "ss_bucket_info": '{"buckets": {"0": {"resolution": [512, 512], "count": 3}}}',
    }
    values["lora_adapter_metadata"] = (
        '{"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"proj_in": 8}}'
    )
    tensors = {
        f"unet.mid_block.attentions.0.proj_{side}.lora_{half}.weight": torch.ones(2, 2)
        for side in ("in", "out")
        for half in "AB"
    }
    content = safetensors.torch.save(
        {**tensors, **layer(UNET, torch.ones(2, 5), torch.ones(5, 2), 1)}, values
    )
    rng, file, told, started = (
        random.Random(0),
        tmp_path / "x.safetensors",
        Counter[str](),
        time.process_time(),
    )
    base = base_layers(tiny_parts("sd1"))
    for _ in range(1000):
        file.write_bytes(mutated(content, rng))
        try:
            found = describe(file, base)
            found.to_text().encode()
            json.loads(found.to_json())
            told["described"] += 1
        except LoraFileError as error:
            told[error.message.template] += 1
    assert {"described", "the header of {path} is damaged"} <= set(told)
    assert time.process_time() - started < 30


def test_odd_metadata_does_not_disturb(tmp_path: Path) -> None:
    odd = {
        "ss_dataset_dirs": "[1]",
        "ss_bucket_info": "{",
        "ss_steps": "many",
        "ss_epoch": "inf",
        "ss_sd_model_name": "None",
    }
    odd |= {
        "ss_num_train_images": "12",
        "modelspec.resolution": "a" * 10_000,
        "lora_adapter_metadata": "[" * 10_000,
        "ss_base_model_version": "x" * 10_000,
    }
    found = describe(
        save(tmp_path / "x.safetensors", layer(UNET, torch.ones(2, 5), torch.ones(5, 2)), odd)
    )
    assert (found.image_count, found.resolutions, found.step, found.epoch, found.base_model) == (
        12,
        (),
        None,
        None,
        None,
    )
