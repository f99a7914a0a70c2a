"""The components of a checkpoint, before and after loading."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from lora_trainer.checkpoint.header import Header
    from lora_trainer.checkpoint.names import Stored
    from lora_trainer.checkpoint.tensors import TensorAt
    from lora_trainer.families.base import Family

PredictionType = Literal["epsilon", "v_prediction"]
Part = Literal["UNet", "VAE", "text encoder"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The noise schedule of a diffusion model, as for a diffusers scheduler."""

    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    beta_start: float = 0.00085
    beta_end: float = 0.012
    step_count: int = 1000


@dataclass(frozen=True, kw_only=True)
class TokenShift:
    """A shift that grows with the image: exp(mu), with mu linear in the number of tokens."""

    fewest: int = 256
    mu_at_fewest: float = 0.5
    most: int = 4096
    mu_at_most: float = 1.15
    side: int = 2
    """Side in latents of a token."""

    def shift(self, height: int, width: int) -> float:
        """For latents of this size."""
        tokens = (height // self.side) * (width // self.side)
        slope = (self.mu_at_most - self.mu_at_fewest) / (self.most - self.fewest)
        return math.exp(self.mu_at_fewest + slope * (tokens - self.fewest))


TimeDistribution = Literal["logit_normal", "uniform"]


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """The schedule of a flow-matching model, which predicts noise - image."""

    shift: float = 1.0
    """Above 1, noisier times are more frequent."""
    by_tokens: TokenShift | None = None
    """The shift, where it depends on the size of the image."""
    distribution: TimeDistribution = "logit_normal"
    """Of the times, before they are shifted."""

    def shift_for(self, shape: Sequence[int]) -> float:
        """The shift for latents of this shape, (..., h, w)."""
        if self.by_tokens is None:
            return self.shift
        return self.by_tokens.shift(shape[-2], shape[-1])

    @property
    def prediction_type(self) -> None:
        """None: for diffusion models only."""

    @property
    def zero_terminal_snr(self) -> bool:
        return False


Schedule = NoiseSchedule | FlowSchedule


@dataclass(frozen=True, kw_only=True)
class Component:
    """A model before loading."""

    part: Part
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorAt]
    """All tensors of its files, which may include other components'."""
    place: Callable[[str], Stored]
    """The position of a model's tensor in `tensors`."""
    build: Callable[[Mapping[str, Any]], Any]
    """Configuration -> the model, with arbitrary weights."""
    prefix: str = ""
    """Prefix of its own tensors' names."""
    buffers: Callable[[Any], Mapping[str, Any]] | None = None
    """The values of the model's buffers that are in no file, by name."""

    @property
    def own_tensors(self) -> dict[str, TensorAt]:
        """The tensors of this component only."""
        return {name: at for name, at in self.tensors.items() if name.startswith(self.prefix)}


@dataclass(frozen=True, kw_only=True)
class PartKind:
    """A part of a family's models, in a file of its own or in an all-in-one checkpoint."""

    id: str
    """Unique in its family: t5xxl."""
    part: Part
    name: str
    """Its usual name: T5-XXL."""
    file: str
    """The usual file's name, which is preferred where several fit."""
    size: str
    """The usual file's size: 9.8 GB."""
    source: str
    """Where the usual file is to be had, in words."""
    width: Callable[[Header, str], int | None]
    """A file's header and a prefix of its tensors -> the width of what this part gives; None: it is
    another part. Compared with `Detected.widths`.
    """
    prefixes: tuple[str, ...] = ("",)
    """Prefixes of its tensors in a file of its own."""
    inside: tuple[str, ...] = ()
    """Prefixes of its tensors in an all-in-one checkpoint."""


@dataclass(frozen=True, kw_only=True)
class PartFile:
    """A part that was found."""

    kind: PartKind
    path: Path
    """A file, or a diffusers folder of one model."""
    header: Header
    """With the tensors of all files of a sharded model."""
    headers: tuple[Header, ...]
    """Those files' own."""
    prefix: str


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """A tokenizer that no installed package has: a tokenizer.json, as of the package tokenizers."""

    id: str
    """Unique among all families, and the name of its folder: t5."""
    name: str
    """Its usual name: T5."""
    model: str
    """`model.type` in its tokenizer.json: Unigram, BPE."""
    repository: str
    """On Hugging Face, without a login: to look for in the cache, and to download."""
    alike: tuple[str, ...] = ()
    """Those that have the same one, to look for in the cache."""
    other_repositories: tuple[str, ...] = ()
    """Those that have the same one in `diffusers_folder`, to look for in the cache."""
    diffusers_folder: str
    """Its folder in a diffusers folder: tokenizer_2."""
    host_folders: tuple[str, ...] = ()
    """Its folders below a WebUI's backend/huggingface."""
    vocabulary: tuple[str, ...] = ()
    """Files that together do instead of a tokenizer.json."""
    read: Callable[[Path], Any] | None = None
    """The first of these -> the tokenizer."""
    special: tuple[str, ...] = ()
    """Special tokens that follow those of its vocabulary, in this order."""


@dataclass(frozen=True, kw_only=True)
class TrainingAdapterKind:
    """The training adapter of a model that was distilled to few steps (lora.training_adapter)."""

    file: str
    """The usual file's name, which may begin with a folder's."""
    size: str
    """Its size: 0.34 GB."""
    source: str
    """Where it is to be had, in words."""
    name: re.Pattern[str]
    """What the name of such a file, or of its folder, holds in lower case."""
    instead: str
    """The model that needs none."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """How a model that was distilled to few steps makes images, and is trained."""

    step_count: int
    guidance: float = 1.0
    """CFG scale; 1: without the negative prompt."""
    adapter: TrainingAdapterKind | None = None


TokenizerOpener = Callable[[TokenizerKind], Any]
"""A kind -> the tokenizer of the package tokenizers. Raises CheckpointError."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """The models of a checkpoint before loading."""

    unet: Component
    text_encoders: tuple[Component, ...]
    vae: Component | None


@dataclass(kw_only=True)
class Parts:
    """A checkpoint's loaded components; None or empty if not loaded.

    text_encoders and tokenizers: as many as the family has.
    """

    family: Family
    schedule: Schedule
    unet: Any = None
    """The denoising model: diffusers.UNet2DConditionModel, in newer families a transformer."""
    vae: Any = None
    """diffusers.AutoencoderKL, or the family's equivalent."""
    text_encoders: tuple[Any, ...] = ()
    """For SD1, SD2 and SDXL: transformers.CLIPTextModel; SDXL's second is a
    CLIPTextModelWithProjection.
    """
    tokenizers: tuple[Any, ...] = ()
