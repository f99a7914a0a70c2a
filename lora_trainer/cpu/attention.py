"""Attention in bfloat16, as blocks of matrix multiplications.

torch's own kernel for processors reaches a sixth to a half of the rate of matrix multiplications.
Here each of its operations is one of torch's own, over a block of scores that fits into the caches.
The weights of some layers are kept for the backward pass; for all others it computes them again, as
in FlashAttention (Dao et al., arXiv 2205.14135).

Scores are rounded to bfloat16. To keep them small, the mean of all keys is subtracted from each,
which changes no result of the softmax (SageAttention, Zhang et al., arXiv 2410.02367).
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

BLOCK = 1 << 21
"""Scores of a block: 4 MiB of them."""
FEWEST_SCORES = 5000
"""Of one head: queries times keys. With fewer, torch's own kernel is as fast or faster."""
SUMS = 3
"""Dimensions of what torch's kernel keeps of the scores: the logarithm of each sum, (B, H, L)."""
MOST_KEPT = 1 << 30
"""Bytes of attention weights that are kept for backward passes, together at most."""
LANES = 16
"""Products whose width is a multiple of this are computed faster, by up to a third."""

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"

_registered: list[Any] = []
"""The torch.library.Library that replaces the kernels, while they are replaced."""

_kept: list[tuple[StorageWeakRef, int]] = []
"""Attention weights that wait for a backward pass, with their bytes."""
_scratch = threading.local()


