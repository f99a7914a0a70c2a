"""The interface of LoRA types, `LoraType`, and of a layer's `Adapter`. Imports without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_trainer.errors import LoraFileError
from lora_trainer.families.base import Family, Rows, Shape
from lora_trainer.lora.changes import WeightChange
from lora_trainer.lora.names import Part
from lora_trainer.settings.training import DEFAULT_RANK, LoraSettings

if TYPE_CHECKING:
    import torch

ALPHA_END = ".alpha"
Form = Literal["webui", "diffusers"]
"""The naming scheme of a LoRA file."""


@dataclass(frozen=True)
class Size:
    """A layer's rank and alpha; its delta is scaled by alpha / rank."""

    rank: int
    alpha: float


class Adapter(ABC):
    """One layer's adapter. `layer` replaces the base layer in the model, and has it as
    `base_layer`.
    """

    def __init__(self, part: Part, path: str, layer: Any, size: Size) -> None:
        self.part = part
        self.path = path
        self.layer = layer
        self.size = size

    @property
    def name(self) -> str:
        """diffusers' name: part and path."""
        return f"{self.part}.{self.path}"

    @abstractmethod
    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters, float32, with names that start with `name`."""

    @abstractmethod
    def begin_from(self, change: WeightChange) -> tuple[float, float]:
        """Initialize from a file's delta of this layer. Returns (share of its energy that is kept,
        energy: its sum of squares). Raises LoraFileError for another shape.
        """

    @abstractmethod
    def at_strength(self, value: float) -> AbstractContextManager[None]:
        """For the block, scale the delta by `value` (0: base only) and disable dropout."""

    @abstractmethod
    def webui_tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors in a LoRA file for a WebUI, by key suffix, without alpha."""

    @abstractmethod
    def diffusers_tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors in diffusers' form, which has no alpha."""


class LoraType(ABC):
    """A LoRA type. Immutable."""

    id: str
    """The value of the setting lora_type."""
    label: str
    """Shown in the form; a proper name, not translated."""
    sentence: str = ""
    """Help text for the choice."""
    own_settings: tuple[str, ...] = ()
    """Settings that this type reads and not every type does; otherwise they stay at auto."""
    webui_ends: tuple[str, ...]
    """Key suffixes in a LoRA file for a WebUI, without `.alpha`; each layer has all of them."""
    diffusers_ends: tuple[str, ...]
    """Key suffixes in diffusers' form."""
    network_module: str = "networks.lora"
    """ss_network_module."""

    def ends(self, form: Form) -> tuple[str, ...]:
        """Key suffixes in a file of this form."""
        return self.webui_ends if form == "webui" else self.diffusers_ends

    def more_targets(self, family: Family, part: Part) -> Sequence[str]:
        """Additional target layers, by the end of their names; missing ones are ignored."""
        return ()

    def size(self, shape: Shape, settings: LoraSettings) -> Size:
        """Rank and alpha for a layer whose weight has this shape."""
        rank = settings.lora_rank or DEFAULT_RANK
        return Size(rank, float(rank if settings.lora_alpha is None else settings.lora_alpha))

    def network_args(self, settings: LoraSettings) -> dict[str, Any]:
        """Entries of ss_network_args besides the targets."""
        return {}

    @abstractmethod
    def inject(
        self,
        part: Part,
        model: Any,
        sizes: Mapping[str, Size],
        settings: LoraSettings,
        generator: torch.Generator,
    ) -> Iterator[Adapter]:
        """Replace the layers at these paths with new adapters that have no effect yet, in order.
        Weights are float32 on their layer's device, initialized from `generator` only.
        """

    @abstractmethod
    def weight_count(self, shape: Shape, size: Size) -> int:
        """Number of weights for a layer whose weight has this shape."""

    def joined(
        self, pieces: Sequence[tuple[Rows, Size, Mapping[str, torch.Tensor]]]
    ) -> tuple[dict[str, torch.Tensor], float]:
        """One layer's tensors in the WebUI's form, and alpha, from those of the layers that it
        holds, with their rows; the delta of other rows is zero.
        """
        raise LoraFileError(
            "{type} cannot be saved for this model, whose file has several layers in one",
            hint="Set lora_type to lora.",
            type=self.label,
        )

    @abstractmethod
    def fits(self, base: Shape, shapes: Mapping[str, Shape]) -> bool:
        """Whether tensors of these shapes, by key suffix in either form, fit a weight of shape
        `base`.
        """

    @abstractmethod
    def is_idle(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether the delta is zero."""

    @abstractmethod
    def effect(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A layer's weight delta at strength 1, float32, from tensors in the WebUI's form with
        alpha.
        """
