"""The loss: noise and timesteps come in, one number per image comes out. How noise is added and
what is predicted are the family's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lora_trainer.families.base import NoiseProcess, TextStates

Predict = Callable[[torch.Tensor, torch.Tensor, TextStates, torch.Tensor], torch.Tensor]
"""Noisy latents, timesteps, text states and size conditions -> the model's answer:
`Family.predict`.
"""


def denoising_loss(
    predict: Predict,
    noise_process: NoiseProcess,
    latents: torch.Tensor,
    text: TextStates,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    size_conditions: torch.Tensor,
    min_snr_gamma: float | None = None,
) -> torch.Tensor:
    """Squared error of the model's prediction, one value per image: latents (B, C, h, w) -> (B,),
    float32.

    size_conditions: (B, 6) of original size, crop and target size.
    """
    noisy = noise_process.add_noise(latents, noise, timesteps)
    target = noise_process.target(latents, noise, timesteps)
    predicted = predict(noisy, timesteps, text, size_conditions)
    # float32: bfloat16 keeps about three digits, and the loss curve needs more
    losses = (predicted.float() - target.float()).pow(2).flatten(1).mean(1)
    return (
        losses
        if min_snr_gamma is None
        else losses * noise_process.min_snr_weight(timesteps, min_snr_gamma)
    )
