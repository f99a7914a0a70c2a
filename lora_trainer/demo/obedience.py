"""Prompt adherence: generates images for many scenes and evaluates them with `measure`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.demo import world
from lora_trainer.families.components.noise import make_sampler
from lora_trainer.families.stable_diffusion import SD1


@torch.no_grad()
def text_states(parts: Parts, prompts: Sequence[str]) -> torch.Tensor:
    """(B, 77, width), float32."""
    tokens = parts.tokenizers[0](
        list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    states: torch.Tensor = parts.text_encoders[0](tokens).last_hidden_state
    return states


@torch.no_grad()
def sample(
    parts: Parts, prompts: Sequence[str], seed: int, step_count: int = 25, guidance: float = 4.0
) -> list[Image.Image]:
    """One 64 x 64 image per prompt, with DDIM and classifier-free guidance (arXiv 2207.12598).
    Deterministic in `seed`.
    """
    count = len(prompts)
    text = torch.cat([text_states(parts, [""]).expand(count, -1, -1), text_states(parts, prompts)])
    assert isinstance(parts.schedule, NoiseSchedule), "SD1 is a diffusion model"
    sampler = make_sampler("ddim", parts.schedule)
    sampler.set_timesteps(step_count)
    side = world.SIDE // SD1.pixels_per_latent
    latents = torch.randn(
        (count, SD1.latent_channels, side, side), generator=torch.Generator().manual_seed(seed)
    )
    for timestep in sampler.timesteps:
        without, with_text = parts.unet(
            torch.cat([latents, latents]), timestep, encoder_hidden_states=text
        ).sample.chunk(2)
        latents = sampler.step(
            without + guidance * (with_text - without), timestep, latents
        ).prev_sample
    return to_images(parts.vae.decode(latents / parts.vae.config.scaling_factor).sample)


def to_images(images: torch.Tensor) -> list[Image.Image]:
    """(B, 3, side, side) in [-1, 1] -> images."""
    levels = (
        ((images.float().clamp(-1, 1) + 1) * 127.5)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    return [Image.fromarray(np.ascontiguousarray(image), "RGB") for image in levels]
