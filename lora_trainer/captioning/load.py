"""Loads the captioner in the settings."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_trainer.captioning import source
from lora_trainer.captioning.captioner import Captioner
from lora_trainer.settings.captioning import CaptionSettings


def load(
    settings: CaptionSettings,
    model: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    listener: source.Listener,
) -> Captioner:
    """The captioner on its device. `model` is from source.find. Raises CaptionerError;
    out-of-memory exceptions pass through.
    """
    return settings.info.load(model, settings.own, device=device, dtype=dtype, listener=listener)


def files_content(settings: CaptionSettings) -> str:
    """The content of files named in the captioner's settings."""
    reads = settings.info.reads
    return reads(settings.own) if reads is not None else ""
