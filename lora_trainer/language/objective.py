"""The objective of a language model: predict the next token of what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lora_trainer.language.packing import TokenBatch, collate
from lora_trainer.language.tokens import IGNORED, TokenRow
from lora_trainer.training.prefetch import moved


@dataclass(frozen=True, kw_only=True)
class CompletionObjective:
    """The model and the tokens of the dataset."""

    model: Any
    rows: Sequence[TokenRow]
    pad_id: int
    device: torch.device
    dtype: torch.dtype

    def batch(
        self, indices: Sequence[int], step: int, part: int, rows: Sequence[int] | None = None
    ) -> TokenBatch:
        """The `rows` (default: all) of this batch of token rows."""
        chosen = range(len(indices)) if rows is None else rows
        return collate([self.rows[indices[row]] for row in chosen], self.pad_id, self.dtype)

    def losses(self, batch: TokenBatch) -> torch.Tensor:
        """The mean cross entropy of the learned tokens of each row, (B,)."""
        return completion_loss(self._predict(batch), moved(batch.labels, self.device))

    def names(self, indices: Sequence[int]) -> Sequence[str]:
        return [self.rows[index].name for index in indices]

    def loss(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """The loss of each of these rows, (B,)."""
        return self.losses(collate(rows, self.pad_id, self.dtype))

    def logits(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """The model's output for these rows, (B, L, V)."""
        return self._predict(collate(rows, self.pad_id, self.dtype))

    def _predict(self, batch: TokenBatch) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=moved(batch.ids, self.device),
            attention_mask=moved(batch.mask, self.device),
            position_ids=moved(batch.positions, self.device),
            use_cache=False,
        ).logits
        return logits


def completion_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each row over its learned tokens: (B, L, V), (B, L) -> (B,), float32.
    The logits of a token predict the label of the next one.
    """
    targets = labels[:, 1:]
    # float32: bfloat16 keeps about three digits, and the loss curve needs more
    costs = cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return costs.sum(1) / (targets != IGNORED).sum(1).clamp_min(1)
