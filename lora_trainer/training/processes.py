"""The processes that train one LoRA together (data parallel): each has the whole model and a share
of each step's examples.

processes.share(start, count)         which of a step's examples are this process's
processes.add_up(parameters, losses)  all-reduce: sums gradients and losses over all processes
processes.first(make)                 broadcast: the first process's value, in all of them
processes.gather(value)               all-gather: every process's value, by rank
processes.device(device, devices)     the device of this process

`ALONE` is a single process: it has every example, and nothing is sent. `joined.Joined` is one of
several. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


class Processes:
    """A single process."""

    rank = 0
    """The number of this process, from 0."""
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, reports and reads requests."""
        return self.rank == 0

    def share(self, start: int, count: int) -> range:
        """Which of `count` examples are this process's, if `start` others of the same step come
        before them. The examples of a step are assigned round-robin.
        """
        return range((self.rank - start) % self.count, count, self.count)

    def add_up(self, parameters: Sequence[torch.nn.Parameter], losses: torch.Tensor) -> None:
        """Sum the gradients and the losses over the processes, in place."""

    def first(self, make: Callable[[], Value]) -> Value:
        """Call `make` in the first process only, and return its value in all of them. Raises
        ProcessLost.
        """
        return make()

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, by rank, in all of them. Raises ProcessLost."""
        return [value]

    def device(self, device: str, devices: str) -> torch.device:
        """The device of this process, from these settings. Raises ConfigError."""
        from lora_trainer.training.device import choose_device, listed_devices

        return choose_device(listed_devices(device, devices)[0])

    def describe(self, device: torch.device) -> str:
        """The names of all processes' devices, for display."""
        from lora_trainer.training.device import describe_device

        return describe_device(device)


ALONE = Processes()
