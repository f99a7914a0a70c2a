"""The structure of captions: lines, comma-separated parts, trigger word, and what a training step
gets.

Several lines are several captions of one image, of which each training step draws one; except if
every line is a single tag, or ends in a comma, which makes them one caption. `variants` decides
that. Files, edits and the tab keep lines as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from lora_trainer.errors import DatasetError

MAX_CAPTION_LENGTH = 20_000
"""In characters, all lines together. The longest that a text encoder reads, 225 tokens, has about
1,000.
"""

_COMMAS = frozenset(",，")
_BRACKETS = {"(": ")", "[": "]", "{": "}", "（": "）", "【": "】"}
_CLOSING = {closing: opening for opening, closing in _BRACKETS.items()}
_BRACKET = re.compile(r"[\[({（【]")
_BETWEEN = re.compile("[,，\n]")
_EYES = frozenset(":;=")
"""A bracket after one of these is part of an emoticon tag, such as ":)" and ">:("."""
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff\ufeff]")
_MOST_TAG_WORDS = 4
_MOST_TAG_SIGNS = 8
"""For Chinese and Japanese, which have no spaces between words."""
_ENDS_SENTENCE = re.compile(r"[.!?。！？]$")
_BEGINS_SENTENCE = re.compile(r"(?:an?|the)\s", re.IGNORECASE)
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def tidy(text: str) -> str:
    """The text as one line with single spaces."""
    return " ".join(text.split())


def caption_of(text: str) -> str:
    """A text from a file or user -> a caption: tidied lines, without empty ones and control
    characters.
    """
    return "\n".join(
        filter(None, map(tidy, _NO_TEXT.sub(" ", text).replace("\r", "\n").split("\n")))
    )


def require_length(caption: str, name: object) -> None:
    """Raise DatasetError if a text is too long for a caption; `name` is its file."""
    if len(caption) > MAX_CAPTION_LENGTH:
        hint = (
            "Shorten it: a text encoder reads some 1,000 characters at most. Or it is not a"
            " caption: move the file elsewhere."
        )
        template = "{path}: the caption has {count} characters, more than {limit}"
        raise DatasetError(
            template, hint=hint, path=name, count=len(caption), limit=MAX_CAPTION_LENGTH
        )


def is_list(caption: str) -> bool:
    """Whether the lines are one caption: tags, one per line, or parts that each end in a comma."""
    lines = caption.split("\n")
    return len(lines) > 1 and (
        all(line[-1:] in _COMMAS for line in lines[:-1]) or all(map(_is_tag, lines))
    )


def _is_tag(line: str) -> bool:
    found = parts(line)
    if (
        len(found) != 1
        or len(found[0].split()) > _MOST_TAG_WORDS
        or len(_UNSPACED.findall(found[0])) > _MOST_TAG_SIGNS
    ):
        return False
    return not _ENDS_SENTENCE.search(found[0]) and not _BEGINS_SENTENCE.match(found[0])


def variants(caption: str) -> list[str]:
    """The captions of an image, one line each; usually one. An empty caption counts as one."""
    return [", ".join(parts(caption))] if is_list(caption) else caption.split("\n")


def edited(caption: str, edit: Callable[[str], str]) -> str:
    """Each of an image's captions changed by `edit`, a function of one line; lines are kept."""
    if not is_list(caption):
        return "\n".join(filter(None, map(edit, caption.split("\n"))))
    before = ", ".join(parts(caption))
    after = edit(before)
    if after == before:
        return caption
    comma = caption.split("\n", 1)[0][-1]
    between = f"{comma}\n" if comma in _COMMAS else "\n"
    listed = between.join(parts(after)) + (caption[-1] if caption[-1] in _COMMAS else "")
    return listed if variants(listed) == [after] else after


def parts(caption: str) -> list[str]:
    """The non-empty parts of a caption, split at commas (also full-width) and line ends outside of
    brackets, escaped or not. Unpaired brackets are ordinary characters.
    """
    return [caption[start:end] for start, end in part_spans(caption)]


def part_spans(caption: str) -> list[tuple[int, int]]:
    """(start, end) of each part of a caption."""
    inside = _bracketed(caption) if _BRACKET.search(caption) else None
    ends = [
        match.start()
        for match in _BETWEEN.finditer(caption)
        if inside is None or not inside[match.start()]
    ]
    spans = []
    for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(caption)], strict=True):
        part = caption[start:end]
        if part.strip():
            spans.append((start + len(part) - len(part.lstrip()), start + len(part.rstrip())))
    return spans


def _bracketed(text: str) -> bytearray:
    """For each character, whether it is inside a pair of brackets on one line."""
    inside = bytearray(len(text))
    opened: list[tuple[str, int]] = []
    waiting = dict.fromkeys(_BRACKETS, 0)
    pairs: list[tuple[int, int]] = []
    for index, letter in enumerate(text):
        if letter == "\n":
            opened.clear()
            waiting = dict.fromkeys(_BRACKETS, 0)
        elif index and text[index - 1] in _EYES:
            continue
        elif letter in _BRACKETS:
            opened.append((letter, index))
            waiting[letter] += 1
        elif letter in _CLOSING and waiting[_CLOSING[letter]]:
            while True:
                opening, place = opened.pop()
                waiting[opening] -= 1
                if opening == _CLOSING[letter]:
                    break
            # keep only the outermost of nested pairs: each character is visited once
            while pairs and pairs[-1][0] > place:
                pairs.pop()
            pairs.append((place, index))
    for start, end in pairs:
        inside[start:end] = b"\1" * (end - start)
    return inside


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word in front of each variant that does not contain it as a
    whole word, ignoring case.
    """
    trigger_word = trigger_word.strip()
    if not trigger_word:
        return caption
    has_it = re.compile(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", re.IGNORECASE)

    def edit(line: str) -> str:
        if has_it.search(line):
            return line
        return f"{trigger_word}, {line}" if line else trigger_word

    return edited(caption, edit)


def training_caption(
    caption: str, *, shuffle: bool, keep_tokens: int, dropout: float, random: Random
) -> str:
    """The caption for one training step.

    One of several variants is drawn. `shuffle` shuffles its parts except the first `keep_tokens` (a
    trigger word in front is one). With probability `dropout` it is empty. `random` is used only as
    needed for these.
    """
    if dropout and random.random() < dropout:
        return ""
    several = variants(caption)
    chosen = random.choice(several) if len(several) > 1 else several[0]
    if not shuffle:
        return chosen
    kept, moving = parts(chosen)[:keep_tokens], parts(chosen)[keep_tokens:]
    random.shuffle(moving)
    return ", ".join(kept + moving)
