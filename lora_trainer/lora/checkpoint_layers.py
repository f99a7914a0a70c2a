"""The layers of a checkpoint's denoiser, by the names in the file, for every model of host_layers.
Read from the header alone; only `rows` needs torch.

    CheckpointLayers.of(path) -> layers
    layers.rows("double_blocks.0.img_attn.qkv", numbers) -> weights, float32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.checkpoint.header import Header, TensorInfo, read_header
from lora_trainer.errors import CheckpointError
from lora_trainer.lora import host_layers
from lora_trainer.lora.host_layers import HOST_NAMES, NEO, Place, Shape
from lora_trainer.lora.layouts import UNET
from lora_trainer.lora.tensors import read_number, read_rows

if TYPE_CHECKING:
    import torch

HEADS = ("model.diffusion_model.", "diffusion_model.", "net.", "")
"""Prefixes of the denoiser's tensors in a checkpoint."""
SCALES = ("scale_weight", "weight_scale")
"""The scale of a weight in fp8: its names in older and newer files."""
FP8 = {"F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2"}
"""safetensors' dtype -> id in rounding.PRECISIONS."""


@dataclass(frozen=True, kw_only=True)
class CheckpointLayers:
    """The layers of a checkpoint's denoiser."""

    header: Header
    head: str
    """The prefix of their names: one of HEADS."""
    weights: Mapping[str, Shape]
    """Name without prefix -> shape, of the matrices and convolutions in 8 or more bits."""
    shapes: Mapping[str, Shape]
    """Name -> shape, of the layers that a known model has."""
    models: tuple[str, ...]
    """The models whose layers match best, more than half of them; several if they match equally."""

    @classmethod
    def of(cls, path: Path) -> CheckpointLayers:
        """Raises CheckpointError for an unreadable file, or one without layers of a known model."""
        header = read_header(path)
        every = {model: _own_shapes(model) for model in host_layers.models()}
        names = {name for shapes in every.values() for name in shapes}
        found = {head: _weights(header, head) for head in HEADS}
        head = max(HEADS, key=lambda head: len(names & found[head].keys()))
        shapes = {layer: shape for layer, shape in found[head].items() if layer in names}
        if not shapes:
            raise CheckpointError(
                "{path} has no layers of a known model",
                hint="Choose a checkpoint, or the file of a diffusion model alone.",
                path=path,
            )
        shares = {
            model: sum(shapes.get(layer) == shape for layer, shape in own.items()) / len(own)
            for model, own in every.items()
        }
        top = max(shares.values())
        return cls(
            header=header,
            head=head,
            weights={layer: shape for layer, shape in found[head].items() if len(shape) > 1},
            shapes=shapes,
            models=tuple(model for model, share in shares.items() if share == top and top > 0.5),
        )

    def by_flat_name(self) -> Mapping[str, Place]:
        """Name with underscores instead of dots -> layer."""
        return {
            flat(layer): Place(part=UNET, layer=layer, shape=shape, whole=shape)
            for layer, shape in self.weights.items()
        }

    def weight(self, layer: str) -> TensorInfo:
        return self.header.tensors[f"{self.head}{layer}.weight"]

    def scale(self, layer: str) -> float | None:
        """The scale of a weight in fp8; None if it has none. Raises LoraFileError."""
        for end in SCALES:
            info = self.header.tensors.get(f"{self.head}{layer}.{end}")
            if info is not None and prod(info.shape) == 1 and self.weight(layer).dtype in FP8:
                return read_number(self.header, info)
        return None

    def rows(self, layer: str, numbers: torch.Tensor) -> torch.Tensor | None:
        """The rows `numbers` of a weight, not multiplied by its scale: (len(numbers), width),
        float32. None for an unsupported dtype. Raises LoraFileError.
        """
        return read_rows(self.header, self.weight(layer), numbers)


def _weights(header: Header, head: str) -> dict[str, Shape]:
    return {
        name.removeprefix(head).removesuffix(".weight"): info.shape
        for name, info in header.tensors.items()
        if name.startswith(head) and name.endswith(".weight")
        if info.dtype[0] in "FB" and "F4" not in info.dtype
    }


def flat(layer: str) -> str:
    return layer.replace(".", "_")


def _own_shapes(model: str) -> Mapping[str, Shape]:
    host = next(one for one in (NEO, *HOST_NAMES) if host_layers.runs(one, model))
    known = host_layers.layers(host, model)
    return {layer: shape for (part, layer), shape in known.items() if part == UNET}
