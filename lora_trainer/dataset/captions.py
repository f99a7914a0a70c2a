"""What a caption is: its text cleaned, the trigger word in front, its parts in the order of one training step.

Called by dataset (`tidy`, `with_trigger_word`) and training (`training_caption`).
"""

from __future__ import annotations

import re
from random import Random

_COMMA = re.compile("[,，]")


def tidy(text: str) -> str:
    """A caption as one line: every run of spaces and line ends is one space."""
    return " ".join(text.split())


def parts(caption: str) -> list[str]:
    """The comma-separated parts of a caption, without empty ones. The full-width comma counts."""
    return [part.strip() for part in _COMMA.split(caption) if part.strip()]


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word in front, unless it holds it as a whole word already, in capitals or not."""
    trigger_word = trigger_word.strip()
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def training_caption(caption: str, *, shuffle: bool, keep_tokens: int, dropout: float, random: Random) -> str:
    """The caption one training step sees.

    With `shuffle` its parts come in a random order, but for the first `keep_tokens` of them (a trigger word in front is one). With probability
    `dropout` it is empty. `random` is drawn from only for what is switched on.
    """
    if dropout and random.random() < dropout:
        return ""
    if not shuffle:
        return caption
    kept, moving = parts(caption)[:keep_tokens], parts(caption)[keep_tokens:]
    random.shuffle(moving)
    return ", ".join(kept + moving)
