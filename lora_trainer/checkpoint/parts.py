"""The components of a checkpoint, before and after they are loaded: what comes out of
`checkpoint.load` and goes into training, previews and export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lora_trainer.checkpoint.names import Stored
    from lora_trainer.checkpoint.tensors import TensorAt
    from lora_trainer.families.base import Family

PredictionType = Literal["epsilon", "v_prediction"]
Part = Literal["UNet", "VAE", "text encoder"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How a diffusion model was trained to remove noise: the numbers a diffusers scheduler is built
    from.
    """

    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    beta_start: float = 0.00085
    beta_end: float = 0.012
    step_count: int = 1000


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """How a flow-matching model was trained: it predicts noise - image at every time."""

    shift: float = 1.0
    """Above 1, more of the times are noisy ones."""

    @property
    def prediction_type(self) -> None:
        """None of those that diffusion models choose from."""

    @property
    def zero_terminal_snr(self) -> bool:
        return False


Schedule = NoiseSchedule | FlowSchedule


@dataclass(frozen=True, kw_only=True)
class Component:
    """One model before it is loaded."""

    part: Part
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorAt]
    """All of its files', among them other components' where they share one."""
    place: Callable[[str], Stored]
    """Where a tensor of the model lies among `tensors`."""
    build: Callable[[Mapping[str, Any]], Any]
    """config -> the model, with weights of any values."""
    prefix: str = ""
    """What the names of its own tensors begin with."""

    @property
    def own_tensors(self) -> dict[str, TensorAt]:
        """Those of `tensors` that are no other component's."""
        return {name: at for name, at in self.tensors.items() if name.startswith(self.prefix)}


@dataclass(frozen=True, kw_only=True)
class Components:
    """The models of a checkpoint before they are loaded."""

    unet: Component
    text_encoders: tuple[Component, ...]
    vae: Component | None


@dataclass(kw_only=True)
class Parts:
    """A checkpoint's components. A component that was not asked for, or has been let go, is None
    (or an empty tuple).

    text_encoders and tokenizers: as many of each as the family has.
    """

    family: Family
    schedule: Schedule
    unet: Any = None
    """The model that predicts: diffusers.UNet2DConditionModel, in newer families a transformer."""
    vae: Any = None
    """diffusers.AutoencoderKL, or what the family decodes by"""
    text_encoders: tuple[Any, ...] = ()
    """Of SD1, SD2 and SDXL: transformers.CLIPTextModel; SDXL's second is a
    CLIPTextModelWithProjection.
    """
    tokenizers: tuple[Any, ...] = ()
