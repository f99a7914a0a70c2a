"""How much of a LoRA survives when a WebUI merges it into weights in low precision, measured on the
LoRA file and the checkpoint file.

    survival(path, base) -> Survival        for each precision and kind of merge

With W a weight of the file, D the LoRA's delta at a strength, Q the WebUI's rounding, and d the
actual change of the weights (Q(Q(W) + D) - Q(W), or as low_bits.Merge defines it):

    survived = <d, D> / <D, D>      1: all of it, 0: nothing
    noise    = |d - D| / |D|        relative error of the change

Both are sums over all layers, so layers with larger deltas weigh more. At most ELEMENTS weights of
a layer are read, as whole rows that are chosen at random with a fixed seed, so that a checkpoint of
any size takes seconds and little memory. Only the denoiser is measured: WebUIs keep text encoders
in 16 bits, except with A1111's FP8 weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.checkpoint.header import Header
from lora_trainer.errors import CheckpointError, LoraFileError, Message
from lora_trainer.lora.changes import ADDED_KINDS, change_of
from lora_trainer.lora.checkpoint_layers import FP8, CheckpointLayers, flat
from lora_trainer.lora.file import find_in_folder, read_header
from lora_trainer.lora.host_layers import HOST_NAMES, Place
from lora_trainer.lora.layouts import UNET, Layer, layers_in
from lora_trainer.lora.loading import fits_place, models_in, place_of
from lora_trainer.lora.low_bits import SCALED, SIXTEEN, Merge, StorageSetting, cases, sixteen
from lora_trainer.lora.metadata import STRENGTH
from lora_trainer.lora.rounding import PRECISIONS, Precision
from lora_trainer.lora.scales import scales_of
from lora_trainer.lora.tensors import read_number

ELEMENTS = 2**18
"""Maximum number of weights measured per layer."""
WORST = 3
ENOUGH = 0.95
"""From this share on, images do not differ visibly from those with the whole LoRA."""
MOST_NOISE = 2.0
"""Images of the demo look the same with noise of 1.2 as with none: BENCHMARKS.md."""
Way = tuple[str, Merge]
"""(precision, merge)"""
Render = Callable[[Message], Any]
MergeTexts = Mapping[str, str]


@dataclass(frozen=True)
class LayerShare:
    layer: str
    """Its name in the LoRA file."""
    survived: float


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What survives in one precision."""

    survived: float
    noise: float
    worst: tuple[LayerShare, ...]
    """The layers with the smallest shares."""

    @property
    def is_lossy(self) -> bool:
        """Whether the loss is large enough to report."""
        return self.survived < ENOUGH or self.noise > MOST_NOISE

    def to_mapping(self) -> dict[str, Any]:
        return {
            "survived": self.survived,
            "noise": self.noise,
            "worst": [{"layer": one.layer, "survived": one.survived} for one in self.worst],
        }


@dataclass(frozen=True, kw_only=True)
class MergeOutcome:
    """The merge of the LoRA in one setting of a WebUI."""

    host: str
    case: StorageSetting
    kept: Kept
    message: Message
    remedied: Message
    """With the setting's remedy; empty if it has none."""
    hint: Message


@dataclass(frozen=True, kw_only=True)
class Survival:
    base: Path
    model: str
    stored: str
    """low_bits.Stored"""
    layer_count: int
    """Layers that were measured."""
    left_out: int
    """Other layers: of text encoders, of kinds whose delta depends on the base, or that do not fit.
    """
    strength: float
    """The strength that the messages state: the last requested one, the recommended one, or 1."""
    kept: Mapping[float, Mapping[Way, Kept]]
    """By strength."""

    def outcomes(self, hosts: Iterable[str] = HOST_NAMES) -> list[MergeOutcome]:
        """At `strength`, for each setting of these WebUIs."""
        return [
            _outcome(host, case, self)
            for host in hosts
            for case in cases(host, self.model, self.stored)
        ]

    def way(self, case: StorageSetting, merge: Merge) -> Way:
        return _way(case, merge, self.model)

    def to_mapping(self, render: Render = str, hosts: Iterable[str] = HOST_NAMES) -> dict[str, Any]:
        """As JSON values. `render` converts each message."""
        return {
            "base": str(self.base),
            "model": self.model,
            "stored": self.stored,
            "layer_count": self.layer_count,
            "left_out": self.left_out,
            "strength": self.strength,
            "measured": [
                {"strength": strength, "precision": precision, "merge": merge} | kept.to_mapping()
                for strength, ways in self.kept.items()
                for (precision, merge), kept in ways.items()
            ],
            "hosts": [
                {
                    "host": one.host,
                    "setting": one.case.setting,
                    "remedy": one.case.remedy,
                    "precision": self.way(one.case, one.case.merge)[0],
                    "merge": one.case.merge,
                    "lossy": one.kept.is_lossy,
                    "message": render(one.message),
                    "remedied": render(one.remedied),
                    "hint": render(one.hint),
                }
                | one.kept.to_mapping()
                for one in self.outcomes(hosts)
            ],
        }

    def to_text(self, host: str | None = None) -> str:
        """A few aligned lines: for each setting of `host`; without a host, for each lossy setting
        of any WebUI.
        """
        outcomes = self.outcomes([host] if host else HOST_NAMES)
        told = [one for one in outcomes if host or one.kept.is_lossy]
        count = f"{self.layer_count} layers" if self.layer_count != 1 else "1 layer"
        lines = [f"at strength {self.strength:g} in {self.base.name}, {count} of the denoiser:"]
        lines += [" ".join(filter(None, (str(one.message), str(one.hint)))) for one in told]
        if not told:
            lines += ["all of it, or nearly, in every setting of the WebUIs that run this model."]
        elif len(told) < len(outcomes):
            lines += ["All of it, or nearly, in the other settings of the WebUIs."]
        return kept_text(lines)


