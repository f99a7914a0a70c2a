"""Which blocks are swapped. Without torch: the planner asks too."""

from __future__ import annotations

SLOTS = 2
"""Blocks on the device at once: the one in use, and the next."""


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers from 0 to total - 1, evenly: between two blocks that are swapped are
    as many that are not as possible, during which the next one is copied.
    """
    count = min(count, total)
    return [n for n in range(total) if (n + 1) * count // total > n * count // total]
