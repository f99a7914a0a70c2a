"""What every family promises (promises.py), of FLUX.1; what a training of it comes to is in
test_flux.py.
"""

from __future__ import annotations

import pytest

from lora_trainer.families import flux
from tests.families import tiny_flux
from tests.families.promises import (  # noqa: F401
    Member,
    few_tokens,
    test_a_file_under_diffusers_names_is_the_same,
    test_a_resumed_run_equals_a_whole_one_bit_for_bit_and_files_say_what_hosts_look_for,
    test_it_is_told_by_its_tensors_whatever_they_begin_with,
    test_parts_that_are_missing_are_named,
    test_plain_fp8_is_taken_and_quantised_weights_are_named,
)


def tensors(prefix):
    state = tiny_flux.native(tiny_flux.build()["transformer"].state_dict())
    return {prefix + name: tensor for name, tensor in state.items()}


FLUX = Member(
    family="flux",
    written=tiny_flux.tiny_flux,
    write=tiny_flux.write,
    tensors=tensors,
    transformer=lambda: tiny_flux.build()["transformer"],
    diffusers_prefixes=("", "transformer."),
    has_vae=False,
    wide="double_blocks.0.img_attn.qkv.weight",
    part=("text_encoder/t5xxl_fp16.safetensors", r"T5-XXL \(t5xxl_fp16.safetensors"),
    learns={},
    layers=2 * 8 + 2 * 2,
    grows=0.001,
    latents=(16, 8, 8),
    words=("flux1", "flux-1-dev/lora", "Flux"),
    savings=(),
    shorter=(flux, 16),
)


@pytest.fixture
def member():
    return FLUX
