"""Counts the memory of tensors while code runs: bytes of live storages and their peak, by kind.

    with FakeTensorMode() as mode, LiveStorages(mode) as live:
        ...
        live.mark("weights", model.parameters())
    sum(live.peak.values())

A storage is counted once, however many tensors view it, from the operation that creates it until it
is freed. Under torch's FakeTensorMode nothing is allocated, so a model of any size can be counted
on any machine.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lora_trainer.planner import known

ACTIVATIONS = "activations"
"""The kind of storages that are not marked: saved for the backward pass, or temporary."""


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of all tensors that operations return. Enter it inside FakeTensorMode, if
    tensors are fake.

    Reading a number from a fake tensor (`item`, `float`, `bool`) returns 1.
    """

    def __init__(self, mode: FakeTensorMode | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self._kinds: dict[int, tuple[str, int, Any]] = {}
        self._live: Counter[str] = Counter()
        self._total = 0
        self._peak = 0
        self._at_peak: dict[str, int] = {}

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by kind at the peak since the last `restart`."""
        return dict(self._at_peak)

    @property
    def now(self) -> dict[str, int]:
        """Current bytes by kind."""
        return dict(self._live)

    def restart(self) -> None:
        """Reset the peak."""
        self._peak, self._at_peak = self._total, dict(self._live)

    def mark(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count the storages of these tensors as `kind`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._add(storage)
            before, size, reference = self._kinds[id(storage)]
            self._live[before] -= size
            self._live[kind] += size
            self._kinds[id(storage)] = kind, size, reference

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count the storages of these tensors, which are in other memory."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._add(storage)
            kind, size, reference = self._kinds[id(storage)]
            self._live[kind] -= size
            self._total -= size
            self._kinds[id(storage)] = kind, 0, reference

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        if func is torch.ops.prim.device.default:
            return args[0].device
        if _only_changes_numbers(func) and isinstance(args[0], FakeTensor):
            # it has none
            return args[0]
        if self._mode is None:
            result = func(*args, **(kwargs or {}))
        else:
            result = known.call(self._mode, func, args, kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._kinds:
            return
        size = storage.nbytes()
        self._kinds[key] = ACTIVATIONS, size, weakref.ref(storage, lambda _: self._remove(key))
        self._live[ACTIVATIONS] += size
        self._total += size
        if self._total > self._peak:
            self.restart()

    def _remove(self, key: int) -> None:
        kind, size, _ = self._kinds.pop(key)
        self._live[kind] -= size
        self._total -= size


@functools.cache
def _only_changes_numbers(operation: Any) -> bool:
    """Whether it writes into its first argument, elementwise, and returns it: a quarter of a step's
    operations, nearly all of them the optimizer's.
    """
    schema = operation._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    # __xor__ and its like end so, too, and write nothing
    is_in_place = schema.name.endswith("_") and first is not None and first.is_write
    return torch.Tag.pointwise in operation.tags and is_in_place


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1
