"""The low-rank layers of LoRA and LoCon: PEFT's, with our own initialization and scale, because
PEFT initializes from the global random state and in the base's dtype.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from lora_trainer.adapters.base import Adapter, Size
from lora_trainer.adapters.types.lora import DOWN, UP, A, B
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.changes import WeightChange
from lora_trainer.lora.names import Part

ADAPTER = "default"


class LowRankAdapter(Adapter):
    """`layer` is a PEFT LoraLayer."""

    @property
    def down(self) -> torch.nn.Parameter:
        """(rank, in) or (rank, in, height, width), float32"""
        return self.layer.lora_A[ADAPTER].weight  # type: ignore[no-any-return]

    @property
    def up(self) -> torch.nn.Parameter:
        """(out, rank) or (out, rank, 1, 1), float32"""
        return self.layer.lora_B[ADAPTER].weight  # type: ignore[no-any-return]

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(self.name + A, self.down), (self.name + B, self.up)]

    def begin_from(self, change: WeightChange) -> tuple[float, float]:
        scale = self.size.alpha / self.size.rank
        base = _shape(self.layer.base_layer)
        down, up, kept, energy = fitted(change, base, self.size.rank, scale)
        rank = down.shape[0]
        with torch.no_grad():
            self.down[:rank] = down.reshape(rank, *self.down.shape[1:])
            self.up[:, :rank] = up.reshape(-1, rank, *self.up.shape[2:])
        return kept, energy

    @contextmanager
    def at_strength(self, value: float) -> Iterator[None]:
        layer, dropout = self.layer, self.layer.lora_dropout[ADAPTER]
        scale, training = layer.scaling[ADAPTER], dropout.training
        try:
            layer.set_scale(ADAPTER, value)
            dropout.train(False)
            yield
        finally:
            layer.scaling[ADAPTER] = scale
            dropout.train(training)

    def webui_tensors(self) -> dict[str, torch.Tensor]:
        return {DOWN: self.down.detach(), UP: self.up.detach()}

    def diffusers_tensors(self) -> dict[str, torch.Tensor]:
        """With the scale multiplied into one tensor: into down if below 1, whose values are larger
        and so do not underflow in float16.
        """
        down, up = self.down.detach(), self.up.detach()
        scale = self.size.alpha / self.size.rank
        return {A: down * scale, B: up} if scale < 1 else {A: down, B: up * scale}


def inject(
    part: Part, model: Any, sizes: Mapping[str, Size], dropout: float, generator: torch.Generator
) -> Iterator[Adapter]:
    """Initialize down with kaiming_uniform_(a=sqrt(5)), as torch.nn.Linear and PEFT do, and up with
    zeros.
    """
    usual = Counter(sizes.values()).most_common(1)[0][0]
    # PEFT's patterns are regular expressions
    others = {re.escape(path): size for path, size in sizes.items() if size != usual}
    config = LoraConfig(
        r=usual.rank,
        lora_alpha=usual.alpha,
        rank_pattern={path: size.rank for path, size in others.items()},
        alpha_pattern={path: size.alpha for path, size in others.items()},
        lora_dropout=dropout,
        target_modules=list(sizes),
        init_lora_weights=False,
    )
    # low_cpu_mem_usage: PEFT creates meta tensors, and does not use the global random state
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)
    for path, size in sizes.items():
        layer = model.get_submodule(path)
        device = layer.base_layer.weight.device
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        assert (layer.r[ADAPTER], layer.scaling[ADAPTER]) == (size.rank, size.alpha / size.rank)
        bound = 1 / math.sqrt(down.weight[0].numel())
        first = torch.empty(down.weight.shape, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        down.weight = torch.nn.Parameter(first.to(device))
        up.weight = torch.nn.Parameter(
            torch.zeros(up.weight.shape, dtype=torch.float32, device=device)
        )
        yield LowRankAdapter(part, path, layer, size)


def leave_casts_to_autocast(adapters: Iterable[Adapter]) -> None:
    """For layers that are used under autocast only: PEFT no longer casts an input in 16 bits to
    float32. Autocast casts it back, with the same result, and each layer keeps this copy until the
    backward pass. With dropout, whose factor is not exact in 16 bits, PEFT still casts.
    """
    for adapter in adapters:
        if isinstance(adapter, LowRankAdapter):
            dropout = adapter.layer.lora_dropout[ADAPTER]
            adapter.layer.cast_input_dtype_enabled = not isinstance(dropout, torch.nn.Identity)


def fitted(
    change: WeightChange, base: tuple[int, ...], rank: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """(down, up, share kept, energy): the best approximation of the delta by scale * up @ down with
    at most `rank`; exact if the rank suffices. down: (r, in * height * width), up: (out, r).
    energy: sum of squares of the delta. Raises LoraFileError if it does not fit a weight of shape
    `base`.
    """
    if change.down is not None and change.up is not None:
        down, up = change.down.flatten(1), change.up
        _require_shape((up.shape[0], down.shape[1]), base)
        if down.shape[0] <= rank:
            energy = float(((up.T @ up) * (down @ down.T)).sum()) * change.scale**2
            # not multiplied where that would be by 1: it stays exact
            return down, up if change.scale == scale else up * (change.scale / scale), 1.0, energy
        left, upper = torch.linalg.qr(up.double())
        right, lower = torch.linalg.qr(down.double().T)
        core, factor = upper @ lower.T, change.scale
    else:
        assert change.whole is not None
        core, factor = change.whole.flatten(1).double(), 1.0
        # of a convolution, LoHa and full differences may be flat
        _require_shape(tuple(core.shape), base)
        left = right = None
    values, vectors = torch.linalg.eigh(core @ core.T)
    vectors = vectors[:, -rank:]
    up, down = vectors, vectors.T @ core
    lengths = down.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    up, down = up * lengths * (factor / scale), down / lengths[:, None]
    energy = float(values.sum())
    kept = float(values[-rank:].sum()) / energy if energy > 0 else 1.0
    return (
        (down if right is None else down @ right.T).float(),
        (up if left is None else left @ up).float(),
        kept,
        energy * factor**2,
    )


def _shape(layer: Any) -> tuple[int, ...]:
    """The shape of a layer's weight, also of a quantized one, whose tensor has another."""
    if isinstance(layer, torch.nn.Linear):
        return (layer.out_features, layer.in_features)
    return tuple(layer.weight.shape)


def _require_shape(shape: tuple[int, ...], base: tuple[int, ...]) -> None:
    if shape != (base[0], math.prod(base[1:])):
        raise LoraFileError(
            "a layer of {theirs} does not fit the base model's of {ours}",
            hint="Choose a LoRA that was trained on a base of the same family.",
            theirs=" x ".join(map(str, shape)),
            ours=" x ".join(map(str, base)),
        )
