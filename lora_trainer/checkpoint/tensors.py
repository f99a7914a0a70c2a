"""Filling a model from files, one tensor at a time: an empty model and a place for each of its tensors go in, the model with weights comes out.

Called by `load`. Bytes are read into a buffer of their own rather than memory-mapped: pages of a map count as resident as long as it lives, and a
copy in another type would then hold the weights twice. Peak memory is the model in the type asked for, and one tensor more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.checkpoint.names import Stored
from lora_trainer.errors import CheckpointError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorAt:
    """One tensor's file, and the offset of its bytes there."""

    path: Path
    offset: int
    info: TensorInfo


def tensors_of(headers: Iterable[Header]) -> dict[str, TensorAt]:
    """All tensors of one file, or of the several a large model is split into."""
    return {name: TensorAt(header.path, header.data_start + info.start, info) for header in headers for name, info in header.tensors.items()}


def build_empty(build: Callable[[], Any]) -> Any:
    """A model whose tensors have shapes but no memory."""
    with torch.device("meta"):
        return build()


def fill(model: Any, places: Mapping[str, Stored], tensors: Mapping[str, TensorAt], *, dtype: torch.dtype, device: torch.device) -> Any:
    """Give an empty model its weights in `dtype` on `device`; the result is in eval mode and frozen (nothing requires a gradient).

    places: where each tensor of the model's state dict lies; tensors: what the files hold. CheckpointError names what is missing or does not fit.
    """
    missing = [place.name for place in places.values() if place.name not in tensors]
    if missing:
        raise _missing(next(iter(tensors.values())).path, missing)
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        reader = _Reader(stack)
        for name, empty in model.state_dict().items():
            place, at = places[name], tensors[places[name].name]
            stored = _in_shape(reader.read(at, place.third), place, tuple(empty.shape), at)
            weight = torch.empty(empty.shape, dtype=dtype, device=device).copy_(stored)
            owner, _, attribute = name.rpartition(".")
            modules[owner].register_parameter(attribute, torch.nn.Parameter(weight, requires_grad=False))
    _make_position_ids(model, device)
    return model.requires_grad_(False).eval()


class _Reader:
    """Open files, and one buffer as large as the largest tensor so far."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, FileIO] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def read(self, at: TensorAt, third: int | None) -> torch.Tensor:
        """A tensor as it lies in the file, or one third of its rows. It lives in the buffer: copy it before the next read."""
        if at.info.dtype not in TYPES:
            hint = "Training needs the fp16, bf16 or fp32 version."
            raise CheckpointError("the weights in {path} are quantised ({kind})", hint=hint, path=at.path, kind=at.info.dtype)
        size, shape, offset = at.info.end - at.info.start, at.info.shape, at.offset
        if third is not None:
            size, shape = size // 3, (shape[0] // 3, *shape[1:])
            offset += third * size
        if size > self._buffer.numel():
            self._buffer = torch.empty(size, dtype=torch.uint8)
        self._fill(self._file(at.path), offset, memoryview(self._buffer[:size].numpy()), at.path)  # type: ignore[arg-type]
        return self._buffer[:size].view(TYPES[at.info.dtype]).view(shape)

    def _file(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files[path] = self._stack.enter_context(FileIO(path, "rb"))
        return self._files[path]

    @staticmethod
    def _fill(file: FileIO, offset: int, view: memoryview, path: Path) -> None:
        file.seek(offset)
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise CheckpointError("{path} ends in the middle of a tensor", hint="Is it still being written? Wait, then try again.", path=path)
            filled += count


def _in_shape(tensor: torch.Tensor, place: Stored, shape: tuple[int, ...], at: TensorAt) -> torch.Tensor:
    """The tensor as the model wants it: transposed, or without the two empty sides of a 1x1 convolution."""
    if place.form == "transposed":
        tensor = tensor.t()
    if place.form == "1x1 convolution" and tensor.numel() == shape[0] * shape[1]:
        tensor = tensor.reshape(shape)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            "{name} in {path} has shape {found} instead of {wanted}",
            hint="The file is of a kind that is not supported. Choose another checkpoint.",
            name=place.name,
            path=at.path,
            found=list(tensor.shape),
            wanted=list(shape),
        )
    return tensor


def _make_position_ids(model: Any, device: torch.device) -> None:
    """The numbers 0, 1, 2 ... of a text encoder's positions are no weights: transformers keeps them in a buffer that is never saved."""
    for name, buffer in list(model.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        if attribute != "position_ids":
            raise RuntimeError(f"nothing is known about the buffer {name}")
        model.get_submodule(owner).register_buffer(attribute, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False)


def _missing(path: Path, names: list[str]) -> CheckpointError:
    examples = ", ".join(names[:3])
    hint = "The file is incomplete. Choose another version of the checkpoint."
    if len(names) > 3:
        return CheckpointError("{path} lacks {count} weights ({examples}, ...)", hint=hint, path=path, count=len(names), examples=examples)
    return CheckpointError("{path} lacks {examples}", hint=hint, path=path, examples=examples)
