"""Writes Parts as a single-file checkpoint with the WebUI's names. `load` reads it back; A1111 and
Forge load it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lora_trainer import files
from lora_trainer.checkpoint import names
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.families.stable_diffusion import StableDiffusion


def write_checkpoint(
    parts: Parts,
    path: Path,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write UNet, VAE and text encoders (those not None) atomically as one .safetensors file, with
    weights in `dtype`.

    The noise schedule goes into the metadata and the marker tensors `v_pred` and `ztsnr`. A1111
    1.10.1 reads neither: it needs a sidecar NAME.yaml for an SD1 or SDXL v-prediction checkpoint.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in _stored_tensors(parts)
    }
    tensors |= _positions_and_markers(parts)
    files.replace_file(
        path,
        lambda partial: save_file(
            tensors, partial, metadata=_metadata(parts) | dict(metadata or {})
        ),
    )
    return path


def _family(parts: Parts) -> StableDiffusion:
    assert isinstance(parts.family, StableDiffusion), "a WebUI file of a UNet"
    return parts.family


def _stored_tensors(parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its name in the file."""
    if parts.unet is not None:
        modules = names.unet_modules(parts.unet.config)
        yield from _in_form(parts.unet, lambda name: names.stored_in_unet(name, modules))
    if parts.vae is not None:
        vae_modules = names.vae_modules(parts.vae.config)
        yield from _in_form(parts.vae, lambda name: names.stored_in_vae(name, vae_modules))
    for encoder, layout in zip(
        parts.text_encoders, _family(parts).text_encoder_layouts, strict=bool(parts.text_encoders)
    ):
        yield from _in_form(
            encoder, lambda name, layout=layout: names.stored_in_text_encoder(name, layout)
        )
        if _family(parts).last_text_layer_unused:
            yield from _unused_layer(encoder, layout)


def _in_form(model: Any, place: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's tensors in the file's form, with query, key and value concatenated where needed."""
    thirds: dict[str, list[torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        stored: Stored = place(name)
        if stored.third is None:
            yield stored.name, _reshaped(tensor, stored)
        else:
            thirds.setdefault(stored.name, [tensor] * 3)[stored.third] = tensor
    for name, tensors in thirds.items():
        yield name, torch.cat(tensors)


def _reshaped(tensor: torch.Tensor, stored: Stored) -> torch.Tensor:
    if stored.form == "transposed":
        return tensor.t()
    if stored.form == "1x1 convolution":
        return tensor[:, :, None, None]
    return tensor


def _unused_layer(
    encoder: Any, layout: names.TextEncoderLayout
) -> Iterator[tuple[str, torch.Tensor]]:
    """SD2 files have one more layer than is used. With zero weights it is an identity."""
    last = len(encoder.text_model.encoder.layers) - 1
    layer = {
        f"text_model.encoder.layers.{last + 1}.{name}": torch.zeros_like(tensor)
        for name, tensor in encoder.text_model.encoder.layers[last].state_dict().items()
    }
    yield from _in_form(_StateDict(layer), lambda name: names.stored_in_text_encoder(name, layout))


class _StateDict:
    """A state dict without a module."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._tensors


def _positions_and_markers(parts: Parts) -> dict[str, torch.Tensor]:
    """Position ids of CLIP, and the markers of v-prediction models."""
    tensors: dict[str, torch.Tensor] = {}
    for encoder, layout in zip(
        parts.text_encoders, _family(parts).text_encoder_layouts, strict=bool(parts.text_encoders)
    ):
        if layout.style == "clip":
            tensors[layout.prefix + "embeddings.position_ids"] = torch.arange(
                encoder.config.max_position_embeddings
            )[None]
    if parts.schedule.prediction_type == "v_prediction":
        tensors["v_pred"] = torch.zeros(0)
    if parts.schedule.zero_terminal_snr:
        tensors["ztsnr"] = torch.zeros(0)
    return tensors


def _metadata(parts: Parts) -> dict[str, str]:
    is_v = parts.schedule.prediction_type == "v_prediction"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": parts.family.spec_architecture(parts.schedule.prediction_type),
        "modelspec.prediction_type": "v" if is_v else "epsilon",
    }
