"""The loss: noise and timesteps come in, one number per image comes out. Families differ only in
the conditioning they are handed.
"""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.training.encode import TextStates
from lora_trainer.training.schedule import NoiseLevels


def denoising_loss(
    unet: Any,
    levels: NoiseLevels,
    latents: torch.Tensor,
    text: TextStates,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    size_conditions: torch.Tensor | None = None,
    min_snr_gamma: float | None = None,
) -> torch.Tensor:
    """Squared error of the UNet's prediction, one value per image: latents (B, 4, h, w) -> (B,),
    float32.

    size_conditions: SDXL's (B, 6) of original size, crop and target size; None for SD1 and SD2.
    """
    noisy = levels.add_noise(latents, noise, timesteps)
    target = levels.target(latents, noise, timesteps)
    predicted = predict(unet, noisy, timesteps, text, size_conditions)
    # float32: bfloat16 keeps about three digits, and the loss curve needs more
    losses = (predicted.float() - target.float()).pow(2).flatten(1).mean(1)
    return (
        losses
        if min_snr_gamma is None
        else losses * levels.min_snr_weight(timesteps, min_snr_gamma)
    )


def predict(
    unet: Any,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: TextStates,
    size_conditions: torch.Tensor | None,
) -> torch.Tensor:
    """The UNet's output for noisy latents, (B, 4, h, w), in the type the UNet computes in."""
    dtype = next(unet.parameters()).dtype
    added = None
    if size_conditions is not None:
        assert text.pooled is not None, "SDXL's text states have a pooled part"
        # sizes stay float32: bfloat16 has no 683, and the embedding's quickest wave turns once in
        # six pixels
        added = {"text_embeds": text.pooled.to(dtype), "time_ids": size_conditions.float()}
    prediction = unet(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=text.hidden.to(dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return prediction  # type: ignore[no-any-return]
