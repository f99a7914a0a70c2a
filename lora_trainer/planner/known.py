"""What operations on fake tensors return, remembered.

    with FakeTensorMode() as mode:
        result = known.call(mode, operation, args, kwargs)

What an operation returns is decided by the shapes of its tensors, and few are different: of ten
thousand calls of a training step, a thousand. FakeTensorMode remembers some of them, too, but
allows for symbolic shapes and more that no step has, and takes five times as long. What is unusual
is left to it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

META = torch.device("meta")
PLAIN = frozenset(
    {type(None), bool, int, float, str}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of arguments that are compared by value."""
UNUSUAL = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}
_results: dict[tuple[Any, ...], tuple[str, Any] | None] = {}
"""A call -> what it returns, as `_described` says; None where FakeTensorMode has to be asked."""


class _Unusual(Exception):
    """A call that is not remembered."""


def call(
    mode: FakeTensorMode, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the operation returns under this mode. The tensors are new ones each time."""
    if operation is torch.ops.aten.lift_fresh.default and type(args[0]) is torch.Tensor:
        # torch.tensor(...): FakeTensorMode imports the tracer of torch.compile to name it
        (real,) = args
        if real.layout is torch.strided and real.device.type != "meta":
            return _empty(mode, real.shape, real.stride(), real.dtype, real.device)
    tensors: list[FakeTensor] = []
    try:
        key = _key(operation, args, kwargs, tensors)
    except _Unusual:
        return operation(*args, **kwargs)
    known = _results.get(key)
    if known is not None:
        return _made(mode, known, tensors)
    result = operation(*args, **kwargs)
    if key not in _results:
        try:
            is_as_before = _key(operation, args, kwargs, []) == key
            _results[key] = _described(result, tensors) if is_as_before else None
        except _Unusual:
            _results[key] = None
    return result


def _key(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[FakeTensor]
) -> tuple[Any, ...]:
    """All that decides what this call returns; its tensors are appended to `tensors`."""
    if not _is_decided_by_shapes(operation):
        raise _Unusual
    found: list[Any] = [operation]
    for value in args:
        _describe(value, found, tensors)
    for name, value in kwargs.items():
        found.append(name)
        _describe(value, found, tensors)
    return tuple(found)


@functools.cache
def _is_decided_by_shapes(operation: Any) -> bool:
    return (
        isinstance(operation, torch._ops.OpOverload)
        and operation.namespace == "aten"
        and not UNUSUAL.intersection(operation.tags)
    )


def _describe(value: Any, found: list[Any], tensors: list[FakeTensor]) -> None:
    kind = type(value)
    if kind is FakeTensor:
        for number, known in enumerate(tensors):
            if known is value:
                found.append(number)
                return
        if value.constant is not None or value.dtype.is_complex or value.is_sparse:
            raise _Unusual
        tensors.append(value)
        found += (
            FakeTensor,
            value.shape,
            value.stride(),
            value.storage_offset(),
            value.dtype,
            value.fake_device,
        )
    elif kind in PLAIN:
        # 1 is 1.0 is True
        found += (kind, value)
    elif kind is list or kind is tuple:
        found += (kind, len(value))
        for one in value:
            _describe(one, found, tensors)
    else:
        raise _Unusual


def _described(result: Any, tensors: list[FakeTensor]) -> tuple[str, Any]:
    kind = type(result)
    if kind in PLAIN:
        return "value", result
    if kind is list or kind is tuple:
        return kind.__name__, [_described(one, tensors) for one in result]
    if kind is not FakeTensor:
        raise _Unusual
    for number, known in enumerate(tensors):
        if known is result:
            return "argument", number
    _describe(result, [], [])
    size, shape, stride = result.untyped_storage().nbytes(), result.shape, result.stride()
    offset, common = result.storage_offset(), (result.dtype, result.fake_device)
    for number, known in enumerate(tensors):
        if result.untyped_storage()._cdata == known.untyped_storage()._cdata:
            return "view", (number, shape, stride, offset, *common)
    # its storage holds it and nothing else
    steps = sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if offset or size != (steps + 1 if result.numel() else 0) * result.element_size():
        raise _Unusual
    return "tensor", (shape, stride, *common)


def _made(mode: FakeTensorMode, known: tuple[str, Any], tensors: list[FakeTensor]) -> Any:
    kind, value = known
    if kind == "value":
        return value
    if kind == "argument":
        return tensors[value]
    if kind in ("list", "tuple"):
        made = [_made(mode, one, tensors) for one in value]
        return tuple(made) if kind == "tuple" else made
    if kind == "tensor":
        return _empty(mode, *value)
    number, shape, stride, offset, dtype, device = value
    base = tensors[number]
    storage = None if base.dtype == dtype else base.untyped_storage()
    with in_kernel_invocation_manager(mode):
        if storage is None:
            view = torch.as_strided(base, shape, stride, offset)
        else:
            view = torch.empty(0, dtype=dtype, device=META)
            view.set_(storage, offset, shape, stride)
    return FakeTensor(mode, view, device)


def _empty(
    mode: FakeTensorMode,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> FakeTensor:
    with in_kernel_invocation_manager(mode):
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return FakeTensor(mode, tensor, device)
