"""Several short examples in one row, and rows as a batch.

Examples in a row do not attend to each other: positions begin again at 0, and attention is causal
within an example. A packed row gives each example the same loss as alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_trainer.language.tokens import IGNORED, TokenRow

OPEN_ROWS = 64
"""Rows that may still get an example; more fill little better and take longer."""


@dataclass(frozen=True)
class TokenBatch:
    """ids, labels, positions: (B, L). mask: 1 where a token is, (B, L); with packed rows additive,
    (B, 1, L, L).
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor

    def pin_memory(self) -> TokenBatch:
        """The same in page-locked memory."""
        return TokenBatch(
            ids=self.ids.pin_memory(),
            labels=self.labels.pin_memory(),
            positions=self.positions.pin_memory(),
            mask=self.mask.pin_memory(),
        )


def pack(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """The rows put together into rows of at most max_length tokens: each goes into the first one
    that has room for it. Longer ones stay alone.
    """
    bins: list[list[TokenRow]] = []
    room: dict[int, int] = {}
    for row in rows:
        place = next((number for number, left in room.items() if left >= len(row.ids)), len(bins))
        if place == len(bins):
            bins.append([])
            room[place] = max_length
        bins[place].append(row)
        room[place] -= len(row.ids)
        if room[place] <= 0 or len(room) > OPEN_ROWS:
            del room[min(room, key=room.__getitem__)]
    return [_joined(packed) for packed in bins]


def _joined(rows: Sequence[TokenRow]) -> TokenRow:
    name = rows[0].name if len(rows) == 1 else f"{rows[0].name} and {len(rows) - 1} more"
    return TokenRow(
        name=name,
        ids=tuple(token for row in rows for token in row.ids),
        labels=tuple(label for row in rows for label in row.labels),
        lengths=tuple(length for row in rows for length in row.lengths),
    )


def unpacked(row: TokenRow) -> list[TokenRow]:
    """The examples of a row, each in one of its own."""
    found: list[TokenRow] = []
    start = 0
    for length in row.lengths:
        part = slice(start, start + length)
        found.append(TokenRow.of(row.name, row.ids[part], row.labels[part]))
        start += length
    return found


def collate(rows: Sequence[TokenRow], pad_id: int, dtype: torch.dtype) -> TokenBatch:
    """Rows -> a batch, padded at the end. dtype: the mask's, where a row holds several examples.

    The first token of each example is not learned: nothing before it is seen.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORED)
    positions = torch.zeros((len(rows), longest), dtype=torch.long)
    # the number of the example that a token belongs to, from 1; 0 for padding
    owners = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.tensor(row.labels)
        start = 0
        for number, length in enumerate(row.lengths, 1):
            positions[index, start : start + length] = torch.arange(length)
            owners[index, start : start + length] = number
            labels[index, start] = IGNORED
            start += length
    is_packed = any(len(row.lengths) > 1 for row in rows)
    mask = _additive_mask(owners, dtype) if is_packed else (owners > 0).long()
    return TokenBatch(ids=ids, labels=labels, positions=positions, mask=mask)


def _additive_mask(owners: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token attends to another, else the lowest number: (B, L) -> (B, 1, L, L)."""
    same = owners[:, :, None] == owners[:, None, :]
    causal = torch.ones(same.shape[1:], dtype=torch.bool).tril()
    mask = torch.full(same.shape, torch.finfo(dtype).min, dtype=dtype)
    return mask.masked_fill(same & causal, 0.0)[:, None]
