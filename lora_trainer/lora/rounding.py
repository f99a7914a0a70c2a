"""The precisions in which WebUIs keep a model's weights, as functions: float32 weights -> the same
quantised and dequantised, float32.

    PRECISIONS["nf4"].nearest(weights)              (rows, width) -> (rows, width)
    PRECISIONS["fp8_e4m3fn"].random(weights, generator)

Blocks do not span rows: models that are quantised in blocks have rows of whole blocks. For other
widths the last block of a row is shorter.

Sources: torch's casts; bitsandbytes 0.50 (functional.py: get_4bit_type, quantize_4bit; blocks of 64
with the largest magnitude in float32, as Forge asks for them); gguf 0.19 (quants.py: Q8_0, Q5_0,
Q4_0); ldm_patched/float.py of reForge and backend/float.py of Forge Neo (stochastic rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Nearest = Callable[[Tensor], Tensor]
Random = Callable[[Tensor, torch.Generator], Tensor]

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of NormalFloat4: QLoRA, https://arxiv.org/abs/2305.14314, appendix E."""
NF4_BLOCK = 64
GGUF_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A data type or quantisation of weights."""

    name: str
    """Its display name."""
    nearest: Nearest
    """Rounds to the nearest value."""
    random: Random | None = None
    """Stochastic rounding, which keeps the mean; None if no WebUI uses it for this precision."""
    matrices_only: bool = False
    """Whether convolutions are kept in 16 bits."""


def _cast(weights: Tensor, *, dtype: torch.dtype) -> Tensor:
    return weights.to(dtype).float()


def _random_fp8(weights: Tensor, generator: torch.Generator, *, dtype: torch.dtype) -> Tensor:
    """Stochastic rounding. From fp16, as in the WebUIs."""
    info = torch.finfo(dtype)
    weights = weights.half().float()
    _, exponents = torch.frexp(weights)
    # 2**(exponent - 1) <= |weight|; subnormal numbers are evenly spaced
    smallest = torch.tensor(info.smallest_normal).log2()
    scale = torch.maximum(exponents - 1, smallest)
    steps = torch.exp2(scale) * info.eps
    chance = torch.rand(weights.shape, generator=generator)
    rounded = (weights.abs() / steps + chance).floor() * steps
    return rounded.clamp(max=info.max) * weights.sign()


def _in_blocks(weights: Tensor, size: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `rounded` to blocks of each row: (blocks, size) -> (blocks, size)."""
    rows, width = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -width % size))
    return rounded(padded.reshape(-1, size)).reshape(rows, -1)[:, :width]


def _nf4(blocks: Tensor) -> Tensor:
    values = torch.tensor(NF4)
    largest = blocks.abs().amax(1, keepdim=True)
    between = (values[1:] + values[:-1]) / 2
    return values[torch.bucketize(blocks / largest.clamp(min=1e-38), between)] * largest


def _q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(1, keepdim=True) / 127
    levels = blocks * _inverse(scale)
    # halves away from zero
    levels = (levels.abs() + 0.5).floor() * levels.sign()
    return levels * scale.half().float()


def _q_0(blocks: Tensor, *, half: int) -> Tensor:
    """Q4_0 and Q5_0: levels -half to half - 1; -half stands for the value of largest magnitude."""
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -half
    levels = (blocks * _inverse(scale) + half + 0.5).floor().clamp(0, 2 * half - 1) - half
    return levels * scale.half().float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _fp8(name: str, dtype: torch.dtype) -> Precision:
    return Precision(
        name=name,
        nearest=partial(_cast, dtype=dtype),
        random=partial(_random_fp8, dtype=dtype),
    )


def _blocks(name: str, size: int, rounded: Callable[[Tensor], Tensor]) -> Precision:
    return Precision(
        name=name, nearest=partial(_in_blocks, size=size, rounded=rounded), matrices_only=True
    )


PRECISIONS: Mapping[str, Precision] = {
    "fp16": Precision(name="fp16", nearest=partial(_cast, dtype=torch.float16)),
    "bf16": Precision(name="bf16", nearest=partial(_cast, dtype=torch.bfloat16)),
    "fp8_e4m3fn": _fp8("fp8 (e4m3)", torch.float8_e4m3fn),
    "fp8_e5m2": _fp8("fp8 (e5m2)", torch.float8_e5m2),
    "nf4": _blocks("nf4", NF4_BLOCK, _nf4),
    "q8_0": _blocks("GGUF Q8_0", GGUF_BLOCK, _q8_0),
    "q5_0": _blocks("GGUF Q5_0", GGUF_BLOCK, partial(_q_0, half=16)),
    "q4_0": _blocks("GGUF Q4_0", GGUF_BLOCK, partial(_q_0, half=8)),
}
