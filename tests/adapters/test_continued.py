"""Adapters that begin with a LoRA file: what it does stays, and the new rows learn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.apply import effects
from lora_trainer.adapters.continued import Beginning, begin_from, match
from lora_trainer.adapters.export import export, export_diffusers
from lora_trainer.adapters.injected import Adapters, add_adapters
from lora_trainer.checkpoint.names import rename, unet_modules
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.changes import open_changes
from lora_trainer.lora.names import webui_layers
from lora_trainer.lora.scales import OURS
from lora_trainer.settings.training import LoraSettings
from tests.adapters.test_export import METADATA, live, trained
from tests.adapters.test_injected import all_equal, inputs
from tests.tiny import tiny_parts

SETTINGS = LoraSettings(
    target_modules=("to_q", "proj_in"),
    train_text_encoder=True,
    text_encoder_targets=("q_proj", "fc1"),
)
LAYER = "lora_unet_mid_block_attentions_0_proj_in"
"""1 x 1 in SD1."""


def begun(
    file: Path, family: str = "sd1", **settings: Any
) -> tuple[Parts, Adapters, LoraSettings, Beginning]:
    """Fresh adapters of the settings, after the file."""
    parts = tiny_parts(family)
    asked = dataclasses.replace(SETTINGS, **settings)
    changes = open_changes(file)
    asked = dataclasses.replace(asked, **changes.rank_and_alpha(asked))
    adapters = add_adapters(parts, asked, seed=1)
    return parts, adapters, asked, begin_from(adapters, match(changes, base_of(family), asked))


@functools.cache
def base_of(family: str) -> Parts:
    """A base without adapters. Change none."""
    return tiny_parts(family)


def exported(folder: Path, family: str = "sd1", **settings: Any) -> tuple[Path, list[torch.Tensor]]:
    """A LoRA file with the exact weights, and what the model predicted with it."""
    parts, adapters = trained(family, **settings)
    file = folder / "earlier.safetensors"
    export(adapters, parts, file, METADATA, torch.float32)
    return file, live(parts, adapters, 1.0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("rank", [None, 8])
def test_the_same_and_a_higher_rank_predict_the_same(tmp_path, family, rank):
    file, before = exported(tmp_path, family)
    parts, adapters, asked, beginning = begun(file, family, lora_rank=rank)
    assert (asked.lora_rank, asked.lora_alpha) == (rank or 4, pytest.approx(2.7 / 4 * (rank or 4)))
    assert all_equal(live(parts, adapters, 1.0), before)
    # bit for bit; how a processor adds up four products and four zeros is its own affair
    tensors = load_file(file)
    name = parts.family.layer_names(parts)
    for adapter in adapters.layers:
        key = name(adapter.part, adapter.path)
        down, up = (tensors[f"{key}.lora_{end}.weight"] for end in ("down", "up"))
        assert torch.equal(adapter.down[:4], down) and torch.equal(adapter.up[:, :4], up)
        assert adapter.up[:, 4:].count_nonzero() == 0
        assert adapter.size.alpha / adapter.size.rank == pytest.approx(2.7 / 4, rel=1e-6)
    assert beginning.kept == 1.0 and beginning.notes() == []
    assert beginning.continued == len(adapters.layers)


def test_new_rows_change_nothing_yet_and_learn(tmp_path):
    file, _ = exported(tmp_path)
    parts, adapters, _, _ = begun(file, lora_rank=8)
    parts.unet(**inputs(parts, torch.float32)).sample.square().sum().backward()
    for adapter in adapters.layers:
        assert bool((adapter.down[4:].flatten(1).norm(dim=1) > 0).all())
    learning = [adapter for adapter in adapters.layers if adapter.part == "unet"]
    moved = [adapter.up.grad[:, 4:].count_nonzero() for adapter in learning]
    assert sum(bool(count) for count in moved) > 0.9 * len(learning)


def test_a_lower_rank_keeps_the_largest_singular_values(tmp_path):
    file, _ = exported(tmp_path)
    parts, adapters, _, beginning = begun(file, lora_rank=2)
    name = parts.family.layer_names(parts)
    kept = whole = 0.0
    for adapter in adapters.layers:
        wanted = effects(file)[name(adapter.part, adapter.path)].flatten(1)
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
        nearest = left[:, :2] * values[:2] @ right[:2]
        scale = adapter.size.alpha / adapter.size.rank
        found = scale * adapter.up.flatten(1) @ adapter.down.flatten(1)
        torch.testing.assert_close(found, nearest, rtol=1e-3, atol=1e-5)
        kept += float((values[:2] ** 2).sum())
        whole += float((values**2).sum())
    assert beginning.kept == pytest.approx(kept / whole, rel=1e-4) and 0.5 < beginning.kept < 0.95
    ((message, hint),) = beginning.notes()
    assert f"only {beginning.kept:.1%} of the effect of " in str(message)
    assert "higher lora_rank" in str(hint)


def test_an_alpha_of_its_own_changes_the_factors_and_not_the_effect(tmp_path):
    file, before = exported(tmp_path)
    parts, adapters, _, _ = begun(file, lora_alpha=8.0)
    assert adapters.layers[0].size.alpha == 8.0
    assert all_equal(live(parts, adapters, 1.0), before)


def test_a_file_in_each_layout_begins_alike(tmp_path):
    earlier, adapters = trained("sd1", train_text_encoder=False)
    kohya = tmp_path / "kohya.safetensors"
    export(adapters, earlier, kohya, METADATA, torch.float32)
    by_us = {"modelspec.implementation_version": f"{OURS}1"}
    export_diffusers(adapters, earlier, tmp_path / "ours.safetensors", by_us, torch.float32)
    tensors = {adapter.path: adapter for adapter in adapters.layers}
    own_names = unet_modules(earlier.unet.config)
    layouts: Mapping[str, dict[str, torch.Tensor]] = {
        "onetrainer": {
            f"unet.{rename(path, own_names)}.{end}": tensor
            for path, adapter in tensors.items()
            for end, tensor in (
                ("lora_down.weight", adapter.down),
                ("lora_up.weight", adapter.up),
                ("alpha", torch.tensor(adapter.size.alpha)),
            )
        },
        "peft/adapter_model": {
            f"base_model.model.{path}.{end}.weight": tensor
            for path, adapter in tensors.items()
            for end, tensor in (("lora_A", adapter.down), ("lora_B", adapter.up))
        },
    }
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft/adapter_config.json").write_text('{"r": 4, "lora_alpha": 2.7}')
    for name, values in layouts.items():
        save_file(
            {key: one.detach().clone() for key, one in values.items()},
            tmp_path / f"{name}.safetensors",
        )
    wanted = live(earlier, adapters, 1.0)
    for file in (kohya, "ours.safetensors", "onetrainer.safetensors", "peft"):
        parts, others, _, beginning = begun(tmp_path / file, lora_rank=6, train_text_encoder=False)
        assert all_equal(live(parts, others, 1.0), wanted), file
        assert (beginning.left_out, beginning.unknown) == ((), ()), file


def dense(kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A file's tensors for LAYER, (64, 64) or what it is, and their effect by LyCORIS' formulas."""
    generator = torch.Generator().manual_seed(3)
    out, width = base_shape()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    if kind == "loha":
        w = {
            name: draw(*size) for name, size in zip("abcd", 2 * [(out, 2), (2, width)], strict=True)
        }
        found = (w["a"] @ w["b"]) * (w["c"] @ w["d"]) * 0.5
        names = dict(zip("abcd", ("w1_a", "w1_b", "w2_a", "w2_b"), strict=True))
        return {f"hada_{names[key]}": one for key, one in w.items()} | ALPHA_1, found
    if kind == "lokr":
        w1, a, b = draw(4, 4), draw(out // 4, 2), draw(2, width // 4)
        return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b} | ALPHA_1, torch.kron(w1, a @ b) / 2
    diff = draw(out, 3) @ draw(3, width)
    return {"diff": diff}, diff


