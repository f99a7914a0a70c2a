"""Names of layers: the path inside the model, and what the WebUI calls the same layer in a LoRA
file.

In: Parts, or the weight shapes of a checkpoint under diffusers' names. Out: paths
("down_blocks.0.attentions.0...to_q") and WebUI names
("lora_unet_down_blocks_0_attentions_0_..._to_q"). adapters, export and describe call it.

The WebUI's name of a layer is a prefix and the path with underscores for dots. Every name given out
here is found by both loaders, read from their sources: A1111 1.10.1
(extensions-builtin/Lora/networks.py) and Forge (packages_3rdparty/comfyui_lora_collection/lora.py).

    part                     SD1, SD2              SDXL
    unet                     lora_unet_ + path     lora_unet_ + path in SGM's names
                                                   (input_blocks_4_1_...)
    text_encoder             lora_te_ + path       lora_te1_ + path
    text_encoder_2                                 lora_te2_ + path

SDXL has SGM's names because A1111 knows SDXL's upsamplers and add_embedding under no other; kohya
writes the same ones. So has any UNet whose blocks are not two layers deep: A1111 translates
diffusers' names by that depth. SD2's host has all 24 layers of its text encoder, ours the 23 that
are used: layer numbers mean the same in both.

No torch at import: shapes may come from a file's header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_trainer.checkpoint.parts import Family, Parts

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

PREFIXES: dict[Family, dict[Part, str]] = {
    "sd1": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sd2": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sdxl": {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}

Shape = tuple[int, ...]
BaseModules = Mapping[str, Shape]
"""WebUI name -> shape of the base's weight, (out, in) or (out, in, height, width), for every layer
that can hold a LoRA.
"""

USUAL_DEPTH = 2

# hosts keep it as a bare matrix, not as a layer: no LoRA key reaches it
UNREACHABLE = ("text_projection",)


def part_models(parts: Parts) -> Iterator[tuple[Part, Any]]:
    """The models that may hold adapters and are loaded, each with its name: unet, text_encoder,
    text_encoder_2.
    """
    for part, model in zip(PARTS, (parts.unet, *parts.text_encoders), strict=False):
        if model is not None:
            yield part, model


def adaptable_layers(model: Any) -> dict[str, Any]:
    """Path -> layer for every Linear and Conv2d (one group) of a model, in the model's own order,
    with or without adapters inside.
    """
    import torch

    layers: dict[str, Any] = {}
    inside = "?"  # of the adapter met last: what it holds follows it at once
    for path, module in model.named_modules():
        if path.startswith(inside) or path in UNREACHABLE:
            continue
        base = module
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            inside = path + "."
            base = module.base_layer
        if isinstance(base, torch.nn.Linear) or (
            isinstance(base, torch.nn.Conv2d) and base.groups == 1
        ):
            layers[path] = base
    return layers


def module_names(parts: Parts) -> BaseModules:
    """Every layer of the loaded models that can hold a LoRA, under its WebUI name, with its
    weight's shape.
    """
    shapes = {
        part: {path: tuple(layer.weight.shape) for path, layer in adaptable_layers(model).items()}
        for part, model in part_models(parts)
    }
    depth = unet_depth(parts)
    return {
        webui_name(parts.family, part, path, depth): shape
        for part, layers in shapes.items()
        for path, shape in layers.items()
    }


def diffusers_names(parts: Parts) -> BaseModules:
    """The same layers under diffusers' names: part and path, "unet.down_blocks.0...to_q"."""
    return {
        f"{part}.{path}": tuple(layer.weight.shape)
        for part, model in part_models(parts)
        for path, layer in adaptable_layers(model).items()
    }


@dataclass(frozen=True)
class BaseLayers:
    """Every layer of a base that can hold a LoRA, by part and flat path, under each set of names
    that LoRA files use.
    """

    webui: Mapping[tuple[str, str], Shape]
    """By the checkpoint's own path, as A1111 translates diffusers'."""
    diffusers: Mapping[tuple[str, str], Shape]

    def shape(self, part: str, path: str, *, flat: bool) -> Shape | None:
        """The shape of a layer's weight, or None. flat: it is a WebUI's name, where diffusers'
        paths are translated as A1111 does it.
        """
        if flat:
            return self.webui.get((part, sgm_name(path) if part == "unet" else path))
        return self.diffusers.get((part, path)) or self.webui.get((part, path))


