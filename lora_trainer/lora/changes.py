"""The weight deltas in a LoRA file of any trainer: `LoraChanges`.

Reads .safetensors files in any layout of `layouts`, of kinds that add to the base's weights (LoRA,
LoCon, LoHa, LoKr, full difference), into one `WeightChange` per layer: two factors, or the full
delta. adapters.continued puts them into the adapters of a new run.

`open_changes` reads only the header and the alphas, without torch, for the tab.

Sources: LyCORIS' lycoris/functional (loha.py, lokr.py, general.py), A1111's
extensions-builtin/Lora/network_*.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.checkpoint.header import Header
from lora_trainer.errors import LoraFileError
from lora_trainer.families.base import Family
from lora_trainer.lora.file import find_in_folder, read_header
from lora_trainer.lora.layouts import FAMILIES, Layer, families_of, layers_in
from lora_trainer.lora.scales import scales_of
from lora_trainer.lora.tensors import read_number, read_tensor
from lora_trainer.settings.training import LoraSettings

if TYPE_CHECKING:
    import torch

ADDED_KINDS = frozenset({"LoRA", "LoHa", "LoKr", "full difference", ""})
"""Kinds whose delta does not depend on the base's weights."""


@dataclass(frozen=True)
class WeightChange:
    """The delta of one layer's weight W: scale * up @ down, or `whole`."""

    scale: float = 1.0
    down: torch.Tensor | None = None
    """(rank, in) or (rank, in, height, width), float32"""
    up: torch.Tensor | None = None
    """(out, rank), float32"""
    whole: torch.Tensor | None = None
    """(out, in) or (out, in, height, width), float32"""

    def rows(self, first: int, count: int) -> WeightChange:
        """The delta of these rows of W. Columns of `up` that are zero there, with their rows of
        `down`, are left out: of a block-diagonal `up` the block is left, exactly.
        """
        if self.whole is not None:
            return WeightChange(whole=self.whole[first : first + count])
        assert self.down is not None and self.up is not None
        up = self.up[first : first + count]
        used = up.ne(0).any(0)
        if not used.any():
            # its own rank is not known
            used[0] = True
        return WeightChange(scale=self.scale, down=self.down[used], up=up[:, used])

    def picked(self, numbers: torch.Tensor) -> torch.Tensor:
        """These rows of the delta as a matrix: (rows, width)."""
        if self.whole is not None:
            return self.whole[numbers].flatten(1)
        assert self.down is not None and self.up is not None
        return self.scale * (self.up[numbers] @ self.down.flatten(1))

    def energy(self) -> float:
        """Sum of squares."""
        if self.whole is not None:
            return float(self.whole.square().sum())
        assert self.down is not None and self.up is not None
        down, up = self.down.flatten(1), self.up
        return float(((up.T @ up) * (down @ down.T)).sum()) * self.scale**2

    @property
    def width(self) -> int:
        """Columns of the delta as a matrix: inputs times the kernel's size."""
        first = self.down if self.whole is None else self.whole
        assert first is not None
        return first[0].numel()

    @property
    def height(self) -> int:
        """Rows of the delta."""
        first = self.up if self.whole is None else self.whole
        assert first is not None
        return first.shape[0]

    def delta(self) -> torch.Tensor:
        """The delta as a matrix, (height, width)."""
        if self.whole is not None:
            return self.whole.flatten(1)
        assert self.up is not None and self.down is not None
        return self.scale * (self.up @ self.down.flatten(1))

    def is_finite(self) -> bool:
        """Whether no factor has NaN or infinite values."""
        return all(bool(one.isfinite().all()) for one in self._factors())

    def to(self, dtype: torch.dtype) -> WeightChange:
        """The same with its factors in another dtype."""
        return WeightChange(
            scale=self.scale,
            down=None if self.down is None else self.down.to(dtype),
            up=None if self.up is None else self.up.to(dtype),
            whole=None if self.whole is None else self.whole.to(dtype),
        )

    def _factors(self) -> list[torch.Tensor]:
        return [one for one in (self.down, self.up, self.whole) if one is not None]

    def of(self, vectors: torch.Tensor) -> torch.Tensor:
        """The delta times vectors, (width, n) -> (out, n)."""
        if self.whole is not None:
            return self.whole.flatten(1) @ vectors
        assert self.up is not None and self.down is not None
        return self.scale * (self.up @ (self.down.flatten(1) @ vectors))


