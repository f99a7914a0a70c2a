"""FLUX.2 klein's transformer, text states and VAE in diffusers' and transformers' models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lora_trainer.families.base import TILE, Shape
from lora_trainer.families.components.patches import SIDE

VAE_SIDE = 8
"""Pixels to a latent pixel of the VAE, before latents are patches."""
EPSILON = 1e-4
"""In the normalization of the latents."""


def build_transformer(config: dict[str, Any]) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel.from_config(config)


# --- text -----------------------------------------------------------------------------------------


def stacked_states(
    model: Any, texts: Sequence[Sequence[int]], length: int, padding: int, layers: Sequence[int]
) -> torch.Tensor:
    """Token ids of each text -> (B, length, layers x C): what these layers are given, side by side.
    Texts are cut or padded at the end; the states of the padding, which sees the text only, belong
    to the result.
    """
    device = model.embed_tokens.weight.device
    ids = torch.full((len(texts), length), padding)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        kept = list(text)[:length]
        ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        mask[row, : len(kept)] = 1
    found = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    return torch.cat([found[layer] for layer in layers], 2)


# --- VAE ------------------------------------------------------------------------------------------


class _Statistics(torch.nn.Module):
    """Mean and variance of each channel of a patch of latents, under the names of a batch norm's
    buffers. As parameters they are loaded as weights are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = torch.nn.Parameter(torch.zeros(channels))
        self.running_var = torch.nn.Parameter(torch.ones(channels))


def build_vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2.from_config(config)
    vae.bn = _Statistics(vae.config.latent_channels * SIDE**2)
    return vae


def tile(vae: Any) -> None:
    """Have larger pictures encoded and decoded in tiles, whose edges are blended."""
    vae.use_tiling = True
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // VAE_SIDE


def encode_image(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 2 x channels, h, w) float32 on the CPU: the
    normalized mean of patches of 2 x 2, and a deviation of 0. The model is made for the mean.
    """
    parameter = next(vae.parameters())
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        mean = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist.mode()
    patches = F.pixel_unshuffle(mean.float().cpu(), SIDE)
    center, spread = _normalization(vae)
    patches = (patches - center) / spread
    return torch.cat([patches, torch.zeros_like(patches)], 1)


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, channels, h, w) -> pixels (B, 3, H, W) in [0, 1], float32 on the CPU."""
    parameter = next(vae.parameters())
    center, spread = _normalization(vae)
    found = F.pixel_shuffle(latents.float().cpu() * spread + center, SIDE)
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        pixels = vae.decode(found.to(parameter.device, parameter.dtype)).sample
    return F.hardtanh(pixels.float().cpu() / 2 + 0.5, 0.0, 1.0)


def _normalization(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of a patch, (1, channels, 1, 1)."""
    mean, variance = (
        values.detach().float().cpu().view(1, -1, 1, 1)
        for values in (vae.bn.running_mean, vae.bn.running_var)
    )
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


# --- noise and prediction -------------------------------------------------------------------------


def sampling_shift(shape: Shape, step_count: int) -> float:
    """The shift with which samples of latents of this shape, (..., h, w), are made in so many
    steps: exp(mu), with mu fitted to the number of tokens by Black Forest Labs
    (compute_empirical_mu in https://github.com/black-forest-labs/flux2).
    """
    tokens = shape[-2] * shape[-1]
    of_many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(of_many)
    of_few = 8.73809524e-05 * tokens + 1.89833333
    # through 10 and 200 steps
    return math.exp(of_few + (of_many - of_few) * (step_count - 10) / 190)


def predicted_flow(
    model: Any, noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Noisy latents (B, C, h, w), times (B,) in (0, 1), text (B, length, C') -> the flow (B, C, h,
    w).
    """
    dtype, device = next(model.parameters()).dtype, noisy.device
    count, channels, height, width = noisy.shape
    predicted = model(
        hidden_states=noisy.to(dtype).flatten(2).transpose(1, 2),
        encoder_hidden_states=hidden.to(dtype),
        # the model multiplies by 1000
        timestep=times.expand(count).float(),
        img_ids=torch.cartesian_prod(*_axes(1, height, width, 1, device=device)),
        txt_ids=torch.cartesian_prod(*_axes(1, 1, 1, hidden.shape[1], device=device)),
        guidance=None,
        return_dict=False,
    )[0]
    return predicted.transpose(1, 2).reshape(count, channels, height, width)  # type: ignore[no-any-return]


def _axes(*sizes: int, device: torch.device) -> list[torch.Tensor]:
    """Positions in time, row, column and text."""
    return [torch.arange(size, device=device) for size in sizes]
