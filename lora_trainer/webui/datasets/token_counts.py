"""Counts CLIP tokens of captions in the WebUI's process, cached by text.

    length(caption, trigger, limit) -> TokenCount    its length as in training, and where it is
                                                     truncated

The vocabulary is the host's file (open_clip or clip), or the overlay's. Without one, `available` is
False and all lengths are 0. Called by the workbench and the routes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache

from lora_trainer import environment
from lora_trainer.dataset import tokens
from lora_trainer.dataset.captions import variants, with_trigger_word
from lora_trainer.dataset.clip_bpe import ClipBpe
from lora_trainer.dataset.tokens import TriggerView
from lora_trainer.errors import SetupError

SHORTEST, LONGEST = 75, 1024
"""Bounds of the models' caption limits, in tokens."""
_REMEMBERED = 50_000


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """A caption's length in tokens, including the trigger word that training prepends."""

    count: int
    limit: int
    kept_end: int
    """Index of the first truncated character, or the caption's length."""
    over: bool


def available() -> bool:
    """Whether there is a vocabulary."""
    return _clip() is not None


@lru_cache(maxsize=_REMEMBERED)
def count(text: str) -> int:
    """Number of tokens; 0 without a vocabulary."""
    clip = _clip()
    return clip.count(text) if clip else 0


@lru_cache(maxsize=_REMEMBERED)
def length(caption: str, trigger: str, limit: int) -> TokenCount:
    """The length of a caption; of several, the longest."""
    several = variants(caption)
    if len(several) > 1 or several != [caption]:
        longest = max(
            (length(one, trigger, limit) for one in several), key=lambda found: found.count
        )
        # the index is relative to that one
        return replace(longest, kept_end=len(caption))
    clip = _clip()
    if clip is None:
        return TokenCount(count=0, limit=limit, kept_end=len(caption), over=False)
    text = with_trigger_word(caption, trigger)
    number = count(text)
    # the position of truncation is only computed if needed: counting alone is five times faster
    kept = (
        tokens.read_end(text, clip.tokenize, limit)
        if number > limit - tokens.COMMA_BACKTRACK * (limit // tokens.PIECE)
        else len(text)
    )
    return TokenCount(
        count=number,
        limit=limit,
        kept_end=max(0, kept - (len(text) - len(caption))),
        over=kept < len(text),
    )


def check_trigger_word(word: str) -> TriggerView | None:
    """How a word is tokenized; None without a vocabulary."""
    clip = _clip()
    return tokens.check_trigger_word(word, clip.tokenize) if clip else None


def limit_of(value: object) -> int:
    """A caption limit from a request, in tokens; 75 if it is not valid."""
    text = str(value)
    asked = int(text) if text.isdecimal() and len(text) <= 4 else SHORTEST
    return asked if SHORTEST <= asked <= LONGEST else SHORTEST


@cache
def _loaded() -> ClipBpe:
    overlays = environment.OVERLAY.glob("*/*") if environment.OVERLAY.is_dir() else ()
    return ClipBpe.load(overlays)


def _clip() -> ClipBpe | None:
    try:
        return _loaded()
    except SetupError:
        # the set-up may have installed one
        return None
