"""alpha / rank, wherever alpha is stated: in the weights, in the header, in a file beside; and
never a 1 that nobody stated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lora_trainer.lora.describe import Description, describe

PATHS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
)


def described(
    folder: Path,
    head: str,
    metadata: dict[str, str] | None = None,
    config: Any = None,
    rank: int = 16,
) -> Description:
    tensors = {}
    for path in PATHS:
        tensors |= {
            f"{head}{path}.lora_A.weight": torch.ones(rank, 768),
            f"{head}{path}.lora_B.weight": torch.ones(320, rank),
        }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
    return describe(folder)


def in_header(**settings: Any) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps(
            {f"unet.{key}": value for key, value in settings.items()}
        )
    }


def test_alpha_from_the_header(tmp_path: Path) -> None:
    found = described(
        tmp_path, "unet.", in_header(r=16, lora_alpha=32, use_rslora=False, target_modules=["to_q"])
    )
    assert (found.scales, found.alphas, found.alpha_source) == (
        (2.0,),
        (32.0,),
        "lora_adapter_metadata",
    )
    assert (
        "alpha:           32 (lora_adapter_metadata)\nscale:           2 = alpha / rank"
        in found.to_text()
    )
    assert found.parts["unet"].effect == pytest.approx(32)


def test_alpha_from_single_keys_of_the_header(tmp_path: Path) -> None:
    found = described(
        tmp_path, "unet.", {"format": "pt", "unet.lora_alpha": "64", "unet.r": "16", "alpha": "64"}
    )
    assert (found.scales, found.alphas) == ((4.0,), (64.0,))


def test_alpha_from_the_file_beside_it_with_the_square_root_of_the_rank(tmp_path: Path) -> None:
    found = described(
        tmp_path,
        "base_model.model.",
        config={"peft_type": "LORA", "r": 16, "lora_alpha": 64, "use_rslora": True},
    )
    assert (found.scales, found.alphas, found.square_root) == ((16.0,), (64.0,), True)
    assert "scale:           16 = alpha / sqrt(rank)" in found.to_text()


def test_patterns_name_layers_by_the_end_of_their_path(tmp_path: Path) -> None:
    found = described(
        tmp_path,
        "base_model.model.",
        config={
            "r": 16,
            "lora_alpha": 16,
            "alpha_pattern": {"attn2.to_k": 64},
            "rank_pattern": {"to_q": 16},
        },
    )
    assert (found.scales, found.alphas) == ((1.0, 4.0), (16.0, 64.0))
    anchored = {"r": 16, "lora_alpha": 16, "alpha_pattern": {"^attn2.to_k": 64, f"^{PATHS[0]}": 32}}
    assert described(tmp_path, "base_model.model.", config=anchored).scales == (1.0, 2.0)


@pytest.mark.parametrize(
    ("metadata", "config"),
    [
        (None, None),
        (None, {"r": 16}),
        (None, {"r": 16, "lora_alpha": "many"}),
        (None, {"r": 16, "lora_alpha": True}),
        (None, {"r": 16, "lora_alpha": 1e300}),
        (None, '{"r": 16, "lora_alpha": Infinity}'),
        (None, '{"r": 16, "lora_alpha": 1' + "0" * 400 + "}"),
        (None, {"r": 16, "lora_alpha": 16, "alpha_pattern": {"(a+)+$": 64}}),
        (None, [1]),
        (None, "[" * 5000),
        ({"lora_adapter_metadata": "{"}, None),
        ({"lora_adapter_metadata": "[1]"}, None),
        (in_header(r=16), None),
        ({"alpha": "as you like"}, None),
    ],
)
def test_what_is_not_stated_is_unknown_and_never_one(
    metadata: dict[str, str] | None, config: Any, tmp_path: Path
) -> None:
    found = described(
        tmp_path, "base_model.model." if config is not None else "unet.", metadata, config
    )
    assert (found.scales, found.alphas) == (None, ())
    assert "scale:           unknown" in found.to_text()
    assert (
        "Alpha is stated neither in the file nor in an adapter_config.json beside it; the WebUIs"
        " take it to be the rank." in found.to_text()
    )


def test_a_tensor_counts_before_what_is_said(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(4, 8),
        f"{name}.lora_up.weight": torch.ones(8, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    safetensors.torch.save_file(
        tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": '{"lora_alpha": 400}'}
    )
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 400}')
    assert describe(tmp_path / "x.safetensors").scales == (0.5,)
