"""How large a LoRA will be, before there is one: a checkpoint's header and the settings go in, the
number of its weights comes out.

Called by the tab, to say what a run takes. No torch: the shapes of the checkpoint's layers are in
its header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from lora_trainer.checkpoint import architecture
from lora_trainer.checkpoint.detect import Detected
from lora_trainer.checkpoint.folder import read_folder
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import UNET_PREFIX
from lora_trainer.settings.training import LoraSettings

Shape = tuple[int, ...]


def layers_of(path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
    """The layers of a checkpoint (a file or a diffusers folder), as "unet" and "text_encoder": name
    and shape of each weight of two or more sides.

    Attention and its projections bear the same last names in the WebUI's format and in diffusers'.
    Raises CheckpointError.
    """
    if path.is_dir():
        folder = read_folder(path)
        configs = [component.config for component in folder.text_encoders]
        return {
            "unet": _weights(folder.unet.headers, ""),
            "text_encoder": [layer for config in configs for layer in _text_layers(config)],
        }
    header = read_header(path)
    unused = detected.family == "sd2"
    configs = [
        architecture.text_encoder_config(header, layout, last_layer_unused=unused)
        for layout in detected.text_encoders
    ]
    return {
        "unet": _weights([header], UNET_PREFIX),
        "text_encoder": [layer for config in configs for layer in _text_layers(config)],
    }


def parameter_count(
    layers: Mapping[str, Iterable[tuple[str, Shape]]], settings: LoraSettings
) -> int:
    """Weights of the LoRA that these settings give. 0: none of the layers' names is asked for."""
    shapes = [shape for name, shape in layers["unet"] if _is_target(name, settings.target_modules)]
    if settings.train_text_encoder:
        shapes += [
            shape
            for name, shape in layers["text_encoder"]
            if _is_target(name, settings.text_encoder_targets)
        ]
    # down is rank x inputs (with the kernel, if it is a convolution), up is outputs x rank
    return settings.lora_rank * sum(shape[0] + prod(shape[1:]) for shape in shapes)


def _is_target(name: str, targets: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _weights(headers: Iterable[Header], prefix: str) -> list[tuple[str, Shape]]:
    return [
        (name.removesuffix(".weight"), info.shape)
        for header in headers
        for name, info in header.tensors.items()
        if name.startswith(prefix) and name.endswith(".weight") and len(info.shape) > 1
    ]


def _text_layers(config: Mapping[str, int]) -> list[tuple[str, Shape]]:
    """The linear layers of a CLIP text encoder, by diffusers' names; OpenCLIP stores three of them
    in one tensor.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    square, names = (width, width), ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = [
        *((f"self_attn.{name}", square) for name in names),
        ("mlp.fc1", (inner, width)),
        ("mlp.fc2", (width, inner)),
    ]
    return [
        (f"layers.{number}.{name}", shape)
        for number in range(config["num_hidden_layers"])
        for name, shape in layer
    ]
