"""Averaged weights: what is saved, shown and validated, while training itself goes on unaveraged.

average = make_average(parameters, settings)   None without ema_decay
average.add(step)                              after each step
with average.in_use(): ...                     the parameters hold the averages
with averaged_by(optimizer): ...               the same for an optimizer that averages itself
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lora_trainer.settings.training import TrainingSettings

EXPONENT = 6.94
"""Of the power function by which an automatic average weighs earlier steps: relative width 0.1, as
in arXiv 2312.02696, section 3.1. The weighted steps lie (EXPONENT + 1) / (EXPONENT + 2) of the way,
that is, a ninth of the steps before the present one.
"""


class WeightAverage:
    """A running average of the trained parameters, with the shapes and device that they have."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float | None) -> None:
        """decay: of the exponential moving average; None: the average widens with the steps."""
        self._parameters = tuple(parameters)
        self._decay = decay
        self.averages = [parameter.detach().clone() for parameter in self._parameters]

    def add(self, step: int) -> None:
        """Take in the parameters after `step`, counted from 1."""
        share = 1 - self._kept(step)
        with torch.no_grad():
            for average, parameter in zip(self.averages, self._parameters, strict=True):
                average.lerp_(parameter, share)

    def _kept(self, step: int) -> float:
        """The share of the average before this step that remains in it."""
        if self._decay is None:
            return float((1 - 1 / step) ** (EXPONENT + 1))
        # the start has no say soon: at the beginning decays are lower
        return min(self._decay, (1 + step) / (10 + step))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For the block, the parameters hold the averages."""
        with _restored(self._parameters), torch.no_grad():
            for parameter, average in zip(self._parameters, self.averages, strict=True):
                parameter.copy_(average)
            yield

    def move(self, device: torch.device) -> None:
        """Move the averages."""
        self.averages = [average.to(device) for average in self.averages]

    def state_dict(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Copies on the CPU, by the parameters' names, in their order."""
        copies = [average.to("cpu", copy=True) for average in self.averages]
        return dict(zip(names, copies, strict=True))

    def load_state_dict(
        self, names: Sequence[str], state: Mapping[str, torch.Tensor] | None
    ) -> None:
        """Restore the averages; without a state, as of a resume point of a run that had none, they
        begin with the parameters as they are.
        """
        values = self._parameters if state is None else [state[name] for name in names]
        with torch.no_grad():
            for average, value in zip(self.averages, values, strict=True):
                average.copy_(value)


def make_average(
    parameters: Sequence[torch.nn.Parameter], settings: TrainingSettings
) -> WeightAverage | None:
    """The average that the settings ask for."""
    if settings.ema_decay == 0:
        return None
    return WeightAverage(parameters, settings.ema_decay)


@contextmanager
def averaged_by(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """For the block, the parameters hold the averages of a schedule-free optimizer; with another
    one they stay as they are.
    """
    averaging: Any = optimizer
    if not hasattr(averaging, "eval"):
        yield
        return
    # its own `train()` does not restore the weights exactly
    with _restored([one for group in averaging.param_groups for one in group["params"]]):
        averaging.eval()
        try:
            yield
        finally:
            averaging.train()


@contextmanager
def _restored(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """After the block, the parameters are bit for bit what they were before it."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
