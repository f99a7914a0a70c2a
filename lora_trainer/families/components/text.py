"""Rows of text states -> one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_trainer.families.base import TextStates


def join_rows(rows: Sequence[TextStates]) -> TextStates:
    """Rows of equal length -> one batch. Rows with a mask may differ in length: shorter ones are
    zero-padded and masked.
    """
    filled = [row.tensors() for row in rows]
    longest = max(row.hidden.shape[1] for row in rows)
    for tensors in filled:
        missing = longest - tensors["hidden"].shape[1]
        if missing:
            assert "mask" in tensors, "rows of different lengths need a mask"
            tensors["hidden"] = torch.nn.functional.pad(tensors["hidden"], (0, 0, 0, missing))
            tensors["mask"] = torch.nn.functional.pad(tensors["mask"], (0, missing))
    return TextStates(**{name: torch.cat([row[name] for row in filled]) for name in filled[0]})