@dataclass(frozen=True)
class RankAndScale:
    """The most frequent values among a file's layers."""

    rank: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class LoraChanges:
    """The layers of a LoRA file; weights are read on demand."""

    header: Header
    layers: Mapping[str, Layer]
    scales: Mapping[str, float]
    """Per layer with a rank: its multiplier at strength 1."""
    families: tuple[str, ...]
    """The families it may be for; empty if unknown."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.header.path.name

    def usual(self, *, convolutions: bool) -> RankAndScale | None:
        """The most frequent rank and scale of the 3 x 3 convolutions, or of all other layers; None
        without ranks.
        """
        found = Counter(
            (layer.rank, self.scales[name])
            for name, layer in self.layers.items()
            if layer.rank and name in self.scales
            if (layer.kernel not in ((), (1, 1))) == convolutions
        )
        if not found:
            return None
        usual = RankAndScale(*found.most_common(1)[0][0])
        stated = self.header.metadata.get("ss_network_dim", "")
        rank = int(stated) if stated.isascii() and stated.isdigit() else 0
        # layers that hold several have a multiple of the rank
        if not convolutions and rank and all(one % rank == 0 for one, _ in found):
            return RankAndScale(rank, usual.scale)
        return usual

    def require_family(self, family: Family) -> None:
        """Raises LoraFileError for a file that says it is for another family."""
        if self.families and family.id not in self.families:
            raise LoraFileError(
                "{path} is a LoRA for {theirs}, and the base is {ours}",
                hint="Choose a LoRA that was trained on a base of the same family.",
                path=self.header.path,
                theirs=" or ".join(FAMILIES[one].name for one in self.families),
                ours=family.name,
            )

    def rank_and_alpha(self, settings: LoraSettings) -> dict[str, float | None]:
        """What rank and alpha are at auto, by their keys: the file's rank, and alpha / rank as the
        file has it.
        """
        values: dict[str, float | None] = {}
        for rank, alpha, convolutions in (
            ("lora_rank", "lora_alpha", False),
            ("conv_rank", "conv_alpha", True),
        ):
            usual = self.usual(convolutions=convolutions)
            if usual is None or (convolutions and settings.lora_type == "lora"):
                continue
            asked = getattr(settings, rank)
            values[rank] = size = usual.rank if asked is None else asked
            if getattr(settings, alpha) is None:
                values[alpha] = usual.scale * size
        return values

    def dtype_of(self, name: str) -> torch.dtype:
        """In which a layer's factors are stored; float32 for other than half precision."""
        import torch

        halves = {"F16": torch.float16, "BF16": torch.bfloat16}
        roles = self.layers[name].roles
        kinds = {info.dtype for role, info in roles.items() if role not in ("alpha", "scale")}
        return halves.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def read(self, name: str) -> WeightChange:
        """One layer's delta. Raises LoraFileError for inconsistent shapes."""
        return change_of(self.header, self.layers[name], self.scales.get(name, 1.0))


