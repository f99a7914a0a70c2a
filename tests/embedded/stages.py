"""Shared by the training of VAE and UNet: saved progress, averaged weights, learning rate, several
processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer import files


def one_cycle(step: int, step_count: int, peak: float, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (
        0.01
        + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (step_count - warmup))))
    )


@dataclass
class StageProgress:
    """Progress of a stage."""

    step: int = 0
    seconds: float = 0.0


def save_state(path: Path, progress: StageProgress, **kept: Any) -> None:
    state = {name: part.state_dict() for name, part in kept.items()} | {
        "step": progress.step,
        "seconds": progress.seconds,
    }
    files.replace_file(path, lambda partial: torch.save(state, partial))


def load_state(path: Path, **kept: Any) -> StageProgress:
    """Restore the parts from the file, if it exists. Returns their progress."""
    if not path.exists():
        return StageProgress()
    state = torch.load(path, weights_only=True)
    for name, part in kept.items():
        part.load_state_dict(state[name])
    return StageProgress(state["step"], state["seconds"])


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Update the exponential moving average of the weights."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


class Share:
    """One of several processes that train a model together, averaging gradients in each step."""

    def __init__(self, rank: int, count: int, meeting: Path) -> None:
        self.rank, self.count = rank, count
        if count > 1:
            torch.distributed.init_process_group(
                "gloo", init_method=meeting.resolve().as_uri(), rank=rank, world_size=count
            )

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(
            gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
