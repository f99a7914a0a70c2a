"""The names of tensors in WebUI files, against what real files hold."""

from __future__ import annotations

import pytest

from lora_trainer.checkpoint.names import (
    Stored,
    TextEncoderLayout,
    rename,
    stored_in_text_encoder,
    stored_in_unet,
    stored_in_vae,
    unet_modules,
    vae_modules,
)
from tests.checkpoint.samples import FAMILIES, FULL_UNETS, full_models, full_shapes, layouts

UNET = "model.diffusion_model."
VAE = "first_stage_model."


@pytest.mark.parametrize(
    ("family", "unet", "vae", "text"),
    [("sd1", 686, 248, [196]), ("sd2", 686, 248, [292]), ("sdxl", 1680, 248, [196, 389])],
)
def test_full_size_checkpoints_have_as_many_tensors_as_the_published_ones(
    family: str, unet: int, vae: int, text: list[int]
) -> None:
    """UNet and VAE: the whole state dicts of CompVis' and Stability's own modules. SD2's text
    encoder: without the unused text_projection.
    """
    shapes = full_shapes(family)
    assert sum(name.startswith(UNET) for name in shapes) == unet
    assert sum(name.startswith(VAE) for name in shapes) == vae
    assert [
        sum(name.startswith(layout.prefix) for name in shapes) for layout in layouts(family)
    ] == text


KNOWN_SHAPES = {
    "sd1": {
        UNET + "time_embed.0.weight": (1280, 320),
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        UNET + "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        UNET + "input_blocks.3.0.op.bias": (320,),
        UNET + "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        UNET + "input_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        UNET + "input_blocks.10.0.emb_layers.1.weight": (1280, 1280),
        UNET + "middle_block.1.norm.weight": (1280,),
        UNET + "middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.8.0.in_layers.0.weight": (960,),
        UNET + "output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": (320, 768),
        UNET + "out.2.weight": (4, 320, 3, 3),
        VAE + "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        VAE + "encoder.down.2.downsample.conv.bias": (512,),
        VAE + "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        VAE + "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        VAE + "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        VAE + "decoder.mid.block_2.norm1.weight": (512,),
        VAE + "quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072),
    },
    "sd2": {
        UNET + "input_blocks.1.1.proj_in.weight": (320, 320),
        UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias": (1024,),
    },
    "sdxl": {
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        UNET + "input_blocks.8.1.transformer_blocks.9.norm3.bias": (1280,),
        UNET + "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.5.1.transformer_blocks.1.attn1.to_v.weight": (640, 640),
        UNET + "output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias": (3840,),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_well_known_tensors_are_there_in_their_shapes(family: str) -> None:
    shapes = full_shapes(family)
    assert {name: shapes.get(name) for name in KNOWN_SHAPES[family]} == KNOWN_SHAPES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_tensors_share_a_place(family: str) -> None:
    unet, vae, encoders = full_models(family)
    modules, vae_names = unet_modules(unet.config), vae_modules(vae.config)
    places = [stored_in_unet(name, modules) for name in unet.state_dict()]
    places += [stored_in_vae(name, vae_names) for name in vae.state_dict()]
    places += [
        stored_in_text_encoder(name, layout)
        for encoder, layout in zip(encoders, layouts(family), strict=True)
        for name in encoder.state_dict()
    ]
    assert len(set(places)) == len(places)


def test_modules_have_the_sgm_names_that_kohya_writes_for_sdxl() -> None:
    unet, _, _ = full_models("sdxl")
    modules = unet_modules(unet.config)
    assert (
        rename("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", modules)
        == "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    )
    assert rename("mid_block.attentions.0.proj_in", modules) == "middle_block.1.proj_in"
    assert rename("up_blocks.1.attentions.2.proj_out", modules) == "output_blocks.5.1.proj_out"
    assert rename("down_blocks.0.resnets.1.conv2", modules) == "input_blocks.2.0.out_layers.3"
    assert FULL_UNETS["sdxl"]["transformer_layers_per_block"] == (1, 2, 10)


def test_a_text_encoders_tensors_are_found_in_both_styles() -> None:
    clip, open_clip = (
        TextEncoderLayout("a.text_model.", "clip"),
        TextEncoderLayout("b.", "open_clip"),
    )
    layer = "text_model.encoder.layers.3."
    assert stored_in_text_encoder(layer + "self_attn.k_proj.weight", clip) == Stored(
        "a.text_model.encoder.layers.3.self_attn.k_proj.weight"
    )
    assert stored_in_text_encoder(layer + "self_attn.k_proj.weight", open_clip) == Stored(
        "b.transformer.resblocks.3.attn.in_proj_weight", third=1
    )
    assert stored_in_text_encoder(layer + "self_attn.v_proj.bias", open_clip) == Stored(
        "b.transformer.resblocks.3.attn.in_proj_bias", third=2
    )
    assert stored_in_text_encoder(layer + "layer_norm2.bias", open_clip) == Stored(
        "b.transformer.resblocks.3.ln_2.bias"
    )
    assert stored_in_text_encoder("text_projection.weight", open_clip) == Stored(
        "b.text_projection", form="transposed"
    )


def test_old_diffusers_names_of_vae_attention_are_found() -> None:
    name, old = (
        "encoder.mid_block.attentions.0.to_out.0.weight",
        "encoder.mid_block.attentions.0.proj_attn.weight",
    )
    for held in (name, old):
        assert stored_in_vae(name, {}, prefix="", tensor_names={held}) == Stored(
            held, form="1x1 convolution"
        )


def test_a_weight_that_the_vae_lacks_is_called_as_its_others_are() -> None:
    name, modules = (
        "encoder.mid_block.attentions.0.to_q.bias",
        vae_modules({"block_out_channels": (8, 8), "layers_per_block": 1}),
    )
    assert stored_in_vae(name, modules).name == "first_stage_model.encoder.mid.attn_1.q.bias"
    assert (
        stored_in_vae(
            name, modules, prefix="", tensor_names={"encoder.down_blocks.0.resnets.0.conv1.weight"}
        ).name
        == name
    )


def test_a_name_without_known_beginning_is_an_error() -> None:
    assert rename("a.b.c", {"a": "x", "a.b": "y"}) == "y.c"
    with pytest.raises(KeyError):
        rename("motion_modules.0.weight", {"a": "x"})
