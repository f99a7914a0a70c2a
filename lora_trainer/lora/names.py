"""Layer names: the path in the model, and the name in a LoRA file for a WebUI.

Parts -> paths ("down_blocks.0.attentions.0...to_q") and WebUI names
("lora_unet_down_blocks_0_attentions_0_..._to_q"). Imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.families.base import Family, NativePaths, Rows

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
    """Whether a path is one of the targets, or ends with `.` and a target. A target with `*` is a
    pattern of the whole path.
    """
    return any(
        path == target
        or path.endswith(f".{target}")
        or ("*" in target and fnmatchcase(path, target))
        for target in targets
    )


@dataclass(frozen=True)
class LoadedLayer:
    """A layer of a loaded model: all of a layer of the checkpoint, or rows of one."""

    layer: Any
    rows: Rows | None


def module_names(parts: Parts) -> BaseModules:
    """WebUI name -> weight shape of every layer that can have a LoRA."""
    return {name: _shape_of(layers) for name, layers in webui_layers(parts).items()}


def _shape_of(layers: Sequence[LoadedLayer]) -> Shape:
    shape, rows = tuple(layers[0].layer.weight.shape), layers[0].rows
    return shape if rows is None else (rows.of, *shape[1:])


def webui_layers(parts: Parts) -> dict[str, list[LoadedLayer]]:
    """WebUI name -> layer; several where the checkpoint has them in one."""
    name, rows_of = parts.family.layer_names(parts), parts.family.fused_rows(parts)
    found: dict[str, list[LoadedLayer]] = {}
    for part, model in part_models(parts):
        for path, layer in adaptable_layers(model, parts.family).items():
            loaded = LoadedLayer(layer, rows_of(part, path))
            found.setdefault(name(part, path), []).append(loaded)
    return found


def diffusers_name(family: Family, part: str, path: str) -> str:
    """diffusers' name of a layer: part and path, "unet.down_blocks.0...to_q"."""
    return f"{family.diffusers_parts.get(part, part)}.{path}"


def diffusers_names(parts: Parts) -> BaseModules:
    """diffusers' name -> weight shape."""
    return {
        diffusers_name(parts.family, part, path): tuple(layer.weight.shape)
        for part, model in part_models(parts)
        for path, layer in adaptable_layers(model, parts.family).items()
    }


@dataclass(frozen=True)
class BaseLayer:
    """A layer that can hold a LoRA."""

    part: Part
    path: str
    """diffusers'; of a layer that holds several the checkpoint's."""
    shape: Shape
    """Its weight's."""
    pieces: tuple[tuple[str, Rows], ...] = ()
    """diffusers' paths and the rows of the layers that it holds, if several."""


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
    native, rows_of = parts.family.native_paths(parts), parts.family.fused_rows(parts)
    webui: dict[tuple[str, str], BaseLayer] = {}
    diffusers: dict[tuple[str, str], BaseLayer] = {}
    for part, model in part_models(parts):
        for path, layer in adaptable_layers(model, parts.family).items():
            found = BaseLayer(part, path, tuple(layer.weight.shape))
            diffusers[part, parts.family.flat_path(part, path)] = found
            key, rows = (part, native.of_layer(part, path)), rows_of(part, path)
            if rows is not None:
                earlier = webui[key].pieces if key in webui else ()
                shape = (rows.of, *found.shape[1:])
                found = BaseLayer(part, key[1], shape, (*earlier, (path, rows)))
            webui[key] = found
    return BaseLayers(webui=webui, diffusers=diffusers, native=native)


def fits(base: Shape, down: Shape, up: Shape) -> bool:
    """Whether up @ down has the base weight's shape. 1x1 convolutions and Linear are
    interchangeable, as in the hosts.
    """
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or up[0] != base[0] or down[1] != base[1]:
        return False
    return all(side == 1 for side in up[2:]) and (down[2:] or (1, 1)) == (base[2:] or (1, 1))
