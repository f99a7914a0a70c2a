"""The loss: noise and times come in, one number per image comes out. How noise is added and what is
predicted are the family's; how an error counts is an entry here.

LOSSES: an error of each number -> what it costs. WEIGHTINGS: how much an image counts at its noise
level. Each entry carries its name, its sentence, and what it reads of the settings; the choices of
`loss_type` and `loss_weighting` and their help follow. Another one is another entry, and nothing
else.

Imports without torch: the tab reads the entries too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lora_trainer.families.base import NoiseProcess, TextStates
    from lora_trainer.settings.training import TrainingSettings

    Predict = Callable[[torch.Tensor, torch.Tensor, TextStates, torch.Tensor], torch.Tensor]
    """Noisy latents, times, text states and size conditions -> the model's answer:
    `Family.predict`.
    """
    Cost = Callable[[torch.Tensor, torch.Tensor, NoiseProcess, TrainingSettings], torch.Tensor]
    """Errors (B, C, h, w), times (B,) -> what each costs, (B, C, h, w)."""
    Weight = Callable[[torch.Tensor, NoiseProcess, TrainingSettings], torch.Tensor]
    """Times (B,) -> the weight of each image's loss, (B,)."""

LARGEST_SNR = 1000.0
"""At the first timesteps there is hardly any noise, and 1 / SNR would leave nothing of the loss."""


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """One way to count an error."""

    name: str
    """The value of the setting `loss_type`."""
    title: str
    sentence: str = ""
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class WeightingEntry:
    """One way to weigh noise levels."""

    name: str
    """The value of the setting `loss_weighting`."""
    title: str
    sentence: str = ""
    weight: Weight


def denoising_loss(
    predict: Predict,
    noise_process: NoiseProcess,
    latents: torch.Tensor,
    text: TextStates,
    noise: torch.Tensor,
    times: torch.Tensor,
    size_conditions: torch.Tensor,
    settings: TrainingSettings,
) -> torch.Tensor:
    """The loss of the model's prediction, one value per image: latents (B, C, h, w) -> (B,),
    float32.

    size_conditions: (B, 6) of original size, crop and target size.
    """
    noisy = noise_process.add_noise(latents, noise, times)
    target = noise_process.target(latents, noise, times)
    predicted = predict(noisy, times, text, size_conditions)
    # float32: bfloat16 keeps about three digits, and the loss curve needs more
    errors = predicted.float() - target.float()
    costs = LOSSES[settings.loss_type].cost(errors, times, noise_process, settings)
    losses = costs.flatten(1).mean(1)
    return losses * WEIGHTINGS[settings.loss_weighting].weight(times, noise_process, settings)


# --- what an error costs --------------------------------------------------------------------------


def squared(
    errors: torch.Tensor,
    times: torch.Tensor,
    noise_process: NoiseProcess,
    settings: TrainingSettings,
) -> torch.Tensor:
    return errors.pow(2)


def huber(
    errors: torch.Tensor,
    times: torch.Tensor,
    noise_process: NoiseProcess,
    settings: TrainingSettings,
) -> torch.Tensor:
    """The pseudo-Huber loss 2c (sqrt(error^2 + c^2) - c): near error^2 below c, near 2c |error|
    above (arXiv 2403.16728).
    """
    threshold = huber_threshold(times, noise_process, settings).view(-1, 1, 1, 1)
    return 2 * threshold * ((errors.pow(2) + threshold.pow(2)).sqrt() - threshold)


def smooth_l1(
    errors: torch.Tensor,
    times: torch.Tensor,
    noise_process: NoiseProcess,
    settings: TrainingSettings,
) -> torch.Tensor:
    """The pseudo-Huber loss divided by c: near 2 |error| above it."""
    threshold = huber_threshold(times, noise_process, settings).view(-1, 1, 1, 1)
    return 2 * ((errors.pow(2) + threshold.pow(2)).sqrt() - threshold)


def huber_threshold(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """Where the loss turns from a square into a line, (B,) -> (B,): huber_c at pure noise, and 1
    near the picture, unless the schedule is constant (arXiv 2403.16728, section 4).
    """
    least = settings.huber_c
    if settings.huber_schedule == "exponential":
        return (noise_process.progress(times) * math.log(least)).exp()
    if settings.huber_schedule == "snr":
        spread = noise_process.snr(times).rsqrt()
        return (1 - least) / (1 + spread).pow(2) + least
    return noise_process.snr(times).new_full((len(times),), least)


# --- how much a noise level counts ----------------------------------------------------------------


def min_snr_weight(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """min(SNR, gamma) / SNR, or / (SNR + 1) for velocity (arXiv 2303.09556). Ones where the gamma
    is left at auto, and for flow matching, which has no such weights.
    """
    # at a terminal SNR of zero the epsilon weight tends to 1; the floor keeps 0 / 0 away
    snr = noise_process.snr(times).clamp(min=1e-8)
    if settings.min_snr_gamma is None or noise_process.prediction_type is None:
        return snr.new_ones(len(times))
    clipped = snr.clamp(max=settings.min_snr_gamma)
    return clipped / (snr if noise_process.prediction_type == "epsilon" else snr + 1)


def debiased_weight(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """1 / sqrt(SNR) (arXiv 2310.08442), or 1 / (SNR + 1) for velocity, as kohya's trainer has it.
    Ones for flow matching.
    """
    snr = noise_process.snr(times).clamp(1e-8, LARGEST_SNR)
    if noise_process.prediction_type is None:
        return snr.new_ones(len(times))
    return snr.rsqrt() if noise_process.prediction_type == "epsilon" else 1 / (snr + 1)


LOSSES: dict[str, LossEntry] = {
    entry.name: entry
    for entry in (
        LossEntry(name="l2", title="L2", cost=squared),
        LossEntry(
            name="huber",
            title="Huber",
            sentence="Large errors count less, so that a bad image or caption spoils less.",
            cost=huber,
        ),
        LossEntry(
            name="smooth_l1",
            title="Smooth L1",
            sentence="As Huber, divided by its threshold: noisy pictures count more.",
            cost=smooth_l1,
        ),
    )
}
WEIGHTINGS: dict[str, WeightingEntry] = {
    entry.name: entry
    for entry in (
        WeightingEntry(
            name="min_snr",
            title="Min-SNR",
            sentence="Weighs as Min-SNR gamma says; with auto there, every noise level alike.",
            weight=min_snr_weight,
        ),
        WeightingEntry(
            name="debiased",
            title="Debiased estimation",
            sentence="Noisy pictures count more, fine detail less; Min-SNR gamma has no effect.",
            weight=debiased_weight,
        ),
    )
}
