"""What every family promises (tests/families/promises.py), of those that need the newer
libraries.
"""

from __future__ import annotations

import pytest
from diffusers import Flux2Transformer2DModel, ZImageTransformer2DModel

from lora_trainer.families import anima, flux2
from lora_trainer.families.components.anima import build_transformer
from tests.families.promises import *  # noqa: F403
from tests.families.promises import Member
from tests.newer import tiny_anima, tiny_flux2, tiny_z_image

ANIMA = Member(
    family="anima",
    written=tiny_anima.written,
    write=tiny_anima.write,
    tensors=tiny_anima.tensors,
    transformer=lambda: tiny_anima.models_of()["transformer"],
    prefix="net.",
    prefixes=anima.PREFIXES,
    diffusers_prefixes=(),
    has_vae=False,
    wide="blocks.0.mlp.layer1.weight",
    part=(
        "text_encoder/qwen_3_06b_base.safetensors",
        r"Qwen3-0.6B \(qwen_3_06b_base.safetensors",
    ),
    learns={"max_train_steps": 20, "learning_rate": 1.5e-2, "lora_rank": 16},
    layers=2 * 10,
    grows=0.1,
    latents=(16, 8, 8),
    words=("anima", "anima/lora", "anima"),
    savings=(
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "base_precision": "int8", "vae_tiling": True},
    ),
    full=lambda: build_transformer(tiny_anima.FULL),
    full_layers=(280, 280),
)
Z_IMAGE = Member(
    family="zimage",
    written=tiny_z_image.written,
    write=tiny_z_image.write,
    tensors=tiny_z_image.tensors,
    transformer=lambda: tiny_z_image.models_of()["transformer"],
    wide="layers.0.attention.qkv.weight",
    part=("text_encoder/qwen_3_4b.safetensors", r"Qwen3-4B \(qwen_3_4b.safetensors"),
    learns={"max_train_steps": 60, "learning_rate": 5e-3, "lora_rank": 8},
    # qkv, out and three of the MLP in four blocks
    layers=4 * 5,
    grows=0.1,
    close=1e-4,
    latents=(16, 8, 8),
    words=("zimage", "z-image/lora", "zit"),
    savings=(
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "base_precision": "int8"},
    ),
    full=ZImageTransformer2DModel,
    full_layers=(34 * 7, 34 * 5),
)


KLEIN = Member(
    family="klein4b",
    written=tiny_flux2.written,
    write=tiny_flux2.write,
    tensors=tiny_flux2.tensors,
    transformer=lambda: tiny_flux2.models_of()["transformer"],
    wide="single_blocks.0.linear1.weight",
    part=("text_encoder/qwen_3_4b.safetensors", r"Qwen3-4B \(qwen_3_4b.safetensors"),
    learns={"max_train_steps": 60, "learning_rate": 1e-2, "lora_rank": 16},
    layers=8 + 2 * 2,
    grows=0.01,
    latents=(128, 4, 4),
    words=("flux2_klein_4b", "flux-2-klein-4b/lora", "klein"),
    savings=(
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "blocks_to_swap": 3},
        {"mixed_precision": "bf16", "base_precision": "int8", "vae_tiling": True},
    ),
    shorter=(flux2, 48),
    full=lambda: Flux2Transformer2DModel(**tiny_flux2.FULL["4B"]),
    # in a double block qkv, proj and two of the MLP, twice; in a single one linear1 and linear2
    full_layers=(5 * 12 + 20 * 2, 5 * 8 + 20 * 2),
)


@pytest.fixture(params=[ANIMA, Z_IMAGE, KLEIN], ids=lambda member: member.family)
def member(request):
    return request.param