def activate() -> bool:
    """Let torch.nn.functional.scaled_dot_product_attention of this process use `attend` where it is
    faster: for tensors in bfloat16 without mask and dropout, with as many heads of keys as of
    queries. Returns False, and changes nothing, on processors with AMX, for which torch's kernel
    has a form of its own, and in versions of torch that have no way to do so (before 2.9).
    """
    if _registered:
        return True
    own = _own_kernels()
    if own is None:
        return False
    own_forward, own_backward = own

    def forward(keys: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if not serves(query, *rest, **named):
            return own_forward.call_boxed(keys, query, *rest, **named)
        key, value = rest[:2]
        kept = room_to_keep(query, key, value)
        weights = kept if _is_there(kept) else None
        return attend(query, key, value, named.get("scale"), weights), kept

    def backward(keys: Any, gradient: torch.Tensor, *rest: Any, **named: Any) -> Any:
        query, key, value, _, kept = rest[:5]
        if kept.ndim == SUMS:
            return own_backward.call_boxed(keys, gradient, *rest, **named)
        weights = kept if _is_there(kept) else None
        return gradients(gradient, query, key, value, named.get("scale"), weights)

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # of a kernel that is replaced
        warnings.simplefilter("ignore", UserWarning)
        library.impl(_FORWARD, forward, "CPU", with_keyset=True)
        library.impl(_BACKWARD, backward, "CPU", with_keyset=True)
    _registered.append(library)
    return True


def is_available() -> bool:
    """Whether `activate` does something here."""
    return _own_kernels() is not None


def _own_kernels() -> tuple[Any, Any] | None:
    """torch's, if they can be replaced and it is worth it."""
    try:
        if torch.cpu._is_amx_tile_supported():
            return None
        return (
            torch.library.get_kernel(f"aten::{_FORWARD}", "CPU"),
            torch.library.get_kernel(f"aten::{_BACKWARD}", "CPU"),
        )
    except (AttributeError, RuntimeError):
        return None


def deactivate() -> None:
    """Undo `activate`. What was computed with it has no backward pass afterwards: torch's kernel
    would take what is kept for its own.
    """
    while _registered:
        _registered.pop()._destroy()


def serves(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> bool:
    """Whether `attend` takes the place of torch's kernel for these arguments of it."""
    return (
        query.dtype == key.dtype == value.dtype == torch.bfloat16
        and not dropout
        and not causal
        and attn_mask is None
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and query.shape[2] * key.shape[2] >= FEWEST_SCORES
    )


def room_to_keep(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: list[tuple[StorageWeakRef, int]] = _kept,
) -> torch.Tensor:
    """Memory for the attention weights, (B, H, L, S), if they are to be kept for a backward pass.
    Where there is none left, a placeholder of this shape without memory: gradient checkpointing
    wants the same shape whether they are kept or not. kept: those that count as kept.
    """
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    if not (torch.is_grad_enabled() and learns):
        return query.new_empty(0)
    kept[:] = [(one, size) for one, size in kept if not one.expired()]  # type: ignore[no-untyped-call]
    shape = (*query.shape[:3], key.shape[2])
    size = math.prod(shape) * query.itemsize
    if sum(size for _, size in kept) + size <= MOST_KEPT:
        # without memory for them, they are computed again
        with contextlib.suppress(RuntimeError):
            weights = query.new_empty(shape)
            kept.append((StorageWeakRef(weights.untyped_storage()), size))  # type: ignore[no-untyped-call]
            return weights
    return query.new_empty(1).expand(shape)


def _is_there(kept: torch.Tensor) -> bool:
    """Whether this is no placeholder."""
    return kept.numel() > 0 and kept.stride(-1) > 0


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None = None,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale * query key^T) value. query: (B, H, L, D) in bfloat16; key and value:
    (B, H, S, D). scale: 1 / sqrt(D) by default. Returns (B, H, L, D), laid out as (B, L, H, D).
    keep: gets the softmax, (B, H, L, S).
    """
    scale = _scale(query, scale)
    output = _like(query)
    for number in range(len(query)):
        queries, keys = query[number].contiguous(), _centered(key[number])
        values, width = _padded(value[number]), value.shape[-1]
        for block in _blocks(queries, keys):
            heads, _ = block
            room = None if keep is None else keep[number][block]
            weights = _weights(queries[block], keys[heads], scale, room)
            output[number][block] = torch.bmm(weights, values[heads])[..., :width]
    return output


def gradients(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None = None,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `attend`'s query, key and value. gradient: that of its output, (B, H, L, D);
    kept: what it has kept. Those of key and value are added up in float32.
    """
    scale = _scale(query, scale)
    of_query, of_key, of_value = _like(query), _like(key), _like(value)
    for number in range(len(query)):
        queries, given = query[number].contiguous(), gradient[number].contiguous()
        keys, values = _centered(key[number]), value[number].contiguous()
        width, padded = keys.shape[-1], _padded(keys)
        # (H, D, S): as products with the scores on the right they are faster
        of_keys = keys.new_zeros(keys.transpose(1, 2).shape, dtype=torch.float32)
        of_values = torch.zeros_like(of_keys)
        for block in _blocks(queries, keys):
            heads, _ = block
            if kept is None:
                weights = _weights(queries[block], keys[heads], scale)
            else:
                weights = kept[number][block]
            of_values[heads] += torch.bmm(given[block].transpose(1, 2), weights)
            of_scores = _room("gradients", weights)
            torch.bmm(given[block], values[heads].transpose(1, 2), out=of_scores)
            torch._softmax_backward_data(
                of_scores, weights, -1, weights.dtype, grad_input=of_scores
            )
            of_query[number][block] = torch.bmm(of_scores, padded[heads])[..., :width] * scale
            of_keys[heads] += torch.bmm(queries[block].transpose(1, 2), of_scores)
        of_key[number] = of_keys.transpose(1, 2) * scale
        of_value[number] = of_values.transpose(1, 2)
    return of_query, of_key, of_value


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty (B, H, L, D), laid out as (B, L, H, D): attention layers join the heads next."""
    batch, heads, length, width = tensor.shape
    return tensor.new_empty((batch, length, heads, width)).transpose(1, 2)


def _centered(keys: torch.Tensor) -> torch.Tensor:
    return (keys - keys.mean(1, keepdim=True, dtype=torch.float32)).to(keys.dtype).contiguous()


def _padded(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, -values.shape[-1] % LANES)).contiguous()


def _blocks(queries: torch.Tensor, keys: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """(heads, rows) of the queries (H, L, D), with about BLOCK scores each: several whole heads, or
    rows of one.
    """
    heads, length = queries.shape[:2]
    rows = max(1, min(length, BLOCK // keys.shape[1]))
    at_once = max(1, BLOCK // (keys.shape[1] * rows)) if rows == length else 1
    for head in range(0, heads, at_once):
        for row in range(0, length, rows):
            yield slice(head, head + at_once), slice(row, row + rows)


def _weights(
    queries: torch.Tensor, keys: torch.Tensor, scale: float, room: torch.Tensor | None = None
) -> torch.Tensor:
    """(H, L, S), in `room`, or valid until the next call."""
    scores = _room("weights", queries, keys.shape[1]) if room is None else room
    torch.baddbmm(scores, queries, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
    return torch.softmax(scores, -1, out=scores)


def _room(name: str, like: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """Memory of the shape of `like`, or of its first two dimensions and `width`; the same memory in
    each call of a thread. Fresh memory takes as long as the operation.
    """
    shape = like.shape if width is None else (*like.shape[:2], width)
    size = math.prod(shape)
    kept: torch.Tensor | None = getattr(_scratch, name, None)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=torch.bfloat16)
        setattr(_scratch, name, kept)
    return kept[:size].view(shape)
