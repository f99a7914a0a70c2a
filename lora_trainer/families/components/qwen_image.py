"""Pixels <-> latents with diffusers' AutoencoderKLQwenImage, the VAE of Qwen-Image and Wan 2.1: a
video VAE, which takes an image as one frame. Its latents are normalised per channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lora_trainer.families.base import TILE


def build_vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(**config)


def tile(vae: Any) -> None:
    """Have larger pictures encoded and decoded in tiles that overlap by a quarter."""
    stride = TILE * 3 // 4
    vae.enable_tiling(TILE, TILE, stride, stride)


def encode_image(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 2 x channels, h, w) float32 on the CPU: mean
    and standard deviation of the normalised latents.
    """
    parameter = next(vae.parameters())
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        frames = pixels.to(parameter.device, parameter.dtype).unsqueeze(2)
        distribution = vae.encode(frames).latent_dist
    mean, deviation = distribution.mean.float().cpu(), distribution.std.float().cpu()
    center, spread = _statistics(vae)
    return torch.cat([(mean - center) / spread, deviation / spread], 1).squeeze(2)


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, channels, h, w) -> pixels (B, 3, H, W) in [0, 1], float32 on the CPU."""
    parameter = next(vae.parameters())
    center, spread = _statistics(vae)
    frames = latents.float().cpu().unsqueeze(2) * spread + center
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        pixels = vae.decode(frames.to(parameter.device, parameter.dtype)).sample
    return F.hardtanh(pixels.float().cpu().squeeze(2) / 2 + 0.5, 0.0, 1.0)


def _statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel, (1, channels, 1, 1, 1)."""
    return tuple(
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )  # type: ignore[return-value]
