"""Settings and a model's folder -> the Captioner that is asked for, on its device."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_trainer.captioning import blip, chat, clip, source, wd
from lora_trainer.captioning.captioner import Captioner
from lora_trainer.settings.captioning import DEFAULT_INSTRUCTION, CaptionSettings

WD_THRESHOLD = 0.35
CLIP_THRESHOLD = 0.2
CLIP_TOP_K = 2


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
    if settings.captioner in ("blip", "blip-large"):
        return blip.load(
            model, device=device, dtype=dtype, max_tokens=settings.max_tokens, listener=listener
        )
    if settings.captioner == "qwen":
        instruction = settings.instruction.strip() or DEFAULT_INSTRUCTION
        return chat.load(
            model,
            device=device,
            dtype=dtype,
            instruction=instruction,
            max_tokens=settings.max_tokens,
        )
    if settings.captioner == "clip":
        groups = clip.read_vocabulary(settings.vocabulary or clip.DEFAULT_VOCABULARY)
        threshold = CLIP_THRESHOLD if settings.threshold is None else settings.threshold
        return clip.load(
            model,
            groups,
            device=device,
            dtype=dtype,
            threshold=threshold,
            top_k=settings.top_k or CLIP_TOP_K,
        )
    return wd.load(
        model,
        use_gpu=device.type != "cpu",
        threshold=WD_THRESHOLD if settings.threshold is None else settings.threshold,
        character_threshold=settings.character_threshold,
        top_k=settings.top_k,
    )


def vocabulary_text(settings: CaptionSettings) -> str:
    """What the captions depend on besides the settings: the words CLIP may use."""
    if settings.captioner != "clip":
        return ""
    return repr(clip.read_vocabulary(settings.vocabulary or clip.DEFAULT_VOCABULARY))
