"""Prompt adherence: generates images for many scenes and evaluates them with `measure`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.demo import world
from lora_trainer.families.base import TextStates
from lora_trainer.training.images import to_image


@torch.no_grad()
def sample(
    parts: Parts, prompts: Sequence[str], seed: int, step_count: int = 25, guidance: float = 4.0
) -> list[Image.Image]:
    """One 64 x 64 image per prompt, with classifier-free guidance (arXiv 2207.12598): by DDIM, or
    Euler's method for flow matching. Deterministic in `seed`.
    """
    family = parts.family
    text = _text_states(parts, prompts)
    side = world.SIDE // family.pixels_per_latent
    shape = (len(prompts), family.latent_channels, side, side)
    sampler = family.noise_process(parts.schedule).sampler(
        "ddim", step_count, torch.device("cpu"), shape
    )
    size = torch.tensor([world.SIDE, world.SIDE, 0, 0, world.SIDE, world.SIDE], dtype=torch.float32)
    sizes = size.expand(2 * len(prompts), -1)
    generator = torch.Generator().manual_seed(seed)
    latents = sampler.start(torch.randn(shape, generator=generator))
    for time in sampler.times:
        both = sampler.scaled(torch.cat([latents, latents]), time)
        found = family.predict(parts.unet, both, time.expand(len(both)), text, sizes)
        without, with_text = found.float().chunk(2)
        latents = sampler.step(without + guidance * (with_text - without), time, latents, generator)
    return [to_image(image) for image in family.decode(parts.vae, latents)]


def _text_states(parts: Parts, prompts: Sequence[str]) -> TextStates:
    """Those of as many empty prompts, then those of the prompts."""
    rows = [
        parts.family.encode_captions(parts, [one], clip_skip=1, max_token_length=75)
        for one in ("", *prompts)
    ]
    return parts.family.join([rows[0]] * len(prompts) + rows[1:], rows[0])
