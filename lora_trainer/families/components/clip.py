"""Captions -> text states with CLIP text encoders, as the WebUI encodes prompts.

As in A1111 1.10.1 (modules/sd_hijack_clip.py, sd_hijack_open_clip.py): a prompt is split into
chunks of 75 tokens, preferably after a comma in a chunk's last 20 tokens; each chunk gets its own
start and end tokens and is encoded separately; the hidden states are concatenated; the pooled state
is the first chunk's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.tokens import PIECE, piece_ends
from lora_trainer.families.base import TextStates
from lora_trainer.families.components.text import join_rows

EncodePiece = Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""A text encoder and token ids (B, 77) -> hidden states (B, 77, C), and pooled state (B, P) or
None.
"""
START, END = 49406, 49407


def cut_into_pieces(tokens: Sequence[int], most: int) -> list[list[int]]:
    """Token ids without start and end -> 1 to `most` chunks of at most 75; the rest is dropped."""
    ends = piece_ends(tokens)[:most]
    return [list(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def token_ids(tokenizer: Any, caption: str) -> list[int]:
    """A caption's token ids, without start and end, not truncated."""
    return list(
        tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
    )


def encode_in_pieces(
    parts: Parts, captions: Sequence[str], max_token_length: int, encode: EncodePiece
) -> TextStates:
    """Captions -> text states, one row each; several encoders' states are concatenated along
    channels.

    Shorter captions are padded with empty chunks, as the WebUI does in a batch.
    """
    most = max_token_length // PIECE
    cut = [cut_into_pieces(token_ids(parts.tokenizers[0], caption), most) for caption in captions]
    count = max(len(pieces) for pieces in cut)
    filled = [pieces + [[]] * (count - len(pieces)) for pieces in cut]
    states, pooled = [], []
    for position in range(count):
        hidden, pool = _encode_pieces(parts, [pieces[position] for pieces in filled], encode)
        states.append(hidden)
        pooled.append(pool)
    return TextStates(torch.cat(states, 1), pooled[0])


def join_pieces(rows: Sequence[TextStates], empty: TextStates) -> TextStates:
    """Rows -> one batch; shorter rows are padded with `empty`, the states of an empty chunk (1, 77,
    C).
    """
    longest = max(row.hidden.shape[1] for row in rows)
    return join_rows([_filled_up(row, longest, empty) for row in rows])


def _filled_up(row: TextStates, length: int, empty: TextStates) -> TextStates:
    missing = length - row.hidden.shape[1]
    if not missing:
        return row
    padding = [empty.hidden.to(row.hidden)] * (missing // empty.hidden.shape[1])
    return TextStates(torch.cat([row.hidden, *padding], 1), row.pooled)


def _encode_pieces(
    parts: Parts, pieces: Sequence[Sequence[int]], encode: EncodePiece
) -> tuple[torch.Tensor, torch.Tensor | None]:
    hidden, pooled = [], None
    for encoder, tokenizer in zip(parts.text_encoders, parts.tokenizers, strict=True):
        padding = tokenizer.pad_token_id
        rows = [[START, *piece, END, *[padding] * (PIECE - len(piece))] for piece in pieces]
        states, pool = encode(encoder, torch.tensor(rows, device=next(encoder.parameters()).device))
        hidden.append(states)
        pooled = pooled if pool is None else pool
    return torch.cat(hidden, -1), pooled