def kept_text(lines: Sequence[str]) -> str:
    """The lines, aligned as those of Description and Certificate."""
    labels = ["kept:", *("" for _ in lines[1:])]
    return "\n".join(f"{label:<16} {value}" for label, value in zip(labels, lines, strict=True))


def survival(path: Path, base: Path, strengths: Sequence[float] = ()) -> Survival:
    """Measure a LoRA file, or the one in a folder. strengths: by default 1 and the recommended
    strength of the file.

    Raises LoraFileError, and CheckpointError for a base that is not a model of host_layers.
    """
    header = read_header(find_in_folder(Path(path)))
    layers = layers_in(header)
    checkpoint = _checkpoint(base)
    model, places = _places(header, layers, checkpoint)
    measured = {
        name: place
        for name, place in places.items()
        if layers[name].kinds <= ADDED_KINDS and "set" not in layers[name].roles
    }
    if places and not measured:
        raise LoraFileError(
            "the deltas of {path} depend on the base's weights (DoRA), and are not measured",
            path=header.path,
        )
    if not measured:
        raise LoraFileError(
            "no layer of {path} can be measured on {base}",
            hint="Use the checkpoint that the LoRA is made for, in 16 bits or fp8.",
            path=header.path,
            base=base.name,
        )
    stored = _stored(checkpoint, measured.values())
    strengths = strengths or tuple(dict.fromkeys((1.0, _recommended(header))))
    ways = _ways(model, stored)
    sums = {strength: {way: _Sums() for way in ways} for strength in strengths}
    scales = scales_of(header, layers, lambda info: read_number(header, info)).by_layer
    for number, (name, place) in enumerate(measured.items()):
        scale = scales.get(name)
        delta = change_of(header, layers[name], 1.0 if scale is None else scale)
        piece = Piece.of(checkpoint, place, number)
        if piece is None:
            continue
        change = delta.picked(piece.numbers)
        for strength in strengths:
            for way, after, before in piece.merged(change * strength, ways, sixteen(model)):
                sums[strength][way].add(name, after - before, change * strength, piece.share)
    if not any(found.layers for found in sums[strengths[-1]].values()):
        raise LoraFileError(
            "the weights of {path} have no effect, or are NaN or infinite", path=header.path
        )
    return Survival(
        base=base,
        model=model,
        stored=stored,
        layer_count=len(measured),
        left_out=len(layers) - len(measured),
        strength=strengths[-1],
        kept={
            strength: {way: found.kept() for way, found in ways.items()}
            for strength, ways in sums.items()
        },
    )


def _checkpoint(base: Path) -> CheckpointLayers:
    if base.suffix.lower() == ".gguf":
        raise CheckpointError(
            "{path} is a GGUF file, whose weights are quantised",
            hint=(
                "Use the .safetensors file that it was converted from: the loss in GGUF is"
                " computed from that."
            ),
            path=base,
        )
    return CheckpointLayers.of(base)


def _recommended(header: Header) -> float:
    try:
        strength = float(header.metadata.get(STRENGTH, 1.0))
    except ValueError:
        return 1.0
    return strength if math.isfinite(strength) and strength else 1.0


