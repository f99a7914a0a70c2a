"""Settings that mean nothing, or harm, for a family: said before a run by the worker and the tab.
Without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_trainer.errors import ConfigError, Message

if TYPE_CHECKING:
    from lora_trainer.families.base import Family
    from lora_trainer.settings.training import RunConfig


def refused(family: Family, config: RunConfig) -> Iterator[ConfigError]:
    """Settings with which this family cannot be trained."""
    base = config.checkpoint
    if config.lora.train_text_encoder and not family.trains_text_encoders:
        yield ConfigError(
            "train_text_encoder is on, but the text encoders of {family} are not trained",
            hint="Set train_text_encoder to false: WebUIs load no LoRA for them.",
            family=family.name,
        )
    sides = {
        "resolution": config.dataset.resolution,
        "bucket_step": config.dataset.bucket_step,
        "sample_size": config.samples.sample_size,
    }
    for key, side in sides.items():
        if side and side % family.side_multiple:
            yield ConfigError(
                "{key} is {value}, and sides of images for {family} are multiples of {multiple}",
                hint="Use a multiple of 64.",
                key=key,
                value=side,
                family=family.name,
                multiple=family.side_multiple,
            )
    if family.is_flow:
        if base.prediction_type != "auto":
            yield ConfigError(
                "prediction_type is {value}, but {family} is a flow-matching model",
                hint="Set prediction_type to auto.",
                value=base.prediction_type,
                family=family.name,
            )
        if base.zero_terminal_snr:
            yield ConfigError(
                "zero_terminal_snr is on, but {family} is a flow-matching model",
                hint="Set zero_terminal_snr to auto.",
                family=family.name,
            )
        return
    for key in ("timestep_distribution", "timestep_shift"):
        value = getattr(base, key)
        if value not in ("auto", None):
            yield ConfigError(
                "{key} is {value}, but {family} is not a flow-matching model",
                hint="Set {key} to auto.",
                key=key,
                value=value,
                family=family.name,
            )


def remarks(family: Family, config: RunConfig) -> Iterator[tuple[Message, Message]]:
    """Settings that are followed, or passed over, with a hint each."""
    named = {"family": family.name}
    if config.checkpoint.clip_skip != 1 and not family.has_clip_skip:
        yield (
            Message("clip_skip has no effect: {family} always uses its own layer", named),
            Message("Leave clip_skip at 1."),
        )
    if config.lora.lora_type == "locon" and not family.convolution_targets:
        yield (
            Message(
                "lora_type is locon, and {family} has no convolutions: a LoRA is trained", named
            ),
            Message("Set lora_type to lora."),
        )
    if not family.is_flow:
        return
    if config.training.min_snr_gamma is not None:
        yield (
            Message(
                "min_snr_gamma is for diffusion models; {family}, a flow-matching model, learns"
                " less at some noise levels with it",
                named,
            ),
            Message("Leave min_snr_gamma at auto."),
        )
    if config.training.noise_offset:
        yield (
            Message(
                "noise_offset is for diffusion models; {family}, a flow-matching model, reaches"
                " dark and bright images without it",
                named,
            ),
            Message("Set noise_offset to 0."),
        )
