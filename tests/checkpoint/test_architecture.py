"""Configurations drawn from names and shapes, against the published ones."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_trainer import families
from lora_trainer.checkpoint import names
from lora_trainer.checkpoint.architecture import (
    normalisation_groups,
    text_encoder_config,
    unet_config,
    vae_config,
)
from lora_trainer.checkpoint.names import TextEncoderLayout
from lora_trainer.errors import CheckpointError
from lora_trainer.families.sdxl import SDXL
from lora_trainer.families.stable_diffusion import SD1, SD2
from tests.checkpoint.samples import (
    FAMILIES,
    FULL_TEXT_ENCODERS,
    full_shapes,
    header_of,
    layouts,
)

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def headers() -> dict:
    return {family: header_of(full_shapes(family)) for family in FAMILIES}


def test_the_unet_of_sd1(headers: dict) -> None:
    assert unet_config(headers["sd1"], SD1) == {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [8, 8, 8, 8],
        "cross_attention_dim": 768,
        "use_linear_projection": False,
        "norm_num_groups": 32,
        "upcast_attention": False,
        "sample_size": 64,
        "transformer_layers_per_block": [1, 1, 1, 1],
    }


def test_the_unet_of_sd2_has_heads_of_64_channels_and_linear_projections(headers: dict) -> None:
    config = unet_config(headers["sd2"], SD2)
    assert (
        config["attention_head_dim"],
        config["use_linear_projection"],
        config["cross_attention_dim"],
    ) == ([5, 10, 20, 20], True, 1024)


def test_the_unet_of_sdxl(headers: dict) -> None:
    config = unet_config(headers["sdxl"], SDXL, pooled_width=1280)
    assert config["block_out_channels"] == [320, 640, 1280]
    assert config["down_block_types"] == [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    ]
    assert config["transformer_layers_per_block"] == [1, 2, 10]
    assert config["attention_head_dim"] == [5, 10, 20]
    assert (
        config["addition_embed_type"],
        config["addition_time_embed_dim"],
        config["projection_class_embeddings_input_dim"],
    ) == (
        "text_time",
        256,
        2816,
    )
    assert "reverse_transformer_layers_per_block" not in config


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vae_of_each_family(headers: dict, family: str) -> None:
    config = vae_config(headers[family], families.get(family))
    assert (
        config["block_out_channels"],
        config["layers_per_block"],
        config["latent_channels"],
    ) == ([128, 256, 512, 512], 2, 4)
    assert config["scaling_factor"] == {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_encoders_of_each_family(headers: dict, family: str) -> None:
    for layout, published in zip(layouts(family), FULL_TEXT_ENCODERS[family], strict=True):
        config = text_encoder_config(headers[family], layout, last_layer_unused=family == "sd2")
        assert config.items() >= published.items()
        assert config["num_attention_heads"] == published["hidden_size"] // 64
        assert config["hidden_act"] == ("quick_gelu" if layout.style == "clip" else "gelu")
        assert config["max_position_embeddings"] == 77


def test_a_distilled_unet_with_thinned_out_attention_is_described_layer_by_layer() -> None:
    """SSD-1B's published configuration."""
    published = {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**published)
        modules = names.unet_modules(unet.config)
        header = header_of(
            {
                names.stored_in_unet(name, modules).name: tuple(tensor.shape)
                for name, tensor in unet.state_dict().items()
            }
        )
        config = unet_config(header, SDXL, pooled_width=1280)
        rebuilt = UNet2DConditionModel.from_config(config)
    assert config["transformer_layers_per_block"] == [1, 2, 4]
    assert config["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]
    assert config["mid_block_type"] == "UNetMidBlock2D"
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
        name: tensor.shape for name, tensor in unet.state_dict().items()
    }


