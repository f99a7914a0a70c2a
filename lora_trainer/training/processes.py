"""The processes that train one LoRA together: each has the whole model and a share of each step.

processes.share(start, count)         which of a step's examples are this process's
processes.add_up(parameters, losses)  gradients and losses, summed over all processes
processes.first(make)                 what the first process makes, in all of them
processes.gather(value)               every process's value, in their order
processes.device(device, devices)     the device of this process

`ALONE` is a single process: it has every example, and nothing is sent. One of several is
`joined.Joined`. Imports without torch.
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
        before them. The examples of a step are dealt out one by one, like cards.
        """
        return range((self.rank - start) % self.count, count, self.count)

    def add_up(self, parameters: Sequence[torch.nn.Parameter], losses: torch.Tensor) -> None:
        """Sum the gradients and the losses over the processes, in place."""

    def first(self, make: Callable[[], Value]) -> Value:
        """`make()` of the first process, in all of them. Raises ProcessLost."""
        return make()

    def gather(self, value: Value) -> list[Value]:
        """The value of each process, in all of them. Raises ProcessLost."""
        return [value]

    def device(self, device: str, devices: str) -> torch.device:
        """The device of this process, for these settings. Raises ConfigError."""
        from lora_trainer.training.device import choose_device, listed_devices

        return choose_device(listed_devices(device, devices)[0])

    def describe(self, device: torch.device) -> str:
        """The devices of all processes, for people."""
        from lora_trainer.training.device import describe_device

        return describe_device(device)


ALONE = Processes()
