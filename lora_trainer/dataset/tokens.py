"""Captions as tokens: chunks of 75, truncation; and whether a trigger word has a meaning for CLIP.

    read_end(text, tokenize, limit)  -> the position where a caption is truncated
    check_trigger_word(word, tokenize)  -> TriggerView   number of tokens, and how common they are
    piece_ends(ids)                  -> where token ids are split into chunks, also in training

The tokenizer is an argument, such as checkpoint.tokenizer.tokenize, so that no library is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lora_trainer.errors import Message

PIECE = 75
"""Tokens per chunk, without start and end."""
COMMA = 267
"""CLIP's token id of a comma."""
COMMA_BACKTRACK = 20
"""A chunk is split after a comma within its last tokens, if there is one."""
COMMON = 20_000
"""Token ids are ordered by frequency in the vocabulary's corpus: whole words below this are common
English.
"""
RARE = 40_000
"""Whole words from this id on were rare in the corpus."""


class Token(NamedTuple):
    """A token of a text."""

    id: int
    start: int
    """Position of its first character."""
    end: int
    """Position after its last character."""


Tokenize = Callable[[str], Sequence[Token]]


TriggerKind = Literal["rare", "uncommon", "common", "made-up", "phrase"]


@dataclass(frozen=True, kw_only=True)
class TriggerView:
    """What a trigger word means to the untrained text encoder."""

    word: str
    parts: tuple[tuple[str, int], ...]
    """(text, token id) in order."""
    kind: TriggerKind
    """rare, uncommon, common: one token, by its id. made-up: several tokens in one word. phrase:
    several words.
    """
    is_good: bool
    message: Message
    hint: Message


def piece_ends(ids: Sequence[int]) -> list[int]:
    """Token ids -> the end index of each chunk; at least one chunk.

    Like A1111 1.10.1 (modules/sd_hijack_clip.py): at 75 tokens, or after a comma among the last 20.
    """
    ends: list[int] = []
    start, last_comma = 0, -1
    for index, token in enumerate(ids):
        if index - start == PIECE:
            is_near = last_comma != -1 and PIECE - (last_comma - start) <= COMMA_BACKTRACK
            start = last_comma + 1 if token != COMMA and is_near else index
            ends.append(start)
            last_comma = -1
        if token == COMMA:
            last_comma = index
    return [*ends, len(ids)]


def read_end(text: str, tokenize: Tokenize, limit: int = PIECE) -> int:
    """The position where a text is truncated at `limit` tokens, or its length.

    Pieces of 75 (a limit of 75, 150 or 225) may end earlier, at a comma.
    """
    tokens = tokenize(text)
    if limit % PIECE:
        read = limit
    else:
        read = piece_ends([token.id for token in tokens])[: limit // PIECE][-1]
    return tokens[read - 1].end if read < len(tokens) else len(text)


def check_trigger_word(word: str, tokenize: Tokenize) -> TriggerView:
    """Whether a trigger word is free to take a new meaning. Never raises."""
    word = word.strip()
    tokens = tokenize(word)
    parts = tuple((word[token.start : token.end], token.id) for token in tokens)
    kind = _kind(word, tokens)
    message, hint = _sentences(kind, word, parts)
    return TriggerView(
        word=word,
        parts=parts,
        kind=kind,
        is_good=kind in ("rare", "made-up"),
        message=message,
        hint=hint,
    )


def _kind(word: str, tokens: Sequence[Token]) -> TriggerKind:
    if len(tokens) != 1:
        return "phrase" if len(word.split()) != 1 else "made-up"
    if tokens[0].id >= RARE:
        return "rare"
    return "common" if tokens[0].id < COMMON else "uncommon"


def _sentences(
    kind: TriggerKind, word: str, parts: Sequence[tuple[str, int]]
) -> tuple[Message, Message]:
    values = {
        "word": word,
        "count": len(parts),
        "parts": " + ".join(text for text, _ in parts),
        "rank": parts[0][1] if parts else 0,
    }
    if kind == "rare":
        message = Message('"{word}" is one rare token: a good trigger word', values)
        return message, Message("")
    if kind == "made-up":
        message = Message('"{word}" is a made-up word of {count} tokens: {parts}', values)
        return message, Message(
            "It can take a new meaning, but its parts may bring some of their own: try it in a "
            "prompt before training."
        )
    if kind == "phrase":
        message = Message('"{word}" is a phrase of {count} tokens', values)
        return message, Message(
            "Each of its words keeps its meaning. A single made-up word is easier to use, and "
            "to leave out."
        )
    if kind == "common":
        message = Message(
            '"{word}" is a common word, which already means something to the model', values
        )
        return message, Message(
            "Training has to overwrite that meaning, and every prompt with the word will show it."
            " Choose a made-up word."
        )
    message = Message('"{word}" is a less common word, which the model knows too', values)
    return message, Message(
        "Try it in a prompt before training: if it shows something of its own, choose a made-up"
        " word."
    )
