"""Layer names: the path in the model, and the name in a LoRA file for a WebUI.

Parts -> paths ("down_blocks.0.attentions.0...to_q") and WebUI names
("lora_unet_down_blocks_0_attentions_0_..._to_q"). Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.families.base import NativePaths

Part = Literal["unet", "text_encoder", "text_encoder_2", "language_model"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

Shape = tuple[int, ...]
BaseModules = Mapping[str, Shape]
"""WebUI name -> weight shape, (out, in) or (out, in, height, width), of every layer that can have a
LoRA.
"""


class Learnable(Protocol):
    """A kind of base, such as a Family."""

    def may_learn(self, path: str) -> bool:
        """Whether the layer at this path can have a LoRA."""


def part_models(parts: Parts) -> Iterator[tuple[Part, Any]]:
    """The loaded models that can have adapters: unet, text_encoder, text_encoder_2."""
    for part, model in zip(PARTS, (parts.unet, *parts.text_encoders), strict=False):
        if model is not None:
            yield part, model


def adaptable_layers(model: Any, base: Learnable) -> dict[str, Any]:
    """Path -> base layer for every Linear and Conv2d (one group) that can have a LoRA, in the
    model's order, with or without adapters.
    """
    import torch

    layers: dict[str, Any] = {}
    inside = "?"  # prefix of the last adapter's submodules, which follow it directly
    for path, module in model.named_modules():
        if path.startswith(inside) or not base.may_learn(path):
            continue
        layer = module
        if hasattr(module, "base_layer"):
            inside = path + "."
            layer = module.base_layer
        if isinstance(layer, torch.nn.Linear) or (
            isinstance(layer, torch.nn.Conv2d) and layer.groups == 1
        ):
            layers[path] = layer
    return layers


def is_target(path: str, targets: Iterable[str]) -> bool:
    """Whether a path is one of the targets, or ends with `.` and a target."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def module_names(parts: Parts) -> BaseModules:
    """WebUI name -> weight shape of every layer that can have a LoRA."""
    return {name: tuple(layer.weight.shape) for name, layer in webui_layers(parts).items()}


def webui_layers(parts: Parts) -> dict[str, Any]:
    """WebUI name -> layer."""
    name = parts.family.layer_names(parts)
    return {
        name(part, path): layer
        for part, model in part_models(parts)
        for path, layer in adaptable_layers(model, parts.family).items()
    }


def diffusers_names(parts: Parts) -> BaseModules:
    """diffusers' name (part and path, "unet.down_blocks.0...to_q") -> weight shape."""
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
    """Weight shapes of a base's layers, by part and flat path, for each naming scheme of LoRA
    files.
    """

    webui: Mapping[tuple[str, str], BaseLayer]
    """By the checkpoint's path, as A1111 translates diffusers'."""
    diffusers: Mapping[tuple[str, str], BaseLayer]
    native: NativePaths

    def find(self, part: str, path: str, *, flat: bool) -> BaseLayer | None:
        """The layer of this name, or None. flat: `path` is from a WebUI's name, where A1111
        translates diffusers' paths.
        """
        if flat:
            return self.webui.get((part, self.native.as_hosts_read(part, path)))
        return self.diffusers.get((part, path)) or self.webui.get((part, path))


def base_layers(parts: Parts) -> BaseLayers:
    """The layers of the loaded models, by all their names."""
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
    """Whether up @ down has the base weight's shape. 1x1 convolutions and Linear are
    interchangeable, as in the hosts.
    """
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or up[0] != base[0] or down[1] != base[1]:
        return False
    return all(side == 1 for side in up[2:]) and (down[2:] or (1, 1)) == (base[2:] or (1, 1))
