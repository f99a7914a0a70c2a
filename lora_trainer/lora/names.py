"""Names of layers: the path inside the model, and what the WebUI calls the same layer in a LoRA
file, as the family says.

In: Parts. Out: paths ("down_blocks.0.attentions.0...to_q") and WebUI names
("lora_unet_down_blocks_0_attentions_0_..._to_q"). adapters, export and describe call it. No torch
at import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.families.base import Family, NativePaths

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

Shape = tuple[int, ...]
BaseModules = Mapping[str, Shape]
"""WebUI name -> shape of the base's weight, (out, in) or (out, in, height, width), for every layer
that can hold a LoRA.
"""


def part_models(parts: Parts) -> Iterator[tuple[Part, Any]]:
    """The models that may hold adapters and are loaded, each with its name: unet, text_encoder,
    text_encoder_2.
    """
    for part, model in zip(PARTS, (parts.unet, *parts.text_encoders), strict=False):
        if model is not None:
            yield part, model


def adaptable_layers(model: Any, family: Family) -> dict[str, Any]:
    """Path -> layer for every Linear and Conv2d (one group) of a model that may learn, in the
    model's own order, with or without adapters inside.
    """
    import torch

    layers: dict[str, Any] = {}
    inside = "?"  # of the adapter met last: what it holds follows it at once
    for path, module in model.named_modules():
        if path.startswith(inside) or not family.may_learn(path):
            continue
        base = module
        if hasattr(module, "base_layer"):
            inside = path + "."
            base = module.base_layer
        if isinstance(base, torch.nn.Linear) or (
            isinstance(base, torch.nn.Conv2d) and base.groups == 1
        ):
            layers[path] = base
    return layers


def is_target(path: str, targets: Iterable[str]) -> bool:
    """Whether a layer's path is one of the targets, or ends with `.` and one."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def module_names(parts: Parts) -> BaseModules:
    """Every layer of the loaded models that can hold a LoRA, under its WebUI name, with its
    weight's shape.
    """
    return {name: tuple(layer.weight.shape) for name, layer in webui_layers(parts).items()}


def webui_layers(parts: Parts) -> dict[str, Any]:
    """The same names -> the layers themselves."""
    name = parts.family.layer_names(parts)
    return {
        name(part, path): layer
        for part, model in part_models(parts)
        for path, layer in adaptable_layers(model, parts.family).items()
    }


def diffusers_names(parts: Parts) -> BaseModules:
    """The same layers under diffusers' names: part and path, "unet.down_blocks.0...to_q"."""
    return {
        f"{part}.{path}": tuple(layer.weight.shape)
        for part, model in part_models(parts)
        for path, layer in adaptable_layers(model, parts.family).items()
    }


@dataclass(frozen=True)
class BaseLayer:
    """A layer that can hold a LoRA."""

    part: Part
    path: str
    """diffusers'"""
    shape: Shape
    """Its weight's."""


@dataclass(frozen=True)
class BaseLayers:
    """Every layer of a base that can hold a LoRA, by part and flat path, under each set of names
    that LoRA files use.
    """

    webui: Mapping[tuple[str, str], BaseLayer]
    """By the checkpoint's own path, as A1111 translates diffusers'."""
    diffusers: Mapping[tuple[str, str], BaseLayer]
    native: NativePaths

    def find(self, part: str, path: str, *, flat: bool) -> BaseLayer | None:
        """The layer that a LoRA file names so. flat: it is a WebUI's name, where diffusers' paths
        are translated as A1111 does it.
        """
        if flat:
            return self.webui.get((part, self.native.as_hosts_read(part, path)))
        return self.diffusers.get((part, path)) or self.webui.get((part, path))


def base_layers(parts: Parts) -> BaseLayers:
    """The layers of the loaded models, under all their names."""
    native = parts.family.native_paths(parts)
    webui: dict[tuple[str, str], BaseLayer] = {}
    diffusers: dict[tuple[str, str], BaseLayer] = {}
    for part, model in part_models(parts):
        for path, layer in adaptable_layers(model, parts.family).items():
            found = BaseLayer(part, path, tuple(layer.weight.shape))
            diffusers[part, parts.family.flat_path(part, path)] = found
            webui[part, native.of_layer(part, path)] = found
    return BaseLayers(webui=webui, diffusers=diffusers, native=native)


def fits(base: Shape, down: Shape, up: Shape) -> bool:
    """Whether up @ down has the shape of the base's weight. 1x1 convolutions and Linear layers
    stand in for each other, as in the hosts.
    """
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or up[0] != base[0] or down[1] != base[1]:
        return False
    return all(side == 1 for side in up[2:]) and (down[2:] or (1, 1)) == (base[2:] or (1, 1))
