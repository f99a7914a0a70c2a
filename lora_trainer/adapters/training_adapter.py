"""A training adapter merged into the base's weights (lora.training_adapter says what that is).

    TrainingAdapter.of(changes, outline)   checks names and shapes
    adapter.delta(path)                    what is added to a layer's weight while it is loaded
    adapter.taken_out(model)               context manager: the model computes as without it

It is merged before weights are converted to 8 bits or offloaded, and costs a step nothing. To take
it out, each layer's low-rank product is subtracted from its output: exact but for rounding,
however the weight is stored. The factors stay in main memory and are copied for each use.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.families.base import Rows
from lora_trainer.lora.changes import LoraChanges, WeightChange
from lora_trainer.lora.file import file_hashes
from lora_trainer.lora.names import base_layers

NAMED = 3
"""Number of layers named in an error."""


@dataclass(frozen=True)
class _Source:
    """A layer of the file, and those of its rows that belong to one layer of the model."""

    layer: str
    rows: Rows | None


class TrainingAdapter:
    """A LoRA that is part of the base while another is trained.

    places: path of a layer of the UNet -> the layers of the file with its delta.
    """

    def __init__(self, changes: LoraChanges, places: Mapping[str, list[_Source]]) -> None:
        self.path = changes.header.path
        self.sha256 = file_hashes(self.path)[0]
        self._changes = changes
        self._places = places
        self._kept: dict[str, list[WeightChange]] = {}
        """The factors of the layers that `delta` was called for."""

    @classmethod
    def of(cls, changes: LoraChanges, base: Parts) -> TrainingAdapter:
        """Match an adapter with a base, whose models may be on the meta device. Raises
        LoraFileError if it is of another family, has layers that the base does not have, or has
        broken weights.
        """
        changes.require_family(base.family)
        layers, places = base_layers(base), dict[str, list[_Source]]()
        unknown = []
        for name, layer in changes.layers.items():
            found = layers.find(layer.part, layer.path, flat=layer.layout.flat)
            if found is None or found.part != "unet":
                unknown.append(name)
                continue
            for path, rows in found.pieces or ((found.path, None),):
                places.setdefault(path, []).append(_Source(name, rows))
        if unknown:
            raise LoraFileError(
                "{count} of the {total} layers of the training adapter {path} are not in the base"
                " model, such as {names}",
                hint="Choose the training adapter that was made for this model.",
                path=changes.header.path,
                count=len(unknown),
                total=len(changes.layers),
                names=", ".join(unknown[:NAMED]),
            )
        adapter = cls(changes, places)
        for path in places:
            adapter._require_usable(path, tuple(base.unet.get_submodule(path).weight.shape))
        return adapter

    def _require_usable(self, path: str, shape: tuple[int, ...]) -> None:
        """Raises LoraFileError if the delta of a layer has another shape, or is not finite."""
        ours = (shape[0], math.prod(shape[1:]))
        for change in self._read(path):
            theirs = (change.height, change.width)
            if theirs != ours:
                raise LoraFileError(
                    "{path}: {layer} is {theirs}, and in the base model {ours}",
                    hint="Choose the training adapter that was made for this model.",
                    path=self.path,
                    layer=path,
                    theirs=" x ".join(map(str, theirs)),
                    ours=" x ".join(map(str, ours)),
                )
            if not change.is_finite():
                raise LoraFileError(
                    "{path}: the weights of {layer} are NaN or infinite",
                    hint="Download the file again.",
                    path=self.path,
                    layer=path,
                )

    def delta(self, path: str) -> torch.Tensor | None:
        """What is added to the weight of the UNet's layer at this path, (out, in * height * width)
        in float32; None: nothing.
        """
        if path not in self._places:
            return None
        changes = self._read(path)
        self._kept[path] = [
            change.to(self._changes.dtype_of(place.layer))
            for change, place in zip(changes, self._places[path], strict=True)
        ]
        return sum(change.delta() for change in changes)  # type: ignore[return-value]

    def _read(self, path: str) -> list[WeightChange]:
        found = []
        for place in self._places[path]:
            change = self._changes.read(place.layer)
            # an unexpected height is left alone, for _require_usable to report
            if place.rows is not None and change.height == place.rows.of:
                change = change.rows(place.rows.first, place.rows.count)
            found.append(change)
        return found

    @contextlib.contextmanager
    def taken_out(self, unet: Any) -> Iterator[None]:
        """A context manager in which `unet` computes as without this adapter, which is merged into
        its weights. Its layers may have adapters of their own.
        """
        with contextlib.ExitStack() as hooks:
            for path, changes in self._kept.items():
                layer = unet.get_submodule(path)
                layer = getattr(layer, "base_layer", layer)
                hooks.callback(layer.register_forward_hook(_subtracting(changes)).remove)
            yield


def _subtracting(changes: list[WeightChange]) -> Callable[..., torch.Tensor]:
    def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for change in changes:
            output = output - _effect(layer, change, inputs[0].to(output.dtype)).to(output.dtype)
        return output

    return hook


def _effect(layer: Any, change: WeightChange, inputs: torch.Tensor) -> torch.Tensor:
    """What `change` adds to the layer's output for these inputs."""
    factors = (change.whole,) if change.up is None else (change.down, change.up)
    first, *rest = (one.to(inputs.device, inputs.dtype) for one in factors if one is not None)
    if not isinstance(layer, torch.nn.Conv2d):
        found = F.linear(inputs, first.flatten(1))
        return change.scale * (F.linear(found, rest[0]) if rest else found)
    kernel = first.reshape(first.shape[0], layer.in_channels, *layer.kernel_size)
    found = F.conv2d(inputs, kernel, None, layer.stride, layer.padding, layer.dilation)
    return change.scale * (F.conv2d(found, rest[0][:, :, None, None]) if rest else found)
