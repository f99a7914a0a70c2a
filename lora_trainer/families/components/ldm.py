"""UNet, AutoencoderKL and CLIP text encoders in a single-file checkpoint or a diffusers folder:
headers -> loadable components.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.checkpoint import architecture, names
from lora_trainer.checkpoint.folder import Folder, FolderComponent
from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.names import Stored, TextEncoderLayout
from lora_trainer.checkpoint.parts import Component, Components
from lora_trainer.checkpoint.tensors import TensorAt, tensors_of

if TYPE_CHECKING:
    from lora_trainer.families.stable_diffusion import StableDiffusion


def in_file(
    header: Header, family: StableDiffusion, layouts: Iterable[TextEncoderLayout]
) -> Components:
    """The components of a single-file checkpoint with text encoders at `layouts`. EMA weights
    (`model_ema.*`) are ignored, as in A1111.
    """
    tensors = tensors_of([header])
    text_encoders = tuple(_text_encoder(header, layout, family, tensors) for layout in layouts)
    config = architecture.unet_config(
        header, family, pooled_width=text_encoders[-1].config["projection_dim"]
    )
    modules = names.unet_modules(config)
    has_vae = names.VAE_PREFIX + "decoder.conv_in.weight" in header.tensors
    return Components(
        unet=Component(
            part="UNet",
            config=config,
            tensors=tensors,
            place=lambda name: names.stored_in_unet(name, modules),
            build=_build_unet,
            prefix=names.UNET_PREFIX,
        ),
        text_encoders=text_encoders,
        vae=vae_in_file(header, family, names.VAE_PREFIX) if has_vae else None,
    )


def _text_encoder(
    header: Header,
    layout: TextEncoderLayout,
    family: StableDiffusion,
    tensors: Mapping[str, TensorAt],
) -> Component:
    config = architecture.text_encoder_config(
        header, layout, last_layer_unused=family.last_text_layer_unused
    )
    config["with_projection"] = family.size_conditioned and layout.style == "open_clip"
    return Component(
        part="text encoder",
        config=config,
        tensors=tensors,
        place=lambda name: names.stored_in_text_encoder(name, layout),
        build=_build_text_encoder,
        prefix=layout.prefix,
    )


def vae_in_file(header: Header, family: StableDiffusion, prefix: str) -> Component:
    """A VAE in a checkpoint or in its own file, with or without prefix, with LDM's or diffusers'
    names.
    """
    config = architecture.vae_config(header, family, prefix=prefix)
    return _vae(config, tensors_of([header]), names.vae_modules(config), prefix)


def vae_of_headers(
    header: Header, headers: Iterable[Header], space: architecture.LatentSpace, prefix: str
) -> Component:
    """A VAE that may have no quantisation layers, and a shift: `latent_shift`. header: with the
    tensors of all files.
    """
    config = architecture.vae_config(header, space, prefix=prefix)
    config |= {
        "shift_factor": getattr(space, "latent_shift", None),
        "use_quant_conv": prefix + "quant_conv.weight" in header.tensors,
        "use_post_quant_conv": prefix + "post_quant_conv.weight" in header.tensors,
    }
    return _vae(config, tensors_of(headers), names.vae_modules(config), prefix)


def in_folder(folder: Folder) -> Components:
    """The components of a diffusers folder."""
    text_encoders = [
        _of_folder("text encoder", each, _build_text_encoder) for each in folder.text_encoders
    ]
    return Components(
        unet=_of_folder("UNet", folder.unet, _build_unet),
        text_encoders=tuple(
            replace(each, config={**each.config, "with_projection": number == 1})
            for number, each in enumerate(text_encoders)
        ),
        vae=vae_of_folder(folder.vae) if folder.vae else None,
    )


def _of_folder(part: Any, component: FolderComponent, build: Any) -> Component:
    return Component(
        part=part,
        config=component.config,
        tensors=tensors_of(component.headers),
        place=Stored,
        build=build,
    )


def vae_in_folder(component: FolderComponent, family: StableDiffusion, path: Path) -> Component:
    """A VAE in its own diffusers folder. Raises CheckpointError if its scaling_factor is another
    family's. `path` is for the message.
    """
    stated = component.config.get("scaling_factor")
    if isinstance(stated, (int, float)) and not math.isclose(stated, family.latent_scale):
        raise family.foreign_vae(path)
    config = {**component.config, "scaling_factor": family.latent_scale}
    return vae_of_folder(replace(component, config=config))


def vae_of_folder(component: FolderComponent) -> Component:
    """A VAE of a diffusers folder, as its config.json says."""
    # diffusers' defaults: an old config.json has only what differs
    usual = {"block_out_channels": (64,), "layers_per_block": 1}
    modules = names.vae_modules({**usual, **component.config})
    return _vae(component.config, tensors_of(component.headers), modules, "")


def _vae(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorAt],
    modules: Mapping[str, str],
    prefix: str,
) -> Component:
    return Component(
        part="VAE",
        config=config,
        tensors=tensors,
        place=partial(names.stored_in_vae, modules=modules, prefix=prefix, tensor_names=tensors),
        build=_build_vae,
        prefix=prefix,
    )


def _build_unet(config: Mapping[str, Any]) -> Any:
    return UNet2DConditionModel.from_config(dict(config))


def _build_vae(config: Mapping[str, Any]) -> Any:
    return AutoencoderKL.from_config(dict(config))


def _build_text_encoder(config: Mapping[str, Any]) -> Any:
    values = dict(config)
    model_class = CLIPTextModelWithProjection if values.pop("with_projection") else CLIPTextModel
    return model_class(CLIPTextConfig.from_dict(values))


def answers_like_v_prediction(unet: Any) -> bool:
    """Whether an SD2 UNet predicts v: at the last timestep its output for a bright input is dark.

    From A1111 1.10.1, modules/sd_models_config.py: mean(unet(x) - x) < -1 for x = 0.5 and text 0.5.
    """
    sample = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=unet.dtype)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=unet.dtype)
    with torch.no_grad():
        answer = unet(sample, 999, encoder_hidden_states=text).sample
    return bool((answer - sample).float().mean() < -1)