ALPHA_1 = {"alpha": torch.tensor(1.0)}


def base_shape() -> tuple[int, int]:
    layer = webui_layers(base_of("sd1"))[LAYER][0].layer
    return layer.weight.shape[0], layer.weight.shape[1]


@pytest.mark.parametrize("kind", ["loha", "lokr", "diff"])
def test_other_kinds_are_brought_to_low_rank(tmp_path, kind):
    tensors, effect = dense(kind)
    file = tmp_path / "other.safetensors"
    save_file({f"{LAYER}.{end}": one.contiguous() for end, one in tensors.items()}, file)
    _, adapters, _, beginning = begun(file, lora_rank=16)
    (adapter,) = [one for one in adapters.layers if one.path == "mid_block.attentions.0.proj_in"]
    found = adapter.size.alpha / 16 * adapter.up.flatten(1) @ adapter.down.flatten(1)
    torch.testing.assert_close(found, effect, rtol=1e-3, atol=1e-4)
    assert beginning.kept == pytest.approx(1.0, abs=1e-6)
    assert beginning.continued == 1


def test_what_does_not_learn_or_does_not_exist_is_named(tmp_path):
    file, _ = exported(tmp_path)
    extra = {
        "lora_unet_nowhere_at_all.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_nowhere_at_all.lora_up.weight": torch.zeros(8, 4),
    }
    save_file({**load_file(file), **extra}, file)
    _, adapters, _, beginning = begun(
        file, target_modules=("to_q", "to_v"), train_text_encoder=False
    )
    assert beginning.unknown == ("lora_unet_nowhere_at_all",)
    assert any(name.startswith("lora_te_") for name in beginning.left_out)
    assert any(name.endswith("proj_in") for name in beginning.left_out)
    assert beginning.continued == sum(one.path.endswith("to_q") for one in adapters.layers)
    lost, unknown = (str(message) for message, _ in beginning.notes())
    assert f"their effect is lost: {len(beginning.left_out)}, such as lora_te_" in lost
    assert "this base model does not have: 1, such as lora_unet_nowhere_at_all" in unknown


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"weight": torch.zeros(2, 2)}, {}, "is not a LoRA"),
        (
            {f"{LAYER}.lora_down.weight": torch.zeros(2, 4), f"{LAYER}.dora_scale": torch.ones(4)},
            {},
            "cannot be used here: it holds DoRA",
        ),
        (
            {
                f"unet.down_blocks.0.attentions.0.proj_in.lora_{end}.weight": torch.zeros(2, 2)
                for end in "AB"
            },
            {},
            "has no alpha",
        ),
        (
            {f"{LAYER}.lora_{end}.weight": torch.zeros(2, 2) for end in ("down", "up")},
            {"ss_base_model_version": "sdxl_base_v1-0"},
            "is a LoRA for SDXL, and the base is SD1.5",
        ),
        (
            {f"lora_unet_conv_in.lora_{end}.weight": torch.zeros(2, 2) for end in ("down", "up")},
            {"ss_base_model_version": "sd_v1"},
            "none of the layers of",
        ),
        (
            {f"{LAYER}.lora_{end}.weight": torch.zeros(2, 2) for end in ("down", "up")},
            {"ss_base_model_version": "sd_v1"},
            "a layer of 2 x 2 does not fit the base model's of",
        ),
        (
            {
                f"{LAYER}.lora_down.weight": torch.zeros(2, 4),
                f"{LAYER}.lora_up.weight": torch.zeros(4, 3),
            },
            {"ss_base_model_version": "sd_v1"},
            "do not fit each other",
        ),
    ],
)
def test_a_file_that_cannot_be_trained_further_is_said_why(tmp_path, tensors, metadata, words):
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata)
    with pytest.raises(LoraFileError, match=words):
        begun(file)