def base_layers(parts: Parts) -> BaseLayers:
    """The layers of the loaded models, under all their names."""
    depth = unet_depth(parts)
    webui: dict[tuple[str, str], Shape] = {}
    diffusers: dict[tuple[str, str], Shape] = {}
    for part, model in part_models(parts):
        for path, layer in adaptable_layers(model).items():
            flat = _flat(part, path)
            diffusers[part, flat] = tuple(layer.weight.shape)
            webui[part, sgm_name(flat, depth) if part == "unet" else flat] = tuple(
                layer.weight.shape
            )
    return BaseLayers(webui=webui, diffusers=diffusers)


def module_names_of_weights(
    family: Family, weights: Mapping[Part, Mapping[str, Shape]]
) -> BaseModules:
    """The same from the shapes of the weights alone: part -> {"down_blocks.0....to_q.weight": (out,
    in)} in diffusers' names.
    """
    found: dict[str, Shape] = {}
    for part, shapes in weights.items():
        for name, shape in shapes.items():
            path, _, kind = name.rpartition(".")
            if (
                kind == "weight"
                and len(shape) in (2, 4)
                and not path.endswith("_embedding")
                and path not in UNREACHABLE
            ):
                found[webui_name(family, part, path)] = tuple(shape)
    return found


def fits(base: Shape, down: Shape, up: Shape) -> bool:
    """Whether up @ down has the shape of the base's weight. 1x1 convolutions and Linear layers
    stand in for each other, as in the hosts.
    """
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or up[0] != base[0] or down[1] != base[1]:
        return False
    return all(side == 1 for side in up[2:]) and (down[2:] or (1, 1)) == (base[2:] or (1, 1))


def unet_depth(parts: Parts) -> int:
    """Layers in each block of the loaded UNet: 2 in every published checkpoint, and where no UNet
    is loaded.
    """
    return USUAL_DEPTH if parts.unet is None else int(parts.unet.config.layers_per_block)


def webui_name(family: Family, part: Part, path: str, depth: int = USUAL_DEPTH) -> str:
    """A layer's name in a WebUI LoRA file, without `.lora_down.weight` and the like. depth: of the
    UNet, see `unet_depth`.
    """
    name = _flat(part, path)
    if part == "unet" and (family == "sdxl" or depth != USUAL_DEPTH):
        # A1111 translates diffusers' names as if every block had two layers; the file's own names
        # need no translation
        name = sgm_name(name, depth)
    return PREFIXES[family][part] + name


def _flat(part: Part, path: str) -> str:
    name = path.replace(".", "_")
    # transformers 5 has no text_model in between; the hosts do
    return name if part == "unet" or name.startswith("text_model_") else "text_model_" + name


SGM_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
SGM_FIXED = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_BLOCK = re.compile(
    r"(down_blocks_(?P<down>\d+)|mid_block|up_blocks_(?P<up>\d+))_(?P<kind>attentions|resnets|downsamplers|upsamplers)_(?P<layer>\d+)_(?P<rest>.+)"
)


def sgm_name(name: str, depth: int = USUAL_DEPTH) -> str:
    """A UNet layer's name (underscores for dots) from diffusers' numbering to that of the
    checkpoint file (SGM's, LDM's).

    Each of the file's input blocks is one (resnet, attention) pair or one downsampler: depth + 1 to
    a down block; output blocks likewise.
    """
    stride = depth + 1
    match = _BLOCK.fullmatch(name)
    if not match:
        return SGM_FIXED.get(name, name)
    kind, layer, rest = match["kind"], int(match["layer"]), match["rest"]
    if kind == "resnets":
        rest = SGM_RESNET.get(rest, rest)
    slot = 1 if kind == "attentions" else 0
    if match["down"]:
        if kind == "downsamplers":
            return f"input_blocks_{stride + stride * int(match['down'])}_0_op"
        return f"input_blocks_{1 + stride * int(match['down']) + layer}_{slot}_{rest}"
    if match["up"]:
        if kind == "upsamplers":
            # after the resnet and the attention: both of SDXL's up blocks that grow have attention
            return f"output_blocks_{depth + stride * int(match['up'])}_2_{rest}"
        return f"output_blocks_{stride * int(match['up']) + layer}_{slot}_{rest}"
    return f"middle_block_{1 if kind == 'attentions' else 2 * layer}_{rest}"
