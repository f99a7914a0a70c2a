from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_trainer.adapters.injected import Adapters, add_adapters, matching_layers
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import ConfigError, LoraFileError
from lora_trainer.lora.names import module_names
from lora_trainer.settings.training import LoraSettings
from tests.lora.test_names import full_size_parts
from tests.tiny import small_parts, tiny_parts

BOTH = {"train_text_encoder": True}
FEW = {"target_modules": ("to_q", "proj_in"), "text_encoder_targets": ("q_proj", "fc1")}
"""A few kinds of layers, where the test does not need them all."""


def inputs(parts: Parts, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Two images' worth of noise, times, text states and, for SDXL, its conditions: always the
    same.
    """
    generator = torch.Generator().manual_seed(3)
    width = parts.unet.config.cross_attention_dim
    given: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
        "timestep": torch.tensor([5, 700]),
        "encoder_hidden_states": torch.randn(2, 7, width, generator=generator).to(dtype),
    }
    if parts.family.id == "sdxl":
        embeds, ids = (
            torch.randn(2, 64, generator=generator).to(dtype),
            torch.randint(64, 1024, (2, 6), generator=generator).to(dtype),
        )
        given["added_cond_kwargs"] = {"text_embeds": embeds, "time_ids": ids}
    return given


def predictions(parts: Parts) -> list[torch.Tensor]:
    """The predicted noise, and the states of each text encoder."""
    ids = torch.tensor([[49406, 320, 1125, 539, 49407], [49406, 4558, 2000, 7, 49407]])
    with torch.no_grad():
        noise = parts.unet(**inputs(parts, next(parts.unet.parameters()).dtype)).sample
        return [noise, *(encoder(ids).last_hidden_state for encoder in parts.text_encoders)]


def fill(adapters: Adapters, seed: int = 1, size: float = 0.1) -> None:
    """Random weights, as if something had been learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """But for a processor's rounding: a wrapped layer may be computed by another kernel than a bare
    one.
    """
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_fresh_adapter_leaves_every_output_unchanged(family: str) -> None:
    parts = tiny_parts(family)
    before = predictions(parts)
    add_adapters(parts, LoraSettings(**BOTH), seed=0)
    assert all_equal(predictions(parts), before)


@pytest.mark.parametrize(
    ("targets", "module_count", "parameter_count"),
    [
        (LoraSettings().target_modules, 192, 3_391_488),
        (("to_q", "to_k", "to_v", "to_out.0"), 128, 1_594_368),
        (("to_q", "to_v"), 64, 797_184),
    ],
)
def test_sd15_has_as_many_modules_and_parameters_as_kohyas_trainer_reports(
    targets: tuple[str, ...], module_count: int, parameter_count: int
) -> None:
    adapters = add_adapters(
        full_size_parts("sd1"), LoraSettings(target_modules=targets, lora_rank=8), seed=0
    )
    assert (adapters.module_count, adapters.parameter_count) == (module_count, parameter_count)


def test_sdxl_has_kohyas_722_modules() -> None:
    assert add_adapters(full_size_parts("sdxl"), LoraSettings(), seed=0).module_count == 722


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_are_float32_and_all_that_is_trainable(dtype: torch.dtype) -> None:
    parts = small_parts()
    parts.unet.to(dtype)
    adapters = add_adapters(parts, LoraSettings(), seed=0)
    assert {parameter.dtype for _, parameter in adapters.parameters()} == {torch.float32}
    trainable = [
        p
        for model in (parts.unet, parts.vae, *parts.text_encoders)
        for p in model.parameters()
        if p.requires_grad
    ]
    assert {id(p) for p in trainable} == {id(p) for _, p in adapters.parameters()}
    assert {p.dtype for p in parts.unet.parameters() if not p.requires_grad} == {dtype}


def test_a_bfloat16_base_gives_bfloat16_outputs_and_float32_gradients() -> None:
    parts = small_parts()
    parts.unet.to(torch.bfloat16)
    adapters = add_adapters(parts, LoraSettings(), seed=0)
    output = parts.unet(**inputs(parts, torch.bfloat16)).sample
    output.float().pow(2).mean().backward()
    assert output.dtype == torch.bfloat16
    ups = {name: parameter.grad for name, parameter in adapters.parameters() if "lora_B" in name}
    assert {grad.dtype if grad is not None else None for grad in ups.values()} == {torch.float32}
    # the middle of an 8x8 image is one pixel, and its self-attention has nothing to choose
    # between: what reaches these two is zero, or a processor's rounding
    undecided = {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{layer}.lora_B.weight"
        for layer in ("to_q", "to_k")
    }
    assert {name for name, grad in ups.items() if grad is not None and not grad.any()} <= undecided


def test_the_same_seed_gives_the_same_adapters_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = add_adapters(small_parts(), LoraSettings(**FEW, **BOTH), seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    second = add_adapters(small_parts(), LoraSettings(**FEW, **BOTH), seed=5).state_dict()
    other = add_adapters(small_parts(), LoraSettings(**FEW, **BOTH), seed=6).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first[next(iter(first))], other[next(iter(first))])


def test_down_is_drawn_as_kaiming_uniform_and_up_is_zero() -> None:
    adapters = add_adapters(
        small_parts(), LoraSettings(lora_rank=64, target_modules=("conv1", "to_q")), seed=0
    )
    for adapter in adapters.layers:
        bound = adapter.down[0].numel() ** -0.5
        assert 0.9 * bound < float(adapter.down.detach().abs().max()) <= bound
        assert not adapter.up.any()


def test_training_the_text_encoder_does_not_change_the_unets_first_weights() -> None:
    alone = add_adapters(small_parts(), LoraSettings(**FEW), seed=0).state_dict()
    both = add_adapters(small_parts(), LoraSettings(**FEW, **BOTH), seed=0).state_dict()
    assert all(torch.equal(both[name], weight) for name, weight in alone.items())


def test_parameters_come_with_names_in_the_models_order() -> None:
    adapters = add_adapters(tiny_parts("sdxl"), LoraSettings(**BOTH), seed=0)
    unet, text = adapters.groups().values()
    assert unet[0][0] == "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"
    assert unet[1][0] == "unet.down_blocks.1.attentions.0.proj_in.lora_B.weight"
    assert text[0][0] == "text_encoder.text_model.encoder.layers.0.self_attn.k_proj.lora_A.weight"
    assert text[-1][0] == "text_encoder_2.text_model.encoder.layers.2.mlp.fc2.lora_B.weight"
    assert unet + text == adapters.parameters()
    assert adapters.parameter_count == sum(
        parameter.numel() for _, parameter in adapters.parameters()
    )


@pytest.mark.parametrize(
    "targets",
    [
        ("to_q", "proj_in", "ff.net.2"),
        ("conv1", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj"),
    ],
)
def test_strength_scales_every_kind_of_layer_and_is_put_back(targets: tuple[str, ...]) -> None:
    parts = small_parts()
    base = predictions(parts)
    adapters = add_adapters(
        parts, LoraSettings(lora_rank=4, lora_alpha=2.7, target_modules=targets, **BOTH), seed=0
    )
    fill(adapters)
    full = predictions(parts)
    with adapters.strength(0):
        assert all_equal(predictions(parts), base)
    with adapters.strength(1):
        assert all_equal(predictions(parts), full)
    with adapters.strength(0.5):
        half = predictions(parts)
    assert not torch.allclose(half[0], full[0], atol=1e-3)
    assert not torch.allclose(half[0], base[0], atol=1e-3)
    assert all_equal(predictions(parts), full)


def test_strength_is_put_back_after_an_error_and_can_be_nested() -> None:
    parts = small_parts()
    adapters = add_adapters(parts, LoraSettings(**FEW), seed=0)
    fill(adapters)
    full = predictions(parts)
    with pytest.raises(RuntimeError), adapters.strength(0.5):
        with adapters.strength(0):
            pass
        assert not torch.equal(predictions(parts)[0], full[0])
        raise RuntimeError
    assert all_equal(predictions(parts), full)


def test_a_fractional_alpha_is_exact() -> None:
    parts = small_parts()
    adapters = add_adapters(
        parts,
        LoraSettings(
            lora_rank=3, lora_alpha=0.7, target_modules=("mid_block.attentions.0.proj_in",)
        ),
        seed=0,
    )
    fill(adapters)
    layer = adapters.layers[0]
    x = torch.randn(1, layer.down.shape[1], 1, 1, generator=torch.Generator().manual_seed(0))
    change = layer.layer(x) - layer.layer.base_layer(x)
    expected = (
        0.7 / 3 * torch.einsum("or,ri,bihw->bohw", layer.up[:, :, 0, 0], layer.down[:, :, 0, 0], x)
    )
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_active_in_training_and_not_within_strength() -> None:
    parts = small_parts()
    adapters = add_adapters(parts, LoraSettings(lora_dropout=0.5, **FEW), seed=0)
    fill(adapters)
    assert not torch.equal(predictions(parts)[0], predictions(parts)[0])
    with adapters.strength(1):
        assert all_equal(predictions(parts), predictions(parts))
    assert not torch.equal(predictions(parts)[0], predictions(parts)[0])


def test_saved_weights_come_back_bit_for_bit() -> None:
    parts = small_parts()
    adapters = add_adapters(parts, LoraSettings(**FEW, **BOTH), seed=0)
    fill(adapters)
    saved, full = adapters.state_dict(), predictions(parts)
    fill(adapters, seed=2)
    assert all(
        weight.dtype == torch.float32 and not weight.requires_grad for weight in saved.values()
    )
    parameters = [id(parameter) for _, parameter in adapters.parameters()]
    adapters.load_state_dict(saved)
    assert all_equal(predictions(parts), full)
    assert [id(parameter) for _, parameter in adapters.parameters()] == parameters


def test_weights_of_other_settings_are_refused() -> None:
    saved = add_adapters(tiny_parts("sd1"), LoraSettings(lora_rank=4, **FEW), seed=0).state_dict()
    with pytest.raises(
        LoraFileError, match="do not fit this model and these settings: 96 of 96 weights differ"
    ):
        add_adapters(tiny_parts("sd1"), LoraSettings(lora_rank=8, **FEW), seed=0).load_state_dict(
            saved
        )
    with pytest.raises(LoraFileError, match=r"weights differ, such as text_encoder\.text_model"):
        add_adapters(
            tiny_parts("sd1"), LoraSettings(lora_rank=4, **FEW, **BOTH), seed=0
        ).load_state_dict(saved)


def test_removed_adapters_leave_the_base_as_it_was() -> None:
    parts = small_parts()
    names, base = dict(module_names(parts)), predictions(parts)
    adapters = add_adapters(parts, LoraSettings(**FEW, **BOTH), seed=0)
    fill(adapters)
    assert dict(module_names(parts)) == names
    adapters.remove()
    assert dict(module_names(parts)) == names
    assert all_equal(predictions(parts), base)
    add_adapters(parts, LoraSettings(**FEW), seed=0)


@pytest.mark.parametrize(
    ("targets", "message", "hint"),
    [
        (
            ("q_proj", "v_proj"),
            "no layer of the UNet is called q_proj, v_proj",
            "a UNet has to_q, to_k, to_v, to_out.0",
        ),
        (("to_q", "to_ou.0"), "no layer is called to_ou.0", "Did you mean to_out.0?"),
        (("to_out",), "to_out is not a layer that can hold a LoRA", "Inside it: to_out.0."),
        (("attn1",), "attn1 is not a layer", "Inside it: to_q, to_k, to_v, to_out.0."),
        (("norm1",), "norm1 is not a layer", "Only Linear and Conv2d layers can: conv_in"),
        (("o_q",), "no layer is called o_q", "There are: conv_in"),
    ],
)
def test_names_that_match_nothing_are_named(
    targets: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        add_adapters(small_parts(), LoraSettings(target_modules=targets), seed=0)
    assert message in str(caught.value)
    assert hint in str(caught.value.hint)


def test_unet_names_for_the_text_encoder_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="no layer of the text encoder is called to_q"):
        add_adapters(small_parts(), LoraSettings(text_encoder_targets=("to_q",), **BOTH), seed=0)


def test_a_refused_setting_leaves_the_model_without_adapters() -> None:
    parts = small_parts()
    with pytest.raises(ConfigError):
        add_adapters(parts, LoraSettings(text_encoder_targets=("to_q",), **BOTH), seed=0)
    assert not [name for name, _ in parts.unet.named_modules() if "lora" in name]


def test_a_whole_path_is_a_target_too_and_a_part_of_a_word_is_not() -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert [
        adapter.path
        for adapter in add_adapters(
            small_parts(), LoraSettings(target_modules=(path,)), seed=0
        ).layers
    ] == [path]
    with pytest.raises(ConfigError, match="no layer is called _q"):
        add_adapters(small_parts(), LoraSettings(target_modules=("_q",)), seed=0)


def test_of_a_familys_own_targets_those_that_a_model_lacks_are_passed_over() -> None:
    parts = small_parts()
    usual = parts.family.unet_targets
    more = (*usual, "to_nothing")
    model, part = parts.unet, "unet"
    assert matching_layers(model, parts.family, part, more, more) == matching_layers(
        model, parts.family, part, usual, usual
    )
    with pytest.raises(ConfigError, match="no layer is called to_nothing"):
        matching_layers(model, parts.family, part, more, usual)
