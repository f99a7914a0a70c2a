"""Merges LoRA files into a loaded model, as the WebUI does for `<lora:NAME:strength>`:

    W + strength * alpha / rank * up @ down                for each layer, one file after the other

The demo's report evaluates LoRA files with it, not the adapters they were exported from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from lora_trainer.adapters import types
from lora_trainer.adapters.base import ALPHA_END, LoraType
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.names import webui_layers


@dataclass(frozen=True)
class LoraTag:
    """One `<lora:NAME:strength>`."""

    file: Path
    strength: float


@contextmanager
def applied(parts: Parts, loras: Sequence[LoraTag]) -> Iterator[None]:
    """Merge the LoRAs for the block; afterwards every weight is bit-identical to before.

    Raises LoraFileError if a file has a layer that the models lack.
    """
    layers = webui_layers(parts)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    seen: set[str] = set()
    try:
        for lora in loras:
            for name, change in effects(lora.file).items():
                if name not in layers:
                    raise LoraFileError(
                        "{path} has a layer {name}, which is missing from this base model",
                        hint="Use a base model of the family that it was trained for.",
                        path=lora.file,
                        name=name,
                    )
                for one in layers[name]:
                    weight, rows = one.layer.weight, one.rows
                    if name not in seen:
                        kept.append((weight, weight.detach().clone()))
                    own = change if rows is None else change[rows.first : rows.first + rows.count]
                    with torch.no_grad():
                        weight += lora.strength * own.reshape(weight.shape).to(weight)
                seen.add(name)
        yield
    finally:
        for weight, before in kept:
            with torch.no_grad():
                weight.copy_(before)


def effects(file: Path) -> dict[str, torch.Tensor]:
    """Each layer's weight delta at strength 1, float32: (out, in), or (out, in, height, width).
    Raises LoraFileError for an unknown LoRA type.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        # layer names have no dots in the WebUI's form
        name, dot, end = key.partition(".")
        layers.setdefault(name, {})[dot + end] = tensor
    return {name: _type_of(file, tensors).effect(tensors) for name, tensors in layers.items()}


def _type_of(file: Path, tensors: Mapping[str, torch.Tensor]) -> LoraType:
    ends = set(tensors) - {ALPHA_END}
    for lora_type in types.every():
        if ends == set(lora_type.webui_ends):
            return lora_type
    raise LoraFileError(
        "{path} contains {name}, which belongs to no supported type of LoRA",
        hint="`inspect` shows what it is.",
        path=file,
        name=", ".join(sorted(ends)),
    )
