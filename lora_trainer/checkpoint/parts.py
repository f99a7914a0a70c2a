"""The components of a checkpoint, loaded: what comes out of `checkpoint.load` and goes into
training, previews and export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["sd1", "sd2", "sdxl"]
PredictionType = Literal["epsilon", "v_prediction"]
Part = Literal["UNet", "VAE", "text encoder"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How the checkpoint was trained to remove noise: the numbers a diffusers scheduler is built
    from.
    """

    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    beta_start: float = 0.00085
    beta_end: float = 0.012
    step_count: int = 1000


@dataclass(kw_only=True)
class Parts:
    """A checkpoint's components. A component that was not asked for, or has been let go, is None
    (or an empty tuple).

    text_encoders and tokenizers: one of each for SD1 and SD2, two for SDXL (CLIP-L, then OpenCLIP
    bigG with projection).
    """

    family: Family
    schedule: NoiseSchedule
    unet: Any = None
    """diffusers.UNet2DConditionModel"""
    vae: Any = None
    """diffusers.AutoencoderKL"""
    text_encoders: tuple[Any, ...] = ()
    """transformers.CLIPTextModel; for SDXL's second, CLIPTextModelWithProjection"""
    tokenizers: tuple[Any, ...] = ()
    """transformers CLIP tokenizers"""