def _places(
    header: Header, layers: Mapping[str, Layer], base: CheckpointLayers
) -> tuple[str, Mapping[str, Place]]:
    """The model of which the base has the most layers, and the LoRA layers' places in it."""
    models = models_in(layers, header.metadata)
    models = tuple(model for model in models if model in base.models) or models
    own = base.by_flat_name()
    found = {
        model: {
            name: place
            for name, layer in layers.items()
            if (place := _place(layer, model, own)) is not None
            and fits_place(layer, place, base.weights)
        }
        for model in models
    }
    best = max(found, key=lambda model: len(found[model]), default="")
    return best, found.get(best, {})


def _place(layer: Layer, model: str, own: Mapping[str, Place]) -> Place | None:
    """The layer's place, under the checkpoint's own name or a translated one; None if the
    checkpoint lacks it.
    """
    if layer.part == UNET and layer.path in own:
        return own[layer.path]
    place = place_of(layer, model)
    is_there = place is not None and place.part == UNET and flat(place.layer) in own
    return place if is_there else None


def _stored(base: CheckpointLayers, places: Iterable[Place]) -> str:
    """The most frequent low_bits.Stored of these layers."""
    kinds = [
        SCALED
        if base.scale(place.layer) is not None
        else FP8.get(base.weight(place.layer).dtype, SIXTEEN)
        for place in places
    ]
    return max(kinds, key=kinds.count)


def _way(case: StorageSetting, merge: Merge, model: str) -> Way:
    return (sixteen(model) if case.precision == SIXTEEN else case.precision), merge


def _ways(model: str, stored: str) -> list[Way]:
    """Every distinct pair of precision and merge among the WebUIs' settings."""
    return list(
        dict.fromkeys(
            _way(case, merge, model)
            for host in HOST_NAMES
            for case in cases(host, model, stored)
            for merge in ((case.merge, case.kept) if case.remedy else (case.merge,))
        )
    )


