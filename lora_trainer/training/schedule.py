"""The noise levels a checkpoint was trained with, and how much each counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

from lora_trainer.checkpoint.parts import NoiseSchedule, PredictionType


@dataclass(frozen=True)
class NoiseLevels:
    """alphas_cumprod: (T,) float32, the share of signal left at each timestep (DDPM, arXiv
    2006.11239).
    """

    alphas_cumprod: torch.Tensor
    prediction_type: PredictionType

    @classmethod
    def of(cls, schedule: NoiseSchedule, device: torch.device | str = "cpu") -> NoiseLevels:
        scheduler = DDPMScheduler(**scheduler_config(schedule))
        return cls(scheduler.alphas_cumprod.to(device, torch.float32), schedule.prediction_type)

    @property
    def step_count(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Latents at the noise level of their timestep: (B, 4, h, w), (B, 4, h, w), (B,) -> (B, 4,
        h, w).
        """
        signal, spread = self._levels(timesteps)
        return signal * latents + spread * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the UNet should predict: the noise, or the velocity (arXiv 2202.00512, appendix
        D).
        """
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._levels(timesteps)
        return signal * noise - spread * latents

    def min_snr_weight(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weight of each image's loss, (B,) -> (B,): min(SNR, gamma) / SNR, or / (SNR + 1) for
        velocity (arXiv 2303.09556).
        """
        alphas = self.alphas_cumprod[timesteps]
        # at a terminal SNR of zero the epsilon weight tends to 1; the floor keeps 0 / 0 away
        snr = (alphas / (1 - alphas)).clamp(min=1e-8)
        clipped = snr.clamp(max=gamma)
        return clipped / (snr if self.prediction_type == "epsilon" else snr + 1)

    def _levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()


def scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """The arguments that diffusers' schedulers share."""
    return {
        "num_train_timesteps": schedule.step_count,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": schedule.prediction_type,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    }
