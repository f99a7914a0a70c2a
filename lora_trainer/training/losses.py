"""Losses and their weightings: noise and times are arguments, the result is one value per image.

The family defines how noise is added and what the model predicts. LOSSES: elementwise loss
functions. WEIGHTINGS: weight of each image by its noise level. The choices of `loss_type` and
`loss_weighting` are generated from the entries' names and help texts. Imports without torch: the
tab reads the entries too.
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
    """Noisy latents, times, text states and size conditions -> the model's prediction:
    `Family.predict`.
    """
    ElementwiseLoss = Callable[
        [torch.Tensor, torch.Tensor, NoiseProcess, TrainingSettings], torch.Tensor
    ]
    """Errors (B, C, h, w), times (B,) -> elementwise loss, (B, C, h, w)."""
    Weight = Callable[[torch.Tensor, NoiseProcess, TrainingSettings], torch.Tensor]
    """Times (B,) -> the weight of each image's loss, (B,)."""

LARGEST_SNR = 1000.0
"""Limit for weights with 1 / SNR, which would vanish at the first timesteps."""


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """An elementwise loss function."""

    name: str
    """The value of the setting `loss_type`."""
    title: str
    sentence: str = ""
    elementwise: ElementwiseLoss


@dataclass(frozen=True, kw_only=True)
class WeightingEntry:
    """A weighting of noise levels."""

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
    """The weighted loss of the model's prediction, one value per image: latents (B, C, h, w) ->
    (B,), float32.

    size_conditions: (B, 6), original size, crop offset and target size.
    """
    noisy = noise_process.add_noise(latents, noise, times)
    target = noise_process.target(latents, noise, times)
    predicted = predict(noisy, times, text, size_conditions)
    # float32: bfloat16 has about three significant digits
    errors = predicted.float() - target.float()
    elements = LOSSES[settings.loss_type].elementwise(errors, times, noise_process, settings)
    losses = elements.flatten(1).mean(1)
    return losses * WEIGHTINGS[settings.loss_weighting].weight(times, noise_process, settings)


# --- elementwise losses ---------------------------------------------------------------------------


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
    """Pseudo-Huber loss 2c (sqrt(error^2 + c^2) - c): about error^2 below c, about 2c |error| above
    (arXiv 2403.16728).
    """
    threshold = huber_threshold(times, noise_process, settings).view(-1, 1, 1, 1)
    return 2 * threshold * ((errors.pow(2) + threshold.pow(2)).sqrt() - threshold)


def smooth_l1(
    errors: torch.Tensor,
    times: torch.Tensor,
    noise_process: NoiseProcess,
    settings: TrainingSettings,
) -> torch.Tensor:
    """Pseudo-Huber loss divided by c: about 2 |error| above c."""
    threshold = huber_threshold(times, noise_process, settings).view(-1, 1, 1, 1)
    return 2 * ((errors.pow(2) + threshold.pow(2)).sqrt() - threshold)


def huber_threshold(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """The Huber threshold c, (B,) -> (B,): from 1 without noise to huber_c at pure noise, unless
    the schedule is constant (arXiv 2403.16728, section 4).
    """
    least = settings.huber_c
    if settings.huber_schedule == "exponential":
        return (noise_process.progress(times) * math.log(least)).exp()
    if settings.huber_schedule == "snr":
        spread = noise_process.snr(times).rsqrt()
        return (1 - least) / (1 + spread).pow(2) + least
    return noise_process.snr(times).new_full((len(times),), least)


# --- weightings -----------------------------------------------------------------------------------


def min_snr_weight(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """min(SNR, gamma) / SNR, or / (SNR + 1) for v-prediction (arXiv 2303.09556). Ones if gamma is
    auto, and for flow matching.
    """
    # the limit of the epsilon weight at zero terminal SNR is 1; the clamp avoids 0 / 0
    snr = noise_process.snr(times).clamp(min=1e-8)
    if settings.min_snr_gamma is None or noise_process.prediction_type is None:
        return snr.new_ones(len(times))
    clipped = snr.clamp(max=settings.min_snr_gamma)
    return clipped / (snr if noise_process.prediction_type == "epsilon" else snr + 1)


def debiased_weight(
    times: torch.Tensor, noise_process: NoiseProcess, settings: TrainingSettings
) -> torch.Tensor:
    """1 / sqrt(SNR) (arXiv 2310.08442), or 1 / (SNR + 1) for v-prediction, as in kohya's trainer.
    Ones for flow matching.
    """
    snr = noise_process.snr(times).clamp(1e-8, LARGEST_SNR)
    if noise_process.prediction_type is None:
        return snr.new_ones(len(times))
    return snr.rsqrt() if noise_process.prediction_type == "epsilon" else 1 / (snr + 1)


LOSSES: dict[str, LossEntry] = {
    entry.name: entry
    for entry in (
        LossEntry(name="l2", title="L2", elementwise=squared),
        LossEntry(
            name="huber",
            title="Huber",
            sentence="Large errors count less, so that a bad image or caption does less harm.",
            elementwise=huber,
        ),
        LossEntry(
            name="smooth_l1",
            title="Smooth L1",
            sentence="Huber loss divided by its threshold: high noise levels count more.",
            elementwise=smooth_l1,
        ),
    )
}
WEIGHTINGS: dict[str, WeightingEntry] = {
    entry.name: entry
    for entry in (
        WeightingEntry(
            name="min_snr",
            title="Min-SNR",
            sentence="Weights by Min-SNR gamma; if that is auto, all noise levels count equally.",
            weight=min_snr_weight,
        ),
        WeightingEntry(
            name="debiased",
            title="Debiased estimation",
            sentence="High noise levels count more, fine detail less; Min-SNR gamma has no effect.",
            weight=debiased_weight,
        ),
    )
}
