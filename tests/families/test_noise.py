"""The noise processes: noise added, what should be predicted, and the way back in a preview."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from lora_trainer.checkpoint.parts import FlowSchedule, NoiseSchedule, TokenShift
from lora_trainer.families.components.noise import (
    Flow,
    NoiseLevels,
    make_sampler,
    scheduler_config,
)


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
    assert levels.snr(torch.tensor([999])).item() == pytest.approx(0, abs=1e-7)


def test_signal_to_noise_and_progress_are_those_of_the_timesteps():
    timesteps = torch.tensor([1, 300, 900])
    levels = NoiseLevels.of(NoiseSchedule())
    torch.testing.assert_close(levels.snr(timesteps), compute_snr(reference(), timesteps))
    assert levels.progress(timesteps).tolist() == pytest.approx([0.001, 0.3, 0.9])


def test_euler_a_walks_through_the_webuis_noise_levels():
    schedule = NoiseSchedule()
    sampler = make_sampler("euler_a", schedule)
    sampler.set_timesteps(20)
    assert (sampler.timesteps[0].item(), sampler.timesteps[-1].item()) == (999, 0)
    # k-diffusion: logarithms of the levels at evenly spaced steps, and the noise times the first
    alphas = NoiseLevels.of(schedule).alphas_cumprod.double()
    logarithms = ((1 - alphas) / alphas).sqrt().log()
    steps = torch.linspace(999, 0, 20, dtype=torch.float64)
    low, share = steps.floor().long(), steps.frac()
    expected = (logarithms[low] * (1 - share) + logarithms[(low + 1).clamp(max=999)] * share).exp()
    torch.testing.assert_close(sampler.sigmas[:-1].double(), expected, rtol=1e-3, atol=1e-4)
    assert float(sampler.init_noise_sigma) == pytest.approx(14.6146, abs=1e-3)


def test_flow_is_a_straight_line_from_the_picture_to_noise():
    latents, noise = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    flow = Flow(FlowSchedule())
    for time, there in ((0.0, latents), (1.0, noise)):
        torch.testing.assert_close(flow.add_noise(latents, noise, torch.full((2,), time)), there)
    times = torch.tensor([0.25, 0.75])
    noisy = flow.add_noise(latents, noise, times)
    back = noisy - times.view(-1, 1, 1, 1) * flow.target(latents, noise, times)
    torch.testing.assert_close(back, latents)
    assert flow.snr(times).tolist() == pytest.approx([9, 1 / 9])
    assert flow.progress(times).tolist() == [0.25, 0.75]


def test_flows_times_lie_between_picture_and_noise_and_a_shift_moves_them_to_noise():
    drawn = [
        Flow(FlowSchedule(shift=shift)).draw((1000, 16, 4, 4), torch.Generator().manual_seed(3))
        for shift in (1.0, 3.0)
    ]
    assert all(times.shape == (1000,) and 0 < times.min() <= times.max() < 1 for times in drawn)
    assert drawn[0].mean().item() == pytest.approx(0.5, abs=0.02)
    # s' = 3 s / (1 + 2 s)
    torch.testing.assert_close(drawn[1], 3 * drawn[0] / (1 + 2 * drawn[0]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_eulers_steps_end_in_the_picture_when_the_prediction_is_right(shift):
    latents, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    sampler = Flow(FlowSchedule(shift=shift)).sampler(
        "euler_a", 7, torch.device("cpu"), (1, 4, 8, 8)
    )
    assert len(sampler.times) == 7 and sampler.times[0] == 1
    found, generator = sampler.start(noise), torch.Generator()
    for time in sampler.times:
        found = sampler.step(noise - latents, time, sampler.scaled(found, time), generator)
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)


def test_a_shift_by_tokens_is_that_of_the_published_schedule():
    by_tokens = TokenShift()
    # 256 tokens: 256 pixels; 4096: 1024 pixels
    assert by_tokens.shift(32, 32) == pytest.approx(math.exp(0.5))
    assert by_tokens.shift(128, 128) == pytest.approx(math.exp(1.15))
    schedule = FlowSchedule(by_tokens=by_tokens)
    process = Flow(schedule)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 6, 6).tolist(), mu=0.5 + 0.65 / 3840 * 768)
    sampler = process.sampler("euler_a", 6, torch.device("cpu"), (1, 16, 64, 64))
    torch.testing.assert_close(torch.stack(list(sampler.times)), scheduler.sigmas[:-1])


@pytest.mark.parametrize("distribution", ["logit_normal", "uniform"])
def test_larger_images_are_trained_at_noisier_times(distribution):
    process = Flow(FlowSchedule(by_tokens=TokenShift(), distribution=distribution))
    shares = torch.tensor([0.1, 0.5, 0.9])
    small, large = (process.quantiles(shares, (1, 16, side, side)) for side in (32, 128))
    assert bool((large > small).all())
    assert small[1] == pytest.approx(math.exp(0.5) / (math.exp(0.5) + 1))
    drawn = process.draw((50_000, 16, 128, 128), torch.Generator().manual_seed(0))
    found = [(drawn < time).double().mean().item() for time in large]
    assert found == pytest.approx(shares.tolist(), abs=0.01)
    assert drawn.min() > 0
