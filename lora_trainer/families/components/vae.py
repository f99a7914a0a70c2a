"""Pixels <-> latents with diffusers' AutoencoderKL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lora_trainer.families.base import TILE


def tile(vae: Any, pixels_per_latent: int) -> None:
    """Have larger pictures encoded and decoded in tiles, whose edges are blended: the memory is
    that of one tile. The result differs a little, because normalization and attention see a tile
    instead of the picture.
    """
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // pixels_per_latent


def encode_image(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 2 x channels, h, w) float32 on the CPU: mean
    and standard deviation of the scaled latents.
    """
    parameter = next(vae.parameters())
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        distribution = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    mean = distribution.mean.float() - shift if shift else distribution.mean.float()
    moments: torch.Tensor = torch.cat([mean, distribution.std.float()], 1) * scale
    return moments.cpu()


def draw_latents(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Moments (B, 2 x channels, h, w), Gaussian noise (B, channels, h, w) -> latents (B, channels,
    h, w).
    """
    mean, deviation = moments.chunk(2, 1)
    return mean + deviation * noise


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, channels, h, w) -> pixels (B, 3, H, W) in [0, 1], float32 on the CPU."""
    parameter = next(vae.parameters())
    # without the UNet's autocast: SDXL's VAE overflows in fp16
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = vae.decode(scaled.to(parameter.device, parameter.dtype)).sample
    return F.hardtanh(pixels.float().cpu() / 2 + 0.5, 0.0, 1.0)
