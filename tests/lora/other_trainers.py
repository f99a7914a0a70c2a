"""Layer names as other trainers write them, with the shapes that the base's layers have: made from
diffusers' and the models' own names in host_layers.json.

    diffusers_layers("flux")         diffusers' name -> shape of its weight
    attention_and_mlp("flux")        of those, what trainers adapt by default
    own_layers("flux")               the model's own names
"""

from __future__ import annotations

import re

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
    return {name: place.shape for name, place in found.items() if len(place.shape) > 1}


def attention_and_mlp(model: str) -> Shapes:
    others = next((text for start, text in OTHERS.items() if model.startswith(start)), "(?!)")
    return {
        name: shape
        for name, shape in diffusers_layers(model).items()
        if USUAL.fullmatch(name) and not re.fullmatch(others, name)
    }


def own_layers(model: str) -> Shapes:
    known = layers(host_of(model), model)
    return {
        layer: shape for (part, layer), shape in known.items() if part == UNET and len(shape) > 1
    }
