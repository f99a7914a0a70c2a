"""Noise processes: diffusion with a table of noise levels, and flow matching. They define the noise
added, the prediction target and its weight in the loss, and sample previews like the WebUI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)

from lora_trainer.checkpoint.parts import FlowSchedule, NoiseSchedule, PredictionType
from lora_trainer.families.base import Sampler, Shape

SAMPLER_LABELS = {"euler_a": "Euler a", "dpmpp_2m_karras": "DPM++ 2M Karras", "ddim": "DDIM"}
"""Setting -> the WebUI's name."""


@dataclass(frozen=True)
class NoiseLevels:
    """Diffusion (DDPM, arXiv 2006.11239). alphas_cumprod: (T,) float32."""

    alphas_cumprod: torch.Tensor
    schedule: NoiseSchedule

    @classmethod
    def of(cls, schedule: NoiseSchedule, device: torch.device | str = "cpu") -> NoiseLevels:
        scheduler = DDPMScheduler(**scheduler_config(schedule))
        return cls(scheduler.alphas_cumprod.to(device, torch.float32), schedule)

    @property
    def prediction_type(self) -> PredictionType:
        return self.schedule.prediction_type

    def draw(self, shape: Shape, generator: torch.Generator) -> torch.Tensor:
        """Uniform timesteps."""
        return torch.randint(0, len(self.alphas_cumprod), shape[:1], generator=generator)

    def quantiles(self, shares: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The timesteps at these shares of the table."""
        return (shares * len(self.alphas_cumprod)).long()

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents: (B, C, h, w), (B, C, h, w), (B,) -> (B, C, h, w)."""
        signal, spread = self._levels(timesteps)
        return signal * latents + spread * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The noise, or the velocity (arXiv 2202.00512, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._levels(timesteps)
        return signal * noise - spread * latents

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        alphas = self.alphas_cumprod[timesteps]
        return alphas / (1 - alphas)

    def progress(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps.float() / len(self.alphas_cumprod)

    def sampler(self, name: str, step_count: int, device: torch.device, shape: Shape) -> Sampler:
        """The WebUI's sampler of that name."""
        scheduler = make_sampler(name, self.schedule)
        scheduler.set_timesteps(step_count, device=device)
        return _DiffusersSampler(scheduler, draws_noise=name != "dpmpp_2m_karras")

    def sampler_label(self, name: str) -> str:
        return SAMPLER_LABELS[name]

    def _levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()


def scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Arguments common to diffusers' schedulers."""
    return {
        "num_train_timesteps": schedule.step_count,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": schedule.prediction_type,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    }


def make_sampler(name: str, schedule: NoiseSchedule) -> Any:
    """diffusers' scheduler of that name, configured like the WebUI's."""
    config = scheduler_config(schedule)
    spacing = "trailing" if schedule.zero_terminal_snr else "leading"
    # k-diffusion starts at the highest noise level and spaces its steps evenly
    spread = "trailing" if schedule.zero_terminal_snr else "linspace"
    if name == "ddim":
        return DDIMScheduler(
            **config,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing=spacing,
        )
    if name == "dpmpp_2m_karras":
        return DPMSolverMultistepScheduler(
            **config, use_karras_sigmas=True, steps_offset=1, timestep_spacing=spacing
        )
    return EulerAncestralDiscreteScheduler(**config, steps_offset=1, timestep_spacing=spread)


class _DiffusersSampler:
    """A diffusers scheduler with its timesteps set."""

    def __init__(self, scheduler: Any, *, draws_noise: bool) -> None:
        self._scheduler = scheduler
        self._draws_noise = draws_noise

    @property
    def times(self) -> Sequence[torch.Tensor]:
        return self._scheduler.timesteps  # type: ignore[no-any-return]

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        return noise * self._scheduler.init_noise_sigma  # type: ignore[no-any-return]

    def scaled(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self._scheduler.scale_model_input(latents, time)  # type: ignore[no-any-return]

    def step(
        self,
        prediction: torch.Tensor,
        time: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        extra = {"generator": generator} if self._draws_noise else {}
        done = self._scheduler.step(prediction, time, latents, **extra, return_dict=False)
        return done[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Flow:
    """Flow matching along straight lines (arXiv 2209.03003, 2210.02747): at time s in (0, 1)
    latents are (1 - s) image + s noise, and the model predicts noise - image.
    """

    schedule: FlowSchedule
    sampling: FlowSchedule | Callable[[Shape, int], float] | None = None
    """Of the samplers, if hosts sample with another shift than that of the training: a schedule, or
    the shift for a shape of latents and a number of steps.
    """

    def draw(self, shape: Shape, generator: torch.Generator) -> torch.Tensor:
        """Logit-normal (arXiv 2403.03206, section 3.1) or uniform times, shifted."""
        if self.schedule.distribution == "uniform":
            # away from 0, where the signal-to-noise ratio is infinite
            return self._shifted(torch.rand(shape[:1], generator=generator).clamp_min(1e-4), shape)
        return self._shifted(torch.randn(shape[:1], generator=generator).sigmoid(), shape)

    def quantiles(self, shares: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The times at these shares of the shifted distribution."""
        if self.schedule.distribution == "uniform":
            return self._shifted(shares, shape)
        return self._shifted(torch.special.ndtri(shares).sigmoid(), shape)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Latents interpolated between image and noise, all (B, C, h, w)."""
        share = times.view(-1, 1, 1, 1)
        return (1 - share) * latents + share * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """The velocity, constant in time."""
        return noise - latents

    @property
    def prediction_type(self) -> None:
        return None

    def snr(self, times: torch.Tensor) -> torch.Tensor:
        return ((1 - times) / times).pow(2)

    def progress(self, times: torch.Tensor) -> torch.Tensor:
        return times

    def sampler(self, name: str, step_count: int, device: torch.device, shape: Shape) -> Sampler:
        """Euler's method for any name: the WebUI's other samplers are for diffusion."""
        even = torch.linspace(1, 0, step_count + 1, device=device)
        if callable(self.sampling):
            return _Euler(_shifted_by(even, self.sampling(shape, step_count)))
        return _Euler(_shifted(even, self.sampling or self.schedule, shape))

    def sampler_label(self, name: str) -> str:
        return "Euler"

    def _shifted(self, times: torch.Tensor, shape: Shape) -> torch.Tensor:
        return _shifted(times, self.schedule, shape)


def _shifted(times: torch.Tensor, schedule: FlowSchedule, shape: Shape) -> torch.Tensor:
    return _shifted_by(times, schedule.shift_for(shape))


def _shifted_by(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Shifted towards noise for a shift above 1 (arXiv 2403.03206, section 5.3.2)."""
    return shift * times / (1 + (shift - 1) * times)


class _Euler:
    """Euler steps from time 1 to 0 along the predicted velocity."""

    def __init__(self, times: torch.Tensor) -> None:
        self._times = times

    @property
    def times(self) -> Sequence[torch.Tensor]:
        return tuple(self._times[:-1])

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def scaled(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return latents

    def step(
        self,
        prediction: torch.Tensor,
        time: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        position = int((self._times == time).nonzero()[0])
        return latents + (self._times[position + 1] - time) * prediction
