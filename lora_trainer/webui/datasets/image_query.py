"""Filters, sorts and pages a dataset's images. Pure; called by the routes and the workbench.

Facts that are not in the items come from a `Knowledge`, which computes only what a filter needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from lora_trainer.dataset.caption_provenance import Author
from lora_trainer.dataset.captions import parts, with_trigger_word
from lora_trainer.webui.datasets.caption_store import Item, View

Order = Literal["name", "changed", "caption", "tokens", "tokens-down", "edited", "findings"]
Which = Literal[
    "all",
    "missing",
    "captioned",
    "short",
    "long",
    "no-trigger",
    "unreviewed",
    "reviewed",
    "person",
    "machine",
    "findings",
]
COUNTED: tuple[Which, ...] = (
    "missing",
    "short",
    "long",
    "no-trigger",
    "unreviewed",
    "person",
    "machine",
    "findings",
)
"""The filters whose labels show counts."""

SHORT_PARTS, SHORT_WORDS = 3, 6
"""A caption with fewer of both is short."""


class Knowledge(Protocol):
    """Facts about an item besides its files."""

    def tokens(self, item: Item) -> int: ...
    def is_long(self, item: Item) -> bool: ...
    def reviewed(self, item: Item) -> bool: ...
    def author(self, item: Item) -> Author: ...
    def kinds(self, item: Item) -> Sequence[str]:
        """The kinds of its findings."""
        ...

    def edited(self, item: Item) -> float:
        """The modification time of its caption's file."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageFilter:
    """A filter. Conditions that are not given, and unknown filters, are not applied."""

    which: Which = "all"
    text: str = ""
    """The caption or the name contains this, case-insensitive."""
    lacks: str = ""
    """The caption does not contain this."""
    tag: str = ""
    """The caption has each of these comma-separated tags, case-insensitive."""
    match: Literal["all", "any"] = "all"
    """any: one of them is enough."""
    without: str = ""
    """The caption has none of these tags."""
    finding: str = ""
    """It has a finding of this kind."""
    trigger: str = ""
    """The trigger word, for `no-trigger`."""


@dataclass(frozen=True, kw_only=True)
class PageQuery(ImageFilter):
    """A filter, an order and a page: at most `limit` matches from `offset` on. Unknown orders mean
    by name.
    """

    offset: int = 0
    limit: int = 60
    order: Order = "name"


@dataclass(frozen=True, kw_only=True)
class Page:
    items: tuple[Item, ...]
    matching: int
    """Number of all matches."""


def page(view: View, query: PageQuery, known: Knowledge) -> Page:
    """The images of a PageQuery."""
    found = matching(view.items, query, known)
    order = _ORDERS.get(query.order)
    if order is not None:
        found.sort(key=lambda item: order(item, known))  # stable: equal ones stay sorted by name
    return Page(items=tuple(found[query.offset : query.offset + query.limit]), matching=len(found))


def matching(items: Sequence[Item], where: ImageFilter, known: Knowledge) -> list[Item]:
    """The matching items, in order."""
    choose = _FILTERS.get(where.which)
    found = list(items) if choose is None else choose(items, where, known)
    for test in _tests(where, known):
        found = list(filter(test, found))
    return found


def counts(items: Sequence[Item], where: ImageFilter, known: Knowledge) -> dict[str, int]:
    """Number of matches of each filter."""
    return {name: len(_FILTERS[name](items, where, known)) for name in COUNTED}


@lru_cache(maxsize=20_000)
def is_short(caption: str) -> bool:
    """Whether a caption is short, be it tags or a sentence. A missing one is not."""
    return (
        bool(caption) and len(parts(caption)) < SHORT_PARTS and len(caption.split()) < SHORT_WORDS
    )


def _tests(where: ImageFilter, known: Knowledge) -> Sequence[Callable[[Item], bool]]:
    text, lacks = (" ".join(words.split()).casefold() for words in (where.text, where.lacks))
    wanted, unwanted = _tags(where.tag), _tags(where.without)
    tests: list[Callable[[Item], bool]] = []
    if text:
        tests.append(lambda item: text in item.caption.casefold() or text in item.name.casefold())
    if lacks:
        tests.append(lambda item: lacks not in item.caption.casefold())
    if wanted:
        tests.append(
            lambda item: (
                bool(wanted & _tags(item.caption))
                if where.match == "any"
                else wanted <= _tags(item.caption)
            )
        )
    if unwanted:
        tests.append(lambda item: not unwanted & _tags(item.caption))
    if where.finding:
        tests.append(lambda item: where.finding in known.kinds(item))
    return tests


@lru_cache(maxsize=20_000)
def _tags(caption: str) -> frozenset[str]:
    return frozenset(" ".join(part.casefold().split()) for part in parts(caption))


@lru_cache(maxsize=20_000)
def _lacks(caption: str, trigger: str) -> bool:
    return bool(trigger.strip()) and with_trigger_word(caption, trigger) != caption


_FILTERS: dict[str, Callable[[Sequence[Item], ImageFilter, Knowledge], list[Item]]] = {
    "missing": lambda items, where, known: [item for item in items if not item.caption],
    "captioned": lambda items, where, known: [item for item in items if item.caption],
    "short": lambda items, where, known: [item for item in items if is_short(item.caption)],
    "long": lambda items, where, known: [item for item in items if known.is_long(item)],
    "no-trigger": lambda items, where, known: [
        item for item in items if _lacks(item.caption, where.trigger)
    ],
    "unreviewed": lambda items, where, known: [item for item in items if not known.reviewed(item)],
    "reviewed": lambda items, where, known: [item for item in items if known.reviewed(item)],
    "person": lambda items, where, known: [
        item for item in items if known.author(item) == "person"
    ],
    "machine": lambda items, where, known: [
        item for item in items if known.author(item) == "machine"
    ],
    "findings": lambda items, where, known: [item for item in items if known.kinds(item)],
}
_ORDERS: dict[str, Callable[[Item, Knowledge], Any]] = {
    "changed": lambda item, known: -item.changed,
    "caption": lambda item, known: item.caption.casefold(),
    "tokens": lambda item, known: known.tokens(item),
    "tokens-down": lambda item, known: -known.tokens(item),
    "edited": lambda item, known: -known.edited(item),
    "findings": lambda item, known: -len(known.kinds(item)),
}
