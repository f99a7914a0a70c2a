import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.training.encode import TextStates
from lora_trainer.training.loss import denoising_loss
from lora_trainer.training.schedule import NoiseLevels, scheduler_config
from tests.tiny import tiny_parts


def reference(prediction_type="epsilon", zero=False):
    return DDPMScheduler(
        **scheduler_config(NoiseSchedule(prediction_type=prediction_type, zero_terminal_snr=zero))
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_targets_equal_those_of_diffusers(prediction_type):
    levels = NoiseLevels.of(NoiseSchedule(prediction_type=prediction_type))
    latents, noise, timesteps = (
        torch.randn(3, 4, 8, 8),
        torch.randn(3, 4, 8, 8),
        torch.tensor([0, 500, 999]),
    )
    scheduler = reference(prediction_type)
    torch.testing.assert_close(
        levels.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    expected = (
        noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    )
    torch.testing.assert_close(levels.target(latents, noise, timesteps), expected)


def test_the_schedule_is_stable_diffusions():
    # alphas_cumprod[0] and [-1] as they are stored in every SD1.5 checkpoint
    alphas = NoiseLevels.of(NoiseSchedule()).alphas_cumprod
    assert alphas[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert alphas[-1].item() == pytest.approx(0.0046600, abs=1e-6)


def test_zero_terminal_snr_ends_in_pure_noise():
    levels = NoiseLevels.of(NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True))
    assert levels.alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(levels.min_snr_weight(torch.tensor([999]), 5.0)).all()


def test_min_snr_weights_are_the_papers():
    timesteps = torch.tensor([1, 300, 900])
    snr = compute_snr(reference(), timesteps)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr
    torch.testing.assert_close(
        NoiseLevels.of(NoiseSchedule()).min_snr_weight(timesteps, 5.0), expected
    )
    velocity = NoiseLevels.of(NoiseSchedule(prediction_type="v_prediction")).min_snr_weight(
        timesteps, 5.0
    )
    torch.testing.assert_close(velocity, torch.minimum(snr, torch.full_like(snr, 5.0)) / (snr + 1))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_loss_is_the_mean_squared_error_of_each_image(family):
    parts = tiny_parts(family)
    levels = NoiseLevels.of(parts.schedule)
    latents, noise, timesteps = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.tensor([10, 900]),
    )
    text = TextStates(
        torch.randn(2, 77, parts.unet.config.cross_attention_dim),
        torch.randn(2, 64) if family == "sdxl" else None,
    )
    sizes = (
        torch.tensor([[64.0, 64, 0, 0, 64, 64], [128, 64, 32, 0, 64, 64]])
        if family == "sdxl"
        else None
    )
    losses = denoising_loss(parts.unet, levels, latents, text, noise, timesteps, sizes)
    noisy = reference().add_noise(latents, noise, timesteps)
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    predicted = parts.unet(
        noisy, timesteps, encoder_hidden_states=text.hidden, added_cond_kwargs=added
    ).sample
    torch.testing.assert_close(
        losses, ((predicted - noise) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=1e-5
    )
    alone = denoising_loss(
        parts.unet,
        levels,
        latents[1:],
        text.row(1),
        noise[1:],
        timesteps[1:],
        None if sizes is None else sizes[1:],
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
        parts.unet,
        NoiseLevels.of(parts.schedule),
        torch.randn(1, 4, 8, 8),
        text,
        torch.randn(1, 4, 8, 8),
        torch.tensor([7]),
        sizes,
    )
    assert torch.isfinite(loss).all() and seen[0].tolist() == [683, 1333, 0, 155, 832, 1216]
