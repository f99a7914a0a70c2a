"""SDXL (arXiv 2307.01952): a UNet conditioned on two text encoders, a pooled state and six size
values.

    part             checkpoint file (SGM)               LoRA file
    unet             model.diffusion_model.              lora_unet_ + the checkpoint's path
    text_encoder     conditioner.embedders.0.            lora_te1_ + path
    text_encoder_2   conditioner.embedders.1.            lora_te2_ + path

LoRA files use the checkpoint's names for the UNet, like kohya's: A1111 finds SDXL's upsamplers and
add_embedding under no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint.names import flat, native_flat_path, unet_modules
from lora_trainer.checkpoint.parts import PredictionType
from lora_trainer.errors import CheckpointError
from lora_trainer.families.base import TextStates
from lora_trainer.families.stable_diffusion import (
    FITTING_VAE,
    USUAL_DEPTH,
    XL_CLIP,
    XL_OPEN_CLIP,
    StableDiffusion,
)

if TYPE_CHECKING:
    import torch

PUBLISHED_UNET = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": USUAL_DEPTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
"""The configuration that determines the layer names."""


class _StableDiffusionXL(StableDiffusion):
    id = "sdxl"
    name = "SDXL"
    sd_version = "SDXL"
    latent_scale = 0.13025
    side = 1024
    text_tensors = ("hidden", "pooled")
    text_encoder_layouts = (XL_CLIP, XL_OPEN_CLIP)
    text_encoder_folders = ("text_encoder", "text_encoder_2")
    size_conditioned = True
    # it overflows in fp16, and is not measured in bfloat16
    vae_needs_precision = True
    # as its base was trained (A1111's sd_models_xl.py, diffusers)
    has_empty_negative = True
    lora_prefixes: Mapping[str, str] = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_",
        "text_encoder_2": "lora_te2_",
    }
    spec_beginning = "stable-diffusion-xl"
    spec_implementation = "https://github.com/Stability-AI/generative-models"

    def is_folder(self, path: Path, config: Mapping[str, Any]) -> bool:
        return config.get("addition_embed_type") == "text_time"

    def foreign_vae(self, path: Path) -> CheckpointError:
        return CheckpointError(
            "the VAE in {path} is one of SD1 or SD2, which does not fit an SDXL checkpoint",
            hint=FITTING_VAE,
            path=path,
        )

    def encode_piece(
        self, encoder: Any, ids: torch.Tensor, clip_skip: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The penultimate layer of both encoders without the final norm, regardless of clip skip
        (A1111's default), and the second encoder's pooled state.
        """
        output = encoder(ids, output_hidden_states=True)
        return output.hidden_states[-2], getattr(output, "text_embeds", None)

    def added_conditions(
        self, text: TextStates, sizes: torch.Tensor, dtype: torch.dtype
    ) -> dict[str, torch.Tensor] | None:
        assert text.pooled is not None, "SDXL's text states have a pooled part"
        # sizes stay float32: bfloat16 cannot represent 683, and the embedding's highest frequency
        # has a period of six pixels
        return {"text_embeds": text.pooled.to(dtype), "time_ids": sizes.float()}

    def names_unet_as_file(self, unet: Any) -> bool:
        return True

    def host_path(self, path: str) -> str:
        return native_flat_path(path, flat(unet_modules(PUBLISHED_UNET)))

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "sdxl_base_v1-0"

    def is_named_by(self, version: str) -> bool:
        return version.startswith("sdxl_")

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return "stable-diffusion-xl-v1-base"


SDXL = _StableDiffusionXL()
FAMILIES = (SDXL,)
