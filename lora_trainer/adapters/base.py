"""What a type of LoRA does: `LoraType`, and what it puts into the model: `Adapter`. No torch at
import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_trainer.families.base import Family, Shape
from lora_trainer.lora.changes import WeightChange
from lora_trainer.lora.names import Part
from lora_trainer.settings.training import USUAL_RANK, LoraSettings

if TYPE_CHECKING:
    import torch

ALPHA_END = ".alpha"
Form = Literal["webui", "diffusers"]
"""Whose names a LoRA file has."""


@dataclass(frozen=True)
class Size:
    """Of one layer's adapter: its effect is scaled by alpha / rank."""

    rank: int
    alpha: float


class Adapter(ABC):
    """One layer's adapter. Its layer stands in the model where the base layer stood, and has that
    as `base_layer`.
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
        """What learns, float32, with names that begin with `name`."""

    @abstractmethod
    def begin_from(self, change: WeightChange) -> tuple[float, float]:
        """Take over what a LoRA file changes in this layer. Returns (share of it that is kept, sum
        of its squares). Raises LoraFileError for one of another shape.
        """

    @abstractmethod
    def at_strength(self, value: float) -> AbstractContextManager[None]:
        """The layer scaled by `value` (0: the base alone), and without dropout."""

    @abstractmethod
    def webui_tensors(self) -> dict[str, torch.Tensor]:
        """What a LoRA file for a WebUI holds of it: each tensor by the end of its key, without
        alpha.
        """

    @abstractmethod
    def diffusers_tensors(self) -> dict[str, torch.Tensor]:
        """The same for diffusers, which knows no alpha."""


class LoraType(ABC):
    """One type of LoRA. It is a value: nothing in it changes."""

    id: str
    """In settings: lora_type."""
    label: str
    """In the form; a proper name, the same in every language."""
    sentence: str = ""
    """What is to be known of it before it is chosen."""
    own_settings: tuple[str, ...] = ()
    """Settings that only some types read, and this one does; auto leaves them alone."""
    webui_ends: tuple[str, ...]
    """What its keys end with in a LoRA file for a WebUI, `.alpha` left out: all of them are
    there for each layer.
    """
    diffusers_ends: tuple[str, ...]
    """The same for diffusers."""
    network_module: str = "networks.lora"
    """ss_network_module."""

    def ends(self, form: Form) -> tuple[str, ...]:
        """What its keys end with in a file of this form."""
        return self.webui_ends if form == "webui" else self.diffusers_ends

    def more_targets(self, family: Family, part: Part) -> Sequence[str]:
        """Layers that learn beside those that are asked for, by the end of their names. What a
        model lacks of them is passed over.
        """
        return ()

    def size(self, shape: Shape, settings: LoraSettings) -> Size:
        """Of the adapter for a layer whose weight has this shape."""
        rank = settings.lora_rank or USUAL_RANK
        return Size(rank, float(rank if settings.lora_alpha is None else settings.lora_alpha))

    def network_args(self, settings: LoraSettings) -> dict[str, Any]:
        """What ss_network_args says beside the targets."""
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
        """Put fresh adapters, which change nothing, into the layers at these paths, in their order.

        Weights are float32 on their layer's device. First values are drawn from `generator` alone.
        """

    @abstractmethod
    def weight_count(self, shape: Shape, size: Size) -> int:
        """Weights of the adapter for a layer whose weight has this shape."""

    @abstractmethod
    def fits(self, base: Shape, shapes: Mapping[str, Shape]) -> bool:
        """Whether tensors of these shapes, by the ends of their keys in either form, can change a
        weight of shape `base`.
        """

    @abstractmethod
    def is_idle(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether these change nothing."""

    @abstractmethod
    def effect(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The change of a layer's weight at strength 1, float32, from a WebUI's form with alpha."""
