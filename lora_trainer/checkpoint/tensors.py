"""Fills a model with weights from files, one tensor at a time.

A tensor with values that are not finite, or too large for the dtype, is an error that names it.
Tensors are read into a buffer rather than memory-mapped: mapped pages stay resident, so that
converting to another dtype would hold the weights twice. Peak memory is the model in its dtype plus
one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from lora_trainer.checkpoint.header import BYTES_EACH, Header, TensorInfo
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import Part
from lora_trainer.errors import CheckpointError
from lora_trainer.frozen.layers import FrozenLayer, TakesWeight, homes

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


_INFINITY = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
}
"""Bits of infinity: the bits of a float's magnitude, as an integer, order like the values."""
_BEYOND_FP16 = {"F64": 0x40EF_FE00_0000_0000, "F32": 0x477F_F000, "BF16": 0x4780}
"""Bits of 65520, the smallest value that rounds to infinity in fp16."""
_PIECE = 2**20
"""Elements tested at once, so that they stay in the CPU's cache."""

_WHY_BROKEN = (
    "No setting fixes this: a download or a merge went wrong. Download the file again, or choose"
    " another checkpoint."
)
_WHY_VAE_BROKEN = (
    "Set vae to another VAE file for this kind of checkpoint, or download the file again."
)


@dataclass(frozen=True)
class TensorAt:
    """A tensor's file, its name there, and the offset of its bytes."""

    path: Path
    name: str
    offset: int
    info: TensorInfo


def tensors_of(headers: Iterable[Header]) -> dict[str, TensorAt]:
    """All tensors of one file, or of a sharded model's files."""
    return {
        name: TensorAt(header.path, name, header.data_start + info.start, info)
        for header in headers
        for name, info in header.tensors.items()
    }


