"""Counts tags or words in a dataset's captions. Pure; called by the routes.

A tag is a comma-separated part of a caption; of captions that are sentences, words are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

from lora_trainer.dataset.captions import parts

Kind = Literal["tags", "words"]
Sort = Literal["count", "name"]

LONG_PART = 5
"""Words: parts with this many are probably sentences."""
_WORD = re.compile(r"[^\W_]+(?:['’_-][^\W_]+)*")
_CHINESE = re.compile("[\u3400-\u9fff]")
_IDLE = frozenset(
    {
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "or",
        "with",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "by",
        "for",
        "from",
        "as",
        "it",
        "its",
        "his",
        "her",
        "their",
        "he",
        "she",
        "they",
        "this",
        "that",
        "these",
        "those",
        "there",
        "has",
        "have",
    }
)
"""English stop words."""


@dataclass(frozen=True, kw_only=True)
class TagCount:
    tag: str
    """In its most frequent spelling."""
    count: int
    """Number of captions that contain it."""


@dataclass(frozen=True, kw_only=True)
class TagTable:
    kind: Kind
    captions: int
    distinct: int
    tags: tuple[TagCount, ...]


@lru_cache(maxsize=20_000)
def _parts(caption: str) -> tuple[str, ...]:
    return tuple(parts(caption))


def table(
    captions: Iterable[str], kind: Kind = "tags", sort: Sort = "count", most: int = 300
) -> TagTable:
    """The `most` frequent tags (or, sorted by name, the first), each counted once per caption,
    case-insensitive.
    """
    captions = list(captions)
    written = Counter(chain.from_iterable(_counted(caption, kind) for caption in captions))
    spellings: dict[str, list[str]] = {}
    for part in written:
        spellings.setdefault(part.casefold(), []).append(part)
    counts = {tag: sum(written[part] for part in some) for tag, some in spellings.items()}
    chosen = sorted(counts)
    if sort == "count":
        chosen.sort(
            key=counts.__getitem__, reverse=True
        )  # stable: equal counts stay sorted by name
    tags = tuple(
        TagCount(tag=max(spellings[tag], key=written.__getitem__), count=counts[tag])
        for tag in chosen[:most]
    )
    total = sum(map(bool, captions))
    return TagTable(kind=kind, captions=total, distinct=len(counts), tags=tags)


@lru_cache(maxsize=20_000)
def _counted(caption: str, kind: Kind) -> tuple[str, ...]:
    """The distinct tags or words of a caption, case-insensitive."""
    found = _parts(caption) if kind == "tags" else words(caption)
    return tuple({part.casefold(): part for part in found}.values())


def words(caption: str) -> list[str]:
    """The words of a caption except stop words. Chinese is not segmented."""
    return [
        word
        for word in _WORD.findall(caption)
        if word.casefold() not in _IDLE and (len(word) > 1 or _CHINESE.match(word))
    ]


def mostly(captions: Sequence[str]) -> Literal["tags", "sentences"]:
    """Whether most captions are sentences or comma-separated tags."""
    written = [caption for caption in captions if caption]
    return "sentences" if sum(map(is_sentence, written)) * 2 > len(written) else "tags"


@lru_cache(maxsize=20_000)
def is_sentence(caption: str) -> bool:
    found = _parts(caption)
    return bool(found) and sum(len(part.split()) for part in found) / len(found) >= LONG_PART