# --- one layer ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of a layer of the base, or all."""

    numbers: Tensor
    """Indices of the rows in the LoRA's layer."""
    share: float
    """Rows of the layer divided by rows read."""
    stored: Tensor
    """(rows, width)"""
    scale: float | None
    """Factor of the stored numbers."""
    fp8: str
    """The fp8 format that they are stored in, or ""."""
    is_matrix: bool
    seed: int

    @classmethod
    def of(cls, base: CheckpointLayers, place: Place, seed: int) -> Piece | None:
        """None if the base's dtype cannot be read."""
        shape = base.weights[place.layer]
        rows = place.shape[0] if place.is_part else shape[0]
        count = max(1, min(rows, ELEMENTS // math.prod(shape[1:])))
        drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        numbers = drawn[:count].sort().values
        theirs = (numbers + rows // 2) % rows if place.swapped else numbers
        stored = base.rows(place.layer, theirs + place.first)
        if stored is None:
            return None
        return cls(
            numbers=numbers,
            share=rows / count,
            stored=stored,
            scale=base.scale(place.layer),
            fp8=FP8.get(base.weight(place.layer).dtype, ""),
            is_matrix=len(shape) == 2,
            seed=seed,
        )

    def merged(
        self, delta: Tensor, ways: Iterable[Way], sixteen_bits: str
    ) -> Iterator[tuple[Way, Tensor, Tensor]]:
        """Yields (way, weights with the LoRA, weights without it) for each way."""
        weights = self.stored * (self.scale or 1.0)
        in_sixteen = PRECISIONS[sixteen_bits].nearest
        rounded: dict[str, Tensor] = {}
        for way in ways:
            precision, merge = way if self._is_kept_in(way[0]) else (sixteen_bits, "rounded")
            if precision not in rounded:
                rounded[precision] = self._nearest(precision, weights)
            before = rounded[precision]
            if merge == "apart":
                yield way, in_sixteen(before + delta), in_sixteen(before)
            elif merge == "whole":
                yield way, self._nearest(precision, weights + delta), before
            else:
                yield way, self._after(precision, merge, before, delta), before

    def _is_kept_in(self, precision: str) -> bool:
        """False for a layer that stays in 16 bits while others have this precision."""
        if precision == SCALED:
            return self.scale is not None
        return self.is_matrix or not PRECISIONS[precision].matrices_only

    def _after(self, precision: str, merge: Merge, before: Tensor, delta: Tensor) -> Tensor:
        """The rounded weights with the LoRA added."""
        if merge == "refused":
            return before
        if merge == "unscaled":
            delta = delta * (self.scale or 1.0)
        if merge != "random":
            return self._nearest(precision, before + delta)
        scale = self._scale(precision)
        random = self._precision(precision).random
        assert random is not None
        generator = torch.Generator().manual_seed(self.seed)
        return random((before + delta) / scale, generator) * scale

    def _nearest(self, precision: str, weights: Tensor) -> Tensor:
        scale = self._scale(precision)
        return self._precision(precision).nearest(weights / scale) * scale

    def _precision(self, precision: str) -> Precision:
        return PRECISIONS[self.fp8 if precision == SCALED else precision]

    def _scale(self, precision: str) -> float:
        return (self.scale or 1.0) if precision == SCALED else 1.0


@dataclass
class _Sums:
    """Sums over layers."""

    inner: float = 0.0
    squares: float = 0.0
    errors: float = 0.0
    layers: list[LayerShare] = field(default_factory=list)

    def add(self, name: str, change: Tensor, delta: Tensor, share: float) -> None:
        inner, squares = float((change * delta).sum()), float(delta.square().sum())
        errors = float((change - delta).square().sum())
        if not squares or not math.isfinite(inner + squares + errors):
            # an empty delta, or NaN or infinite weights, which Certificate reports
            return
        self.inner += share * inner
        self.squares += share * squares
        self.errors += share * errors
        self.layers.append(LayerShare(name, inner / squares))

    def kept(self) -> Kept:
        if not self.squares:
            return Kept(survived=1.0, noise=0.0, worst=())
        return Kept(
            survived=self.inner / self.squares,
            noise=math.sqrt(self.errors / self.squares),
            worst=tuple(sorted(self.layers, key=lambda one: one.survived)[:WORST]),
        )


# --- sentences ------------------------------------------------------------------------------------


def _outcome(host: str, case: StorageSetting, found: Survival) -> MergeOutcome:
    ways = found.kept[found.strength]
    way = found.way(case, case.merge)
    kept, worst = ways[way], ways[way].worst
    values = {
        "host": HOST_NAMES[host] + (f" ({case.setting})" if case.setting else ""),
        "precision": _name(way[0]),
        "share": percent(kept.survived),
        "noise": f"{kept.noise:.1f}",
        "worst": worst[0].layer if worst else "",
        "least": percent(worst[0].survived) if worst else "",
    }
    is_entire = case.merge == "rounded" and not kept.is_lossy
    remedied = _remedied(case, ways[found.way(case, case.kept)]) if case.remedy else Message("")
    return MergeOutcome(
        host=host,
        case=case,
        kept=kept,
        message=Message(SENTENCES["entire" if is_entire else case.merge], values),
        remedied=remedied,
        hint=_hint(case, remedied) if kept.is_lossy else Message(""),
    )


SENTENCES: MergeTexts = {
    "rounded": (
        "{host} adds the LoRA to weights in {precision} and rounds the sum: {share} of it is kept"
        " (least in {worst}: {least})."
    ),
    "entire": (
        "{host} adds the LoRA to weights in {precision} and rounds the sum: {share} of it is kept."
    ),
    "random": (
        "{host} adds the LoRA to weights in {precision} with stochastic rounding: {share} of it"
        " is kept on average, with noise of {noise} times its size."
    ),
    "apart": (
        "{host} adds the LoRA to weights in {precision} in each forward pass: {share} of it is"
        " kept."
    ),
    "unscaled": (
        "{host} adds the LoRA to the stored numbers of weights in {precision}, without the scale:"
        " {share} of it is kept."
    ),
    "refused": "{host} cannot add the LoRA to weights in {precision}: {share} of it is kept.",
}
"""By low_bits.Merge, except `whole`, which is only a remedy. entire: rounded without loss."""


def _remedied(case: StorageSetting, kept: Kept) -> Message:
    values = {
        "remedy": case.remedy,
        "share": percent(kept.survived),
        "noise": f"{kept.noise:.1f}",
    }
    if kept.noise > MOST_NOISE:
        return Message(
            'With "{remedy}", {share} of it is kept, with noise of {noise} times its size.',
            values,
        )
    return Message('With "{remedy}", {share} of it is kept.', values)


def _hint(case: StorageSetting, remedied: Message) -> Message:
    if remedied.template or case.precision == SIXTEEN:
        return remedied
    return Message("No setting keeps more of it; use the model in 16 bits.")


def _name(precision: str) -> str:
    return "scaled fp8" if precision == SCALED else PRECISIONS[precision].name


def percent(share: float) -> str:
    """A percentage: whole numbers from 10% on, two significant digits below."""
    share = max(share, 0.0)
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{100 * share:.2g}%"
