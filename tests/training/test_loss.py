import functools

import pytest
import torch
from diffusers import DDPMScheduler

from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.families.base import TextStates
from lora_trainer.families.components.noise import NoiseLevels, scheduler_config
from lora_trainer.training.loss import denoising_loss
from tests.tiny import tiny_parts


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_loss_is_the_mean_squared_error_of_each_image(family):
    parts = tiny_parts(family)
    levels = NoiseLevels.of(parts.schedule)
    predict = functools.partial(parts.family.predict, parts.unet)
    latents, noise, timesteps = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.tensor([10, 900]),
    )
    text = TextStates(
        torch.randn(2, 77, parts.unet.config.cross_attention_dim),
        torch.randn(2, 64) if family == "sdxl" else None,
    )
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64], [128, 64, 32, 0, 64, 64]])
    losses = denoising_loss(predict, levels, latents, text, noise, timesteps, sizes)
    noisy = DDPMScheduler(**scheduler_config(NoiseSchedule())).add_noise(latents, noise, timesteps)
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    predicted = parts.unet(
        noisy, timesteps, encoder_hidden_states=text.hidden, added_cond_kwargs=added
    ).sample
    torch.testing.assert_close(
        losses, ((predicted - noise) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=1e-5
    )
    alone = denoising_loss(
        predict,
        levels,
        latents[1:],
        text.row(1),
        noise[1:],
        timesteps[1:],
        sizes[1:],
    )
    torch.testing.assert_close(alone, losses[1:], rtol=1e-4, atol=1e-5)


def test_sdxl_is_told_sizes_exactly_in_bfloat16_too():
    parts = tiny_parts("sdxl")
    parts.unet.to(torch.bfloat16)
    seen = []
    parts.unet.add_time_proj.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0])
    )
    sizes = torch.tensor([[683.0, 1333.0, 0.0, 155.0, 832.0, 1216.0]])
    text = TextStates(torch.randn(1, 77, 96), torch.randn(1, 64))
    loss = denoising_loss(
        functools.partial(parts.family.predict, parts.unet),
        NoiseLevels.of(parts.schedule),
        torch.randn(1, 4, 8, 8),
        text,
        torch.randn(1, 4, 8, 8),
        torch.tensor([7]),
        sizes,
    )
    assert torch.isfinite(loss).all() and seen[0].tolist() == [683, 1333, 0, 155, 832, 1216]
