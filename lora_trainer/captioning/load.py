"""Settings and a model's folder -> the Captioner that is asked for, on its device."""

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
    """model: what source.find gave. Raises CaptionerError, and what running out of memory
    raises.
    """
    return settings.info.load(model, settings.own, device=device, dtype=dtype, listener=listener)


def files_content(settings: CaptionSettings) -> str:
    """The content of the files that the captioner's settings name, on which its captions depend."""
    reads = settings.info.reads
    return reads(settings.own) if reads is not None else ""
