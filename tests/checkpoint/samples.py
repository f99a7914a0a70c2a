"""Checkpoints for the tests: tiny ones in memory and on disk, and the headers of full-size ones,
whose weights nobody needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer import families
from lora_trainer.checkpoint import names
from lora_trainer.checkpoint.header import BYTES_EACH, Header, TensorInfo
from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from tests.checkpoint.write import write_checkpoint
from tests.tiny import tiny_parts

FAMILIES = ("sd1", "sd2", "sdxl")

FULL_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""The published configurations of SD 1.5, SD 2.1 and SDXL 1.0, where they differ from the library's
defaults.
"""
FULL_TEXT_ENCODERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd1": ({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},),
    "sd2": ({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23},),
    "sdxl": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
        },
    ),
}


def layouts(family: str) -> tuple[names.TextEncoderLayout, ...]:
    """Where the text encoders of this family's original files lie."""
    return families.get(family).text_encoder_layouts  # type: ignore[attr-defined, no-any-return]


@cache
def random_parts(family: str) -> Parts:
    """Tiny parts in which no two tensors are alike: fresh norms are all ones and zeros, and would
    hide a wrong name. Change none.
    """
    parts = tiny_parts(family)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for model in (parts.unet, parts.vae, *parts.text_encoders):
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return parts


def tiny_file(
    folder: Path, family: str = "sd1", dtype: torch.dtype = torch.float32, **schedule: Any
) -> Path:
    """A tiny checkpoint in WebUI format."""
    parts = replace(random_parts(family), schedule=NoiseSchedule(**schedule))
    return write_checkpoint(parts, folder / f"{family}.safetensors", dtype)


@cache
def full_models(family: str) -> tuple[Any, Any, list[Any]]:
    """UNet, VAE and text encoders in full size, without memory. Change none."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL_UNETS[family])
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        classes = (CLIPTextModel, CLIPTextModelWithProjection)
        return (
            unet,
            vae,
            [
                build(CLIPTextConfig(**values))
                for build, values in zip(classes, FULL_TEXT_ENCODERS[family], strict=False)
            ],
        )


@cache
def full_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a full-size checkpoint: name in the file, shape in the file."""
    unet, vae, text_encoders = full_models(family)
    unet_modules, vae_modules = names.unet_modules(unet.config), names.vae_modules(vae.config)
    found = [
        (names.stored_in_unet(name, unet_modules), tensor)
        for name, tensor in unet.state_dict().items()
    ]
    found += [
        (names.stored_in_vae(name, vae_modules), tensor)
        for name, tensor in vae.state_dict().items()
    ]
    for encoder, layout in zip(text_encoders, layouts(family), strict=True):
        found += [
            (names.stored_in_text_encoder(name, layout), tensor)
            for name, tensor in encoder.state_dict().items()
        ]
    shapes = {stored.name: _file_shape(stored, tuple(tensor.shape)) for stored, tensor in found}
    if family == "sd2":
        for name in [name for name in shapes if ".resblocks.22." in name]:
            shapes[name.replace(".resblocks.22.", ".resblocks.23.")] = shapes[name]
    return shapes


def _file_shape(stored: names.Stored, shape: tuple[int, ...]) -> tuple[int, ...]:
    if stored.third is not None:
        return (3 * shape[0], *shape[1:])
    if stored.form == "transposed":
        return shape[::-1]
    return (*shape, 1, 1) if stored.form == "1x1 convolution" else shape


def header_of(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
    path: str = "model.safetensors",
) -> Header:
    """The header a file with these tensors would have."""
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        size = prod(shape) * BYTES_EACH[dtype]
        tensors[name] = TensorInfo(dtype, tuple(shape), offset, offset + size)
        offset += size
    return Header(
        path=Path(path),
        tensors=tensors,
        metadata=dict(metadata or {}),
        data_start=8,
        file_size=8 + offset,
    )


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    """A file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def full_file(folder: Path, family: str) -> Path:
    """A full-size checkpoint file of zeros, which takes next to no disk space."""
    header = header_of(full_shapes(family), metadata={"modelspec.prediction_type": "epsilon"})
    tensors = {
        name: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
        for name, info in header.tensors.items()
    }
    path = folder / f"{family}.safetensors"
    with path.open("wb") as file:
        text = safetensors_bytes({"__metadata__": header.metadata, **tensors})
        file.write(text)
        file.truncate(len(text) + header.file_size - header.data_start)
    return path
