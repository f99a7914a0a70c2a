import functools

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lora_trainer.checkpoint.parts import FlowSchedule, NoiseSchedule
from lora_trainer.families.base import TextStates
from lora_trainer.families.components.noise import Flow, NoiseLevels, scheduler_config
from lora_trainer.settings import training
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.losses import (
    LOSSES,
    WEIGHTINGS,
    LossEntry,
    WeightingEntry,
    debiased_weight,
    denoising_loss,
    huber_threshold,
    min_snr_weight,
)
from lora_trainer.webui.common import form
from lora_trainer.worker import job
from tests.made import begin, losses
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
    found = denoising_loss(
        predict, levels, latents, text, noise, timesteps, sizes, TrainingSettings()
    )
    noisy = DDPMScheduler(**scheduler_config(NoiseSchedule())).add_noise(latents, noise, timesteps)
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    predicted = parts.unet(
        noisy, timesteps, encoder_hidden_states=text.hidden, added_cond_kwargs=added
    ).sample
    torch.testing.assert_close(
        found, ((predicted - noise) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=1e-5
    )
    alone = denoising_loss(
        predict,
        levels,
        latents[1:],
        text.row(1),
        noise[1:],
        timesteps[1:],
        sizes[1:],
        TrainingSettings(),
    )
    torch.testing.assert_close(alone, found[1:], rtol=1e-4, atol=1e-5)


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
        TrainingSettings(),
    )
    assert torch.isfinite(loss).all() and seen[0].tolist() == [683, 1333, 0, 155, 832, 1216]


TIMES = torch.tensor([1, 300, 900])
LEVELS = NoiseLevels.of(NoiseSchedule())
VELOCITY = NoiseLevels.of(NoiseSchedule(prediction_type="v_prediction"))
TERMINAL = NoiseLevels.of(NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True))
FLOW = Flow(FlowSchedule())


def snr():
    return compute_snr(DDPMScheduler(**scheduler_config(NoiseSchedule())), TIMES)


def test_min_snr_weights_are_the_papers():
    settings = TrainingSettings(min_snr_gamma=5.0)
    clipped = snr().clamp(max=5.0)
    torch.testing.assert_close(min_snr_weight(TIMES, LEVELS, settings), clipped / snr())
    torch.testing.assert_close(min_snr_weight(TIMES, VELOCITY, settings), clipped / (snr() + 1))
    assert torch.isfinite(min_snr_weight(torch.tensor([999]), TERMINAL, settings)).all()
    assert min_snr_weight(torch.tensor([0.2, 0.9]), FLOW, settings).tolist() == [1, 1]
    assert min_snr_weight(TIMES, LEVELS, TrainingSettings()).tolist() == [1, 1, 1]


def test_debiased_weights_are_kohyas():
    settings = TrainingSettings(loss_weighting="debiased")
    clipped = snr().clamp(max=1000)
    torch.testing.assert_close(debiased_weight(TIMES, LEVELS, settings), 1 / clipped.sqrt())
    torch.testing.assert_close(debiased_weight(TIMES, VELOCITY, settings), 1 / (clipped + 1))
    assert torch.isfinite(debiased_weight(torch.tensor([999]), TERMINAL, settings)).all()
    assert debiased_weight(torch.tensor([0.2, 0.9]), FLOW, settings).tolist() == [1, 1]


def test_hubers_threshold_falls_as_its_schedule_says():
    def thresholds(schedule, process=LEVELS, times=TIMES):
        settings = TrainingSettings(huber_c=0.2, huber_schedule=schedule)
        return huber_threshold(times, process, settings).tolist()

    assert thresholds("constant") == pytest.approx([0.2] * 3)
    # as kohya's trainer computes them
    assert thresholds("exponential") == pytest.approx([0.2**0.001, 0.2**0.3, 0.2**0.9])
    expected = (1 - 0.2) / (1 + snr() ** -0.5) ** 2 + 0.2
    assert thresholds("snr") == pytest.approx(expected.tolist())
    assert thresholds("snr", TERMINAL, torch.tensor([999])) == pytest.approx([0.2], abs=1e-3)
    ends = torch.tensor([0.0, 1.0])
    for schedule in ("snr", "exponential"):
        assert thresholds(schedule, FLOW, ends) == pytest.approx([1.0, 0.2])


def test_hubers_loss_is_a_square_for_small_errors_and_a_line_for_large_ones():
    settings = TrainingSettings(huber_c=0.1, huber_schedule="constant")
    errors = torch.tensor([1e-2, 0.0, -50.0]).view(1, 1, 1, 3)
    huber, smooth = (
        LOSSES[name].elementwise(errors, TIMES[:1], LEVELS, settings).flatten().tolist()
        for name in ("huber", "smooth_l1")
    )
    assert huber == pytest.approx([1e-4, 0, 2 * 0.1 * (50 - 0.1)], rel=1e-2)
    assert smooth == pytest.approx([each / 0.1 for each in huber], rel=1e-4)


def test_another_loss_and_another_weighting_are_one_entry_each(tmp_path, monkeypatch):
    monkeypatch.setitem(
        LOSSES,
        "toy",
        LossEntry(
            name="toy",
            title="Toy",
            sentence="Counts every error alike.",
            elementwise=lambda errors, times, process, settings: errors.abs(),
        ),
    )
    monkeypatch.setitem(
        WEIGHTINGS,
        "half",
        WeightingEntry(
            name="half",
            title="Half",
            weight=lambda times, process, settings: process.snr(times) * 0 + 0.5,
        ),
    )
    fields = {
        field["key"]: field for group in form.form("en")["groups"] for field in group["fields"]
    }
    assert fields["loss_type"]["choices"][-1] == {"value": "toy", "label": "Toy"}
    assert fields["loss_type"]["help"].endswith("Toy: Counts every error alike.")
    assert "half (Half)" in training.readme_table() or ", half." in training.readme_table()
    plain, toy, half = (
        begin(tmp_path, run, max_train_steps=2, **changes)
        for run, changes in {
            "plain": {},
            "toy": {"loss_type": "toy"},
            "half": {"loss_weighting": "half"},
        }.items()
    )
    assert {job.run(folder.path) for folder in (plain, toy, half)} == {job.FINISHED}
    assert losses(toy)[0] not in (losses(plain)[0], losses(half)[0])
    assert losses(half)[0] == pytest.approx(losses(plain)[0] / 2)
