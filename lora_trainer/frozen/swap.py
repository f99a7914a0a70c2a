"""Block swap in one direction: weights that lie in main memory and are copied to the device block
by block, before each use in the forward and in the backward pass. They never change, so nothing is
copied back.

    swap = BlockSwap([layers of each block, in the order of the forward pass], device)
    ... the layers take their weights
    swap.gather()

The device has two slots of the size of the largest block: one for the block in use, one for the
next, which is copied meanwhile (on a card from pinned memory, on a second stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_trainer.frozen.blocks import SLOTS, spread
from lora_trainer.frozen.layers import FrozenLayer, Precision, freeze, layers_in

ALIGNMENT = 256
"""Bytes between the beginnings of tensors are a multiple of this, as in torch's allocators."""


class Copier:
    """Copies from main memory to a device, at once. Marks are points in a device's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host(self, size: int) -> torch.Tensor:
        """Main memory: uint8."""
        return torch.empty(size, dtype=torch.uint8)

    def slot(self, size: int) -> torch.Tensor:
        """The device's memory: uint8."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def start(self, slot: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        """Begin to copy `source` into the slot once the device has come to the mark `after`.
        Returns the mark at which it is there.
        """
        slot[: source.numel()].copy_(source)
        return None

    def wait(self, mark: Any) -> None:
        """What the device computes from here on happens after the mark."""

    def mark(self) -> Any:
        """The mark after everything that the device has been given to compute."""
        return None


class CudaCopier(Copier):
    """Copies on a second stream, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def start(self, slot: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            slot[: source.numel()].copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, mark: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def mark(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event()


def copier_for(device: torch.device) -> Copier:
    return CudaCopier(device) if device.type == "cuda" else Copier(device)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies within its block."""

    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, block: torch.Tensor) -> torch.Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return block[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass
class _Slot:
    memory: torch.Tensor
    block: int = -1
    ready: Any = None
    used: Any = None
    """The mark after the last use of the block that it held."""


@dataclass
class _Block:
    layers: Sequence[FrozenLayer]
    memory: torch.Tensor | None = None
    places: dict[int, tuple[_Place, _Place | None]] = field(default_factory=dict)
    """id of a layer -> its weight and its scale"""


class BlockSwap:
    """The home of the weights of these blocks' layers. `copier`: default that of the device."""

    def __init__(
        self,
        blocks: Sequence[Sequence[FrozenLayer]],
        device: torch.device,
        copier: Copier | None = None,
    ) -> None:
        self._blocks = [_Block(layers) for layers in blocks]
        self._number = {
            id(layer): number for number, layers in enumerate(blocks) for layer in layers
        }
        self._device = device
        self._copier = copier
        self._slots: list[_Slot] = []
        self._current = -1
        self._step = 1
        """1 in a forward pass, -1 in a backward pass."""
        for layers in blocks:
            for layer in layers:
                layer.home = self

    def gather(self) -> None:
        copier = self._copier = self._copier or copier_for(self._device)
        for block in self._blocks:
            tensors: list[tuple[torch.Tensor, _Place]] = []
            size = 0
            for layer in block.layers:
                places: list[_Place | None] = []
                for tensor in (layer.weight.detach(), layer.scale):
                    if tensor is None:
                        places.append(None)
                        continue
                    place = _Place(size, tensor.dtype, tensor.shape)
                    tensors.append((tensor, place))
                    places.append(place)
                    size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
                assert places[0] is not None
                block.places[id(layer)] = places[0], places[1]
            block.memory = copier.host(size)
            for tensor, place in tensors:
                place.of(block.memory).copy_(tensor)
            for layer in block.layers:
                layer.weight = _placeholder(layer.weight, self._device)
                layer.scale = None
        self._make_slots()

    @property
    def hosted(self) -> list[torch.Tensor]:
        return [block.memory for block in self._blocks if block.memory is not None]

    @property
    def resident(self) -> list[torch.Tensor]:
        return [slot.memory for slot in self._slots]

    def weight_of(self, layer: FrozenLayer) -> tuple[torch.Tensor, torch.Tensor | None]:
        number = self._number[id(layer)]
        slot = self._enter(number)
        weight, scale = self._blocks[number].places[id(layer)]
        return weight.of(slot.memory), None if scale is None else scale.of(slot.memory)

    def release(self) -> None:
        self._slots, self._current = [], -1

    def _enter(self, number: int) -> _Slot:
        """The slot with this block, while the next one is copied into the other."""
        slots = self._make_slots()
        if number == self._current:
            return next(slot for slot in slots if slot.block == number)
        assert self._copier is not None, "the weights were gathered"
        for slot in slots:
            if slot.block == self._current:
                slot.used = self._copier.mark()
        self._step = 1 if number > self._current else -1
        self._current = number
        here = next((slot for slot in slots if slot.block == number), None)
        if here is None:
            here = slots[0]
            self._fill(here, number)
        self._copier.wait(here.ready)
        following = number + self._step
        if not 0 <= following < len(self._blocks):
            # the other pass begins
            following = number - self._step
        if 0 <= following < len(self._blocks) and all(one.block != following for one in slots):
            self._fill(next(one for one in slots if one is not here), following)
        return here

    def _make_slots(self) -> list[_Slot]:
        if not self._slots:
            assert self._copier is not None, "the weights were gathered"
            size = max((memory.numel() for memory in self.hosted), default=0)
            self._slots = [_Slot(self._copier.slot(size)) for _ in range(SLOTS)]
        return self._slots

    def _fill(self, slot: _Slot, number: int) -> None:
        assert self._copier is not None
        memory = self._blocks[number].memory
        assert memory is not None
        slot.block = number
        slot.ready = self._copier.start(slot.memory, memory, slot.used)


def keep(
    blocks: Sequence[Sequence[torch.nn.Module]],
    precision: Precision,
    swapped: int,
    device: torch.device,
) -> None:
    """Have the layers of these blocks keep their weights in this precision, and `swapped` of the
    blocks in main memory, before they take their weights.
    """
    layers = [layers_in(block) for block in blocks]
    if precision == "same" and not swapped:
        return
    frozen = [freeze(block, precision) for block in layers]
    chosen = [frozen[number] for number in spread(swapped, len(frozen))]
    if chosen:
        BlockSwap(chosen, device)


def _placeholder(weight: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
    """A parameter of this shape and dtype that takes no memory."""
    one = torch.empty((), dtype=weight.dtype, device=device)
    return torch.nn.Parameter(one.expand(weight.shape), requires_grad=False)