def test_a_narrow_shallow_unet_is_described_by_what_it_has() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(64, 96),
            layers_per_block=1,
            cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        )
    modules = names.unet_modules(unet.config)
    header = header_of(
        {
            names.stored_in_unet(name, modules).name: tuple(tensor.shape)
            for name, tensor in unet.state_dict().items()
        }
    )
    config = unet_config(header, SD1)
    assert (
        config["block_out_channels"],
        config["layers_per_block"],
        config["cross_attention_dim"],
    ) == ([64, 96], 1, 64)
    assert (config["down_block_types"], config["up_block_types"]) == (
        ["CrossAttnDownBlock2D"] * 2,
        ["CrossAttnUpBlock2D"] * 2,
    )
    assert config["norm_num_groups"] == 32


@pytest.mark.parametrize(
    ("channels", "groups"),
    [([320, 640, 1280], 32), ([64, 128, 192], 32), ([16, 16, 32], 16), ([24, 48], 8), ([30], 2)],
)
def test_normalisation_has_32_groups_or_the_largest_power_of_two_that_fits(
    channels: list[int], groups: int
) -> None:
    assert normalisation_groups(channels) == groups


def test_what_the_file_lacks_is_named(headers: dict) -> None:
    tensors = dict(headers["sd1"].tensors)
    del tensors[UNET + "out.2.weight"]
    with pytest.raises(
        CheckpointError, match=r"model.safetensors has no weight model.diffusion_model.out.2.weight"
    ):
        unet_config(header_of({name: info.shape for name, info in tensors.items()}), "sd1")


def test_a_vae_with_16_latent_channels_is_refused() -> None:
    shapes = {
        name: shape
        for name, shape in full_shapes("sd1").items()
        if name.startswith("first_stage_model.")
    }
    shapes["first_stage_model.decoder.conv_in.weight"] = (512, 16, 3, 3)
    with pytest.raises(CheckpointError, match="has 16 latent channels instead of 4"):
        vae_config(header_of(shapes), SD1)


def test_a_text_encoder_with_another_vocabulary_is_refused(headers: dict) -> None:
    shapes = {name: info.shape for name, info in headers["sd1"].tensors.items()}
    prefix = "cond_stage_model.transformer.text_model."
    shapes[prefix + "embeddings.token_embedding.weight"] = (32000, 768)
    with pytest.raises(CheckpointError, match="knows 32000 tokens instead of 49408"):
        text_encoder_config(
            header_of(shapes), TextEncoderLayout(prefix, "clip"), last_layer_unused=False
        )


def test_an_sdxl_unet_that_does_not_fit_its_text_encoder_is_refused(headers: dict) -> None:
    with pytest.raises(
        CheckpointError, match="its size conditioning does not fit its text encoder"
    ):
        unet_config(headers["sdxl"], SDXL, pooled_width=1024 + 1)


@pytest.mark.parametrize("shape", [(), (0,), (320,), (0, 0), (4, 0, 3, 3), (1, 1, 1, 1, 320)])
@pytest.mark.parametrize(
    "name",
    [
        UNET + "out.2.weight",
        UNET + "label_emb.0.0.weight",
        UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        UNET + "input_blocks.1.0.out_layers.3.weight",
        "first_stage_model.decoder.conv_in.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    ],
)
def test_weights_of_impossible_shapes_give_a_configuration_or_a_sentence(
    headers: dict, name: str, shape: tuple[int, ...]
) -> None:
    whole = headers["sdxl"]
    header = header_of({**{key: info.shape for key, info in whole.tensors.items()}, name: shape})
    for draw in (
        lambda: unet_config(header, SDXL, pooled_width=1280),
        lambda: vae_config(header, SDXL),
        *(
            lambda layout=layout: text_encoder_config(header, layout, last_layer_unused=False)
            for layout in layouts("sdxl")
        ),
    ):
        try:
            assert draw()
        except CheckpointError as error:
            assert (
                name in str(error)
                or "is built in a way that is not supported" in str(error)
                or "tokens" in str(error)
                or "latent" in str(error)
            )
