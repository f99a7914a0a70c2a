"""Copies a LoRA file with kohya's key names, which every WebUI loads.

The weights are copied byte by byte; alpha is added for layers whose scale is stated elsewhere.
Possible if each layer is one layer in the host: always for SD1, SD2 and SDXL, otherwise if the file
uses the model's own layer names rather than diffusers'.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from lora_trainer.checkpoint.header import TensorInfo
from lora_trainer.errors import LoraFileError
from lora_trainer.families import find
from lora_trainer.files import replace_file
from lora_trainer.lora.file import encode_header, read_header
from lora_trainer.lora.layouts import (
    ENDS,
    KOHYA,
    SD,
    TEXT,
    UNET,
    Layer,
    families_of,
    form_of,
    layers_in,
    split_key,
)
from lora_trainer.lora.scales import IN_HEADER, scales_of

ROLES = {"down": "lora_down.weight", "up": "lora_up.weight"}
"""kohya's names of the two matrices; other suffixes are the same in all formats."""
COPIED_KINDS = frozenset({"LoRA", "LoHa", "LoKr", "GLoRA", "full difference", "norms", "DoRA", ""})


def can_convert(layers: Mapping[str, Layer], families: tuple[str, ...]) -> bool:
    """Whether each layer has a name that every WebUI of its family loads."""
    return bool(families) and all(
        _new_name(layer, family) is not None for family in families for layer in layers.values()
    )


def convert(source: Path, target: Path) -> int:
    """Write the copy atomically. Returns the number of layers. Raises LoraFileError or OSError."""
    header = read_header(source)
    layers = layers_in(header)
    families, _ = families_of(layers, header.metadata)
    if target.exists():
        raise LoraFileError("{path} exists already", hint="Choose another name.", path=target)
    if not layers or not can_convert(layers, families):
        hint = (
            "Its layers do not match the WebUI's one by one, or its model is unknown. Ask its "
            "author for a file for ComfyUI."
        )
        raise LoraFileError(
            "{path} cannot be converted by renaming its keys", hint=hint, path=source
        )
    names = {name: _new_name(layer, families[0]) or "" for name, layer in layers.items()}
    tensors = {_new_key(key, names): info for key, info in header.tensors.items()}
    if len(tensors) < len(header.tensors):
        raise LoraFileError(
            "{path} has two layers that get the same name in the WebUI",
            hint="Ask its author for a file for ComfyUI.",
            path=source,
        )
    # scales in tensors are copied with them
    scales = scales_of(header, layers, lambda info: None)
    alphas = {
        f"{names[name]}.alpha": scale * (layers[name].rank or 1)
        for name, scale in scales.by_layer.items()
        if scale is not None and scale != 1 and not {"alpha", "scale"} & layers[name].roles.keys()
    }
    # first, because the offset of a tensor must be a multiple of its element size
    room = 4 * len(alphas)
    tensors = {
        name: TensorInfo(info.dtype, info.shape, info.start + room, info.end + room)
        for name, info in tensors.items()
    }
    tensors |= {
        name: TensorInfo("F32", (), 4 * index, 4 * index + 4) for index, name in enumerate(alphas)
    }
    metadata = {
        key: value
        for key, value in header.metadata.items()
        if key != IN_HEADER and not key.startswith(("sshs_", "modelspec.hash"))
    }
    known = find(families[0])
    if known is not None and len(families) == 1:
        metadata = {
            "ss_base_model_version": known.base_model_version(None),
            "ss_v2": str(known.is_v2),
            **metadata,
        }

    def write(partial: Path) -> None:
        with source.open("rb") as stream, partial.open("wb") as out:
            out.write(encode_header(tensors, metadata))
            out.write(b"".join(struct.pack("<f", alpha) for alpha in alphas.values()))
            stream.seek(header.data_start)
            shutil.copyfileobj(stream, out, 1 << 20)

    replace_file(target, write)
    return len(layers)


def _new_name(layer: Layer, family: str) -> str | None:
    """kohya's name of a layer, or None if there is no equivalent."""
    if not layer.kinds <= COPIED_KINDS or any(
        end.startswith("lora_magnitude_vector") for end in layer.weights
    ):
        return None
    if layer.layout is KOHYA:
        return layer.name
    known = find(family)
    if layer.part == UNET and (family in SD or form_of(layer, family) == "native"):
        return "lora_unet_" + (layer.path if known is None else known.host_path(layer.path))
    heads = {TEXT: "lora_te1_"} if known is None else known.lora_prefixes
    if layer.part in heads and layer.path.startswith("text_model_"):
        return heads[layer.part] + layer.path
    return None


def _new_key(key: str, names: Mapping[str, str]) -> str:
    parsed = split_key(key)
    if parsed is None or parsed[0] not in names:
        return key
    name, end, meaning = parsed
    usual = end in ENDS and not ENDS[end].style
    return f"{names[name]}.{end if usual else ROLES.get(meaning.role, end)}"
