"""Tiny real models of each family: the true architectures at a few channels, random weights from a
seed, built in well under a second.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer import families
from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.families.base import TextStates

VOCABULARY = 49408
WIDTH = 32


def tiny_unet(family: str) -> UNet2DConditionModel:
    """SD1: 8 heads everywhere, 1x1-conv projections. SD2 and SDXL: heads of 64 channels (at least
    one head), linear projections.
    """
    common: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
    if family == "sdxl":
        return UNet2DConditionModel(
            **common,
            block_out_channels=(WIDTH, 2 * WIDTH, 4 * WIDTH),
            attention_head_dim=(1, 1, 2),
            use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=WIDTH + 64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 64,
        )
    heads = (8, 8, 8, 8) if family == "sd1" else (1, 1, 2, 2)
    return UNet2DConditionModel(
        **common,
        block_out_channels=(WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH),
        attention_head_dim=heads,
        use_linear_projection=family == "sd2",
        down_block_types=(
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        cross_attention_dim=WIDTH if family == "sd1" else 64,
    )


def tiny_vae(family: str) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=16,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )


def tiny_text_config(
    hidden: int, layers: int, act: str, projection: int | None = None
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=projection or hidden,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407 if act == "quick_gelu" else 0,
    )


def tiny_text_encoders(family: str) -> tuple[Any, ...]:
    """CLIP-L for SD1, OpenCLIP-H (penultimate layer) for SD2, both CLIP-L and OpenCLIP bigG for
    SDXL.
    """
    if family == "sd1":
        return (CLIPTextModel(tiny_text_config(WIDTH, 3, "quick_gelu")),)
    if family == "sd2":
        return (CLIPTextModel(tiny_text_config(64, 3, "gelu")),)
    return (
        CLIPTextModel(tiny_text_config(WIDTH, 3, "quick_gelu")),
        CLIPTextModelWithProjection(tiny_text_config(64, 3, "gelu", projection=64)),
    )


def encode_captions(
    parts: Parts, captions: list[str], *, clip_skip: int = 1, max_token_length: int = 75
) -> TextStates:
    """Captions as the parts' family encodes them, at the usual settings."""
    return parts.family.encode_captions(
        parts, captions, clip_skip=clip_skip, max_token_length=max_token_length
    )


def tiny_parts(
    family: str, seed: int = 0, prediction_type: str = "epsilon", tokenizers: tuple[Any, ...] = ()
) -> Parts:
    """A whole tiny checkpoint in memory, float32, eval mode."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    parts = Parts(
        family=families.get(family),
        schedule=NoiseSchedule(prediction_type=prediction_type),
        unet=tiny_unet(family).eval(),
        vae=tiny_vae(family).eval(),  # type: ignore[arg-type]
        text_encoders=tuple(encoder.eval() for encoder in tiny_text_encoders(family)),
        tokenizers=tokenizers,
    )
    torch.random.set_rng_state(generator_state)
    return parts


def small_parts(seed: int = 0, tokenizers: tuple[Any, ...] = ()) -> Parts:
    """An SD1 of fewer levels and layers, as pruned ones are: what a run does around its models
    takes as long, what it does with them a third.
    """
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(WIDTH, 2 * WIDTH),
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    parts = Parts(
        family=families.get("sd1"),
        schedule=NoiseSchedule(),
        unet=unet.eval(),
        vae=vae.eval(),  # type: ignore[arg-type]
        text_encoders=tuple(encoder.eval() for encoder in tiny_text_encoders("sd1")),
        tokenizers=tokenizers,
    )
    torch.random.set_rng_state(generator_state)
    return parts