class _Uninitialized(TorchFunctionMode):
    """Leaves weights on the meta device as they are when a layer initializes them: there are no
    values, and torch works out in Python, at length, what each of these calls would give.
    """

    _METHODS = frozenset(("normal_", "uniform_", "fill_", "zero_"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, name = getattr(func, "__module__", ""), getattr(func, "__name__", "")
        if module == "torch.nn.init" or name in self._METHODS:
            weight = args[0] if args else kwargs["tensor"]
            if weight.is_meta:
                return weight
        if name == "arange":
            return func(*args, **{**kwargs, "device": "cpu"}).to("meta")
        return func(*args, **kwargs)


def build_empty(build: Callable[[], Any]) -> Any:
    """Build a model on the meta device."""
    with torch.device("meta"), _Uninitialized():
        return build()


def fill(
    model: Any,
    places: Mapping[str, Stored],
    tensors: Mapping[str, TensorAt],
    *,
    part: Part,
    dtype: torch.dtype,
    device: torch.device,
    buffers: Callable[[Any], Mapping[str, torch.Tensor]] | None = None,
    added: Callable[[str], torch.Tensor | None] | None = None,
) -> Any:
    """Load weights into a model on the meta device, in `dtype` on `device`. Returns it frozen and
    in eval mode.

    places: the position of each tensor of the model's state dict; tensors: those in the files;
    buffers: the model -> values of those that are in no file, which keep their dtype; added: path
    of a layer -> what is added to its weight, a matrix in float32.
    Raises CheckpointError for missing, misshapen or non-finite tensors.
    """
    # T5 has its embedding under two names
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, stored in _weights(model, places, tensors, part, dtype):
        owner, _, attribute = name.rpartition(".")
        if added is not None and attribute == "weight" and (more := added(owner)) is not None:
            stored = stored.float() + more.view(stored.shape)
        if attribute == "weight" and isinstance(layer := modules[owner], TakesWeight):
            layer.take(stored, dtype, device)
            continue
        weight = torch.empty(stored.shape, dtype=dtype, device=device).copy_(stored)
        modules[owner].register_parameter(
            attribute, torch.nn.Parameter(weight, requires_grad=False)
        )
    for home in homes(model):
        home.gather()
    _make_buffers(model, device, buffers(model) if buffers is not None else {})
    return model.requires_grad_(False).eval()


def empty_in(
    model: Any,
    places: Mapping[str, Stored],
    tensors: Mapping[str, TensorAt],
    *,
    part: Part,
    dtype: torch.dtype,
    device: torch.device,
    buffers: Callable[[Any], Mapping[str, torch.Tensor]] | None = None,
    added: object = None,
) -> Any:
    """The model in `dtype`, left on the meta device: in place of `fill`, to count its memory."""
    # not as diffusers does it, which warns of what it would keep in float32
    torch.nn.Module.to(model, dtype)
    for layer in model.modules():
        if isinstance(layer, FrozenLayer):
            layer.take(layer.weight.detach(), dtype, torch.device("meta"))
    return model.requires_grad_(False).eval()


def require_usable(
    model: Any,
    places: Mapping[str, Stored],
    tensors: Mapping[str, TensorAt],
    *,
    part: Part,
    dtype: torch.dtype,
) -> None:
    """Read what `fill` would read. Raises the same CheckpointError."""
    for _ in _weights(model, places, tensors, part, dtype):
        pass


def _weights(
    model: Any,
    places: Mapping[str, Stored],
    tensors: Mapping[str, TensorAt],
    part: Part,
    dtype: torch.dtype,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) one by one; each must be copied before the next is read."""
    missing = [place.name for place in places.values() if place.name not in tensors]
    if missing:
        raise _missing(next(iter(tensors.values())).path, missing)
    with ExitStack() as stack:
        reader = _Reader(stack, part, dtype)
        for name, empty in model.state_dict().items():
            place, at = places[name], tensors[places[name].name]
            yield name, _in_shape(reader.read(at, place), place, tuple(empty.shape), at)


class _Reader:
    """Open files, and a buffer of the size of the largest tensor so far. `part` and `dtype`: what
    is read, and the dtype it is read for.
    """

    def __init__(self, stack: ExitStack, part: Part, dtype: torch.dtype) -> None:
        self._stack = stack
        self._part = part
        self._dtype = dtype
        self._files: dict[Path, FileIO] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def read(self, at: TensorAt, place: Stored) -> torch.Tensor:
        """A tensor, or some of its rows. It is in the buffer: copy it before the next read."""
        if at.info.dtype not in TYPES:
            hint = "Training needs the fp16, bf16 or fp32 version."
            raise CheckpointError(
                "the weights in {path} are quantised ({kind})",
                hint=hint,
                path=at.path,
                kind=at.info.dtype,
            )
        size, shape, offset = at.info.end - at.info.start, at.info.shape, at.offset
        rows = place.rows
        if place.third is not None:
            rows = place.third * (shape[0] // 3), shape[0] // 3
        if rows is not None and shape and rows[0] + rows[1] <= shape[0]:
            first, count = rows
            each = size // shape[0]
            size, shape = count * each, (count, *shape[1:])
            offset += first * each
        if size > self._buffer.numel():
            self._buffer = torch.empty(size, dtype=torch.uint8)
        self._fill(self._file(at.path), offset, memoryview(self._buffer[:size].numpy()), at.path)  # type: ignore[arg-type]
        self._require_usable(self._buffer[:size].numpy(), at)
        return self._buffer[:size].view(TYPES[at.info.dtype]).view(shape)

    def _require_usable(self, content: np.ndarray[Any, np.dtype[np.uint8]], at: TensorAt) -> None:
        """Raise CheckpointError for values that are not finite in the file's or the target
        dtype.
        """
        infinity = _INFINITY[at.info.dtype]
        limit = (
            _BEYOND_FP16.get(at.info.dtype, infinity) if self._dtype == torch.float16 else infinity
        )
        largest = _largest_bits(content, BYTES_EACH[at.info.dtype])
        if largest >= infinity:
            raise self._broken(at)
        if largest >= limit:
            hint = "Set mixed_precision to bf16, or to no."
            raise CheckpointError(
                "{tensor} in {path} has values that are too large for fp16",
                hint=hint,
                path=at.path,
                tensor=at.name,
            )

    def _broken(self, at: TensorAt) -> CheckpointError:
        template = "the text encoder in {path} is broken: {tensor} has NaN or infinite values"
        if self._part == "UNet":
            template = "the UNet in {path} is broken: {tensor} has NaN or infinite values"
        elif self._part == "VAE":
            template = "the VAE in {path} is broken: {tensor} has NaN or infinite values"
        return CheckpointError(
            template,
            hint=_WHY_VAE_BROKEN if self._part == "VAE" else _WHY_BROKEN,
            path=at.path,
            tensor=at.name,
        )

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
                raise CheckpointError(
                    "{path} ends in the middle of a tensor",
                    hint="Is it still being written? Wait, then try again.",
                    path=path,
                )
            filled += count


def _largest_bits(content: np.ndarray[Any, np.dtype[np.uint8]], width: int) -> int:
    """The largest magnitude of floats of `width` bytes, as bits. Ten times as fast as
    torch.isfinite.
    """
    bits = content.view(f"u{width}")
    without_sign = bits.dtype.type(2 ** (8 * width - 1) - 1)
    return max(
        (
            int(np.bitwise_and(bits[at : at + _PIECE], without_sign).max())
            for at in range(0, len(bits), _PIECE)
        ),
        default=0,
    )


def _in_shape(
    tensor: torch.Tensor, place: Stored, shape: tuple[int, ...], at: TensorAt
) -> torch.Tensor:
    """The tensor in the model's shape: transposed, or without a 1x1 convolution's kernel
    dimensions.
    """
    if place.form == "transposed":
        tensor = tensor.t()
    if place.form == "halves swapped" and tensor.shape[0] % 2 == 0:
        tensor = tensor.roll(tensor.shape[0] // 2, 0)
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


def _make_buffers(model: Any, device: torch.device, values: Mapping[str, torch.Tensor]) -> None:
    """Create the non-persistent buffers: these, and CLIP's position_ids."""
    for name, buffer in list(model.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        if name in values:
            made = values[name].to(device)
        elif attribute == "position_ids":
            made = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        else:
            raise RuntimeError(f"nothing is known about the buffer {name}")
        model.get_submodule(owner).register_buffer(attribute, made, persistent=False)


def _missing(path: Path, names: list[str]) -> CheckpointError:
    examples = ", ".join(names[:3])
    hint = "The file is incomplete. Choose another version of the checkpoint."
    if len(names) > 3:
        return CheckpointError(
            "{count} weights are missing from {path} ({examples}, ...)",
            hint=hint,
            path=path,
            count=len(names),
            examples=examples,
        )
    return CheckpointError(
        "weights are missing from {path}: {examples}", hint=hint, path=path, examples=examples
    )
