"""Layer names as other trainers write them, with the shapes that the base's layers have: made from
diffusers' and the models' own names in host_layers.json.

    diffusers_layers("flux")         diffusers' name -> shape of its weight
    attention_and_mlp("flux")        of those, what trainers adapt by default
    own_layers("flux")               the model's own names
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from lora_trainer.lora import host_layers
from lora_trainer.lora.host_layers import _data, _places, _unet_names, layers
from lora_trainer.lora.layouts import UNET

Shapes = dict[str, tuple[int, ...]]
USUAL = re.compile(
    r".*\.(attn\d?|attention)\.(to_|add_)\w+(\.0)?"
    r"|.*\.(ff|ff_context|img_mlp|txt_mlp)\.(net\.(0\.proj|2)|linear_(in|out)|gate|up|down)"
    r"|.*\.feed_forward\.(w|linear_)[123]|single_transformer_blocks\.\d+\.proj_(mlp|out)"
)
"""Attention and MLPs, without norms, modulation, embedders and the last layer."""
OTHERS = {
    "flux": r".*linear_(in|out)|.*to_qkv_mlp_proj|single_.*attn\.to_out",
    "chroma": r".*linear_(in|out)|.*to_qkv_mlp_proj|single_.*attn\.to_out",
    "klein": r".*\.net\..*|single_.*\.(attn\.to_[qkv]|proj_mlp|proj_out)",
    "lumina2": r".*attention\..*|.*\.w[123]",
    "krea2": r".*\.to_out",
}
"""Model -> names that WebUIs read, and that its diffusers' class does not have."""


def host_of(model: str) -> str:
    """A WebUI that runs it, with the most names."""
    return next(host for host in ("neo", "forge", "a1111") if host_layers.runs(host, model))


def diffusers_layers(model: str) -> Shapes:
    entry, known = _data()["families"][model], layers(host_of(model), model)
    if "native" in entry:
        return own_layers(model)
    found = dict(_unet_names(entry, known))
    read = [entry, entry.get("neo", {}), {"diffusers": entry.get("unread", {})}]
    for table in read:
        found |= dict(_places(table.get("diffusers", {}), known))
    return {
        name: place.shape
        for name, place in found.items()
        if len(place.shape) > 1 and not name.startswith("class_embedding")
    }


def attention_and_mlp(model: str) -> Shapes:
    others = next((text for start, text in OTHERS.items() if model.startswith(start)), "(?!)")
    return {
        name: shape
        for name, shape in diffusers_layers(model).items()
        if USUAL.fullmatch(name) and not re.fullmatch(others, name)
    }


def clip_layers(count: int = 12, width: int = 768) -> Shapes:
    """The layers of a CLIP that trainers adapt."""
    inner = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)} | {
        f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")
    }
    return {
        f"text_model.encoder.layers.{number}.{name}": shape
        for number in range(count)
        for name, shape in inner.items()
    }


def own_layers(model: str) -> Shapes:
    known = layers(host_of(model), model)
    return {
        layer: shape for (part, layer), shape in known.items() if part == UNET and len(shape) > 1
    }


Ends = tuple[str, str]
KOHYA: Ends = ("lora_down.weight", "lora_up.weight")
PEFT: Ends = ("lora_A.weight", "lora_B.weight")


def write_lora(
    path: Path,
    layers: Mapping[str, tuple[int, ...]],
    *,
    head: str,
    ends: Ends = PEFT,
    rank: int = 2,
    alpha: float | None = None,
    metadata: Mapping[str, str] | None = None,
    more: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A LoRA file with a layer of random weights for each name. head: before the name, which has
    underscores for dots if it ends in one. alpha: as tensors.
    """
    generator = torch.Generator().manual_seed(len(layers))
    tensors: dict[str, torch.Tensor] = {}
    for layer, shape in layers.items():
        name = head + (layer.replace(".", "_") if head.endswith("_") else layer)
        down = torch.randn(rank, *shape[1:], generator=generator)
        up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        tensors[f"{name}.{ends[0]}"] = down.half()
        tensors[f"{name}.{ends[1]}"] = up.half() * 0.01
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha).half()
    safetensors.torch.save_file(tensors | dict(more or {}), path, dict(metadata or {}))
    return path