def change_of(header: Header, layer: Layer, scale: float) -> WeightChange:
    """The delta of a layer of a file, of ADDED_KINDS. Raises LoraFileError for inconsistent
    shapes.
    """
    tensors = {}
    for role, info in layer.roles.items():
        tensor = read_tensor(header, info)
        if tensor is None:
            raise LoraFileError(
                "{path} contains tensors of type {dtype}, which is not supported",
                hint="Export it as float16.",
                path=header.path,
                dtype=info.dtype,
            )
        tensors[role] = tensor
    try:
        return _change(layer, tensors, scale)
    except (RuntimeError, LookupError) as error:
        raise LoraFileError(
            "{path}: the weights of {layer} do not fit each other",
            hint="Download or export the file again.",
            path=header.path,
            layer=layer.name,
        ) from error


def open_changes(path: Path, *, unstated_scale: float | None = None) -> LoraChanges:
    """The layers of a LoRA file, or of the one in a folder. unstated_scale: that of a file that
    does not state alpha. Raises LoraFileError if its effect cannot be known without a base.
    """
    header = read_header(find_in_folder(path))
    layers = layers_in(header)
    if not layers:
        raise LoraFileError(
            "{path} is not a LoRA", hint="`inspect` shows what it is.", path=header.path
        )
    others = sorted({kind for layer in layers.values() for kind in layer.kinds} - ADDED_KINDS)
    if others:
        raise LoraFileError(
            "{path} cannot be used here: it holds {kinds}",
            hint="LoRA, LoCon, LoHa, LoKr and full differences can be.",
            path=header.path,
            kinds=", ".join(others),
        )
    found = scales_of(header, layers, lambda info: read_number(header, info)).by_layer
    if unstated_scale is not None:
        found = {name: unstated_scale if one is None else one for name, one in found.items()}
    scales = {name: scale for name, scale in found.items() if scale is not None}
    if len(scales) < len(found):
        raise LoraFileError(
            "{path} has no alpha, so its strength is unknown",
            hint="Put the adapter_config.json that belongs to it beside it.",
            path=header.path,
        )
    return LoraChanges(
        header=header,
        layers=layers,
        scales=scales,
        families=families_of(layers, header.metadata)[0],
    )


# --- kinds ----------------------------------------------------------------------------------------


def _change(layer: Layer, tensors: Mapping[str, torch.Tensor], scale: float) -> WeightChange:
    """The delta from a layer's tensors by role."""
    if "diff" in tensors:
        return WeightChange(whole=tensors["diff"])
    if "LoHa" in layer.kinds:
        return WeightChange(whole=scale * _half(tensors, "1") * _half(tensors, "2"))
    if "LoKr" in layer.kinds:
        small, large = _kronecker_factor(tensors, "1"), _kronecker_factor(tensors, "2")
        import torch

        while small.dim() < large.dim():
            small = small.unsqueeze(-1)
        return WeightChange(whole=scale * torch.kron(small, large))
    down, up = tensors["down"], tensors["up"].flatten(1)
    if "mid" in tensors:
        # a convolution in three factors: 1 x 1, its kernel, 1 x 1
        down = _einsum("rskl,si->rikl", tensors["mid"], down.flatten(1))
    if up.shape[1] != down.shape[0]:
        raise IndexError
    return WeightChange(scale=scale, down=down, up=up)


def _half(tensors: Mapping[str, torch.Tensor], number: str) -> torch.Tensor:
    """One factor of a LoHa's Hadamard product."""
    a, b = tensors[f"w{number}_a"], tensors[f"w{number}_b"]
    if f"t{number}" not in tensors:
        return a @ b
    return _einsum("rskl,si,ro->oikl", tensors[f"t{number}"], b, a)


def _kronecker_factor(tensors: Mapping[str, torch.Tensor], number: str) -> torch.Tensor:
    """One factor of a LoKr's Kronecker product."""
    if f"w{number}" in tensors:
        return tensors[f"w{number}"]
    a, b = tensors[f"w{number}_a"], tensors[f"w{number}_b"]
    if f"t{number}" in tensors:
        return _einsum("rskl,si,ro->oikl", tensors[f"t{number}"], b, a)
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


def _einsum(equation: str, *tensors: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.einsum(equation, *tensors)
