"""The share of a graphics card's free memory that a plan may use, learned from earlier runs.
Without torch.

    memory.json, beside the run folders: {"NVIDIA GeForce RTX 3060": 0.87}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_trainer import files

NAME = "memory.json"
LEAST = 0.5
"""Smallest share: below it, another program must have used the memory."""
MARGIN = 0.95
"""Factor from the predicted memory of a run that ran out of memory to what the next may use."""


def share_of(runs: Path, card: str) -> float:
    """The share of this card's free memory that a plan may use; 1 if no run ran out of memory.
    runs: the parent of the run folders.
    """
    return _known(runs).get(card, 1.0)


def remember(runs: Path, card: str, predicted: int, free: int) -> None:
    """Record that a run, predicted to need `predicted` of `free` bytes, ran out of memory."""
    known = _known(runs)
    share = max(LEAST, MARGIN * predicted / free)
    if share < known.get(card, 1.0):
        text = json.dumps({**known, card: round(share, 3)}, indent=1)
        files.write_text(runs / NAME, text + "\n")


def _known(runs: Path) -> dict[str, float]:
    nothing: dict[str, float] = {}
    return files.read_json(runs / NAME, _shares, nothing)


def _shares(content: Any) -> dict[str, float]:
    if not isinstance(content, dict):
        raise ValueError("not a table")
    found = {str(card): float(share) for card, share in content.items()}
    return {card: share for card, share in found.items() if LEAST <= share <= 1}
