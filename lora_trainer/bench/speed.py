"""This machine's rate of matrix multiplications, the reference for a training step."""

from __future__ import annotations

import time

import torch

SIDE = {"cpu": 2048}
LARGE_SIDE = 8192
"""Side of the square matrices: large enough to keep a graphics card busy."""
SECONDS = 2.0
FEWEST = 5


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of square matrix multiplications in `dtype`: the best of
    two seconds of multiplications, but at least five.
    """
    side = SIDE.get(device.type, LARGE_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, ends, count = float("inf"), time.perf_counter() + SECONDS, 0
    while count < FEWEST or time.perf_counter() < ends:
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
        count += 1
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
