"""Batches prepared in a thread while the device computes the one before.

A batch is a function of its step alone (seed, step and part), so that when it is made changes
nothing. On a processor, which computes with all its cores, batches are made when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class HostBatch(Protocol):
    """A batch in main memory."""

    def pin_memory(self) -> Any:
        """The same in page-locked memory, from which a card copies while it computes."""


@dataclass(frozen=True)
class BatchRequest:
    """The `rows` of a batch of examples: the `part`-th of gradient accumulation in `step`."""

    indices: tuple[int, ...]
    step: int
    part: int
    rows: range


class Prefetcher:
    """Makes batches one ahead.

    `make` is called in another thread if `ahead`, and must not use the global random state.
    """

    def __init__(
        self, make: Callable[[BatchRequest], HostBatch], device: torch.device, *, ahead: bool
    ) -> None:
        self._make, self._device = make, device
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._pending: tuple[BatchRequest, Future[HostBatch]] | None = None

    def get(self, wanted: BatchRequest) -> Any:
        """The batch, made meanwhile or now. Raises what making it raises."""
        pending, self._pending = self._pending, None
        if pending is not None and pending[0] == wanted:
            return pending[1].result()
        return self._made(wanted)

    def prepare(self, following: BatchRequest | None) -> None:
        """Begin with the batch that is needed next."""
        if self._executor is not None and following is not None and following.rows:
            self._pending = (following, self._executor.submit(self._made, following))

    def _made(self, wanted: BatchRequest) -> HostBatch:
        batch = self._make(wanted)
        if self._device.type != "cuda":
            return batch
        # a thread begins on the first card
        with torch.cuda.device(self._device):
            pinned: HostBatch = batch.pin_memory()
            return pinned


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. From page-locked memory it is copied without waiting for that."""
    return tensor.to(device, non_blocking=device.type == "cuda")
