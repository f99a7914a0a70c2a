"""Of a dataset's images, those that are wanted now: sorted, filtered, one page of them. Pure; called by the routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lora_trainer.webui.contents import Item, View

Order = Literal["name", "changed", "caption"]
Which = Literal["all", "missing", "captioned", "findings"]

_ORDERS: dict[str, Callable[[Item], Any]] = {
    "changed": lambda item: -item.changed,
    "caption": lambda item: item.caption.casefold(),
}
_FILTERS: dict[str, Callable[[Item], bool]] = {
    "missing": lambda item: not item.caption,
    "captioned": lambda item: bool(item.caption),
    "findings": lambda item: bool(item.findings),
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Which images: from `offset`, at most `limit` of those that match. An unknown order is that of the names, an unknown filter lets all pass."""

    offset: int = 0
    limit: int = 60
    order: Order = "name"
    which: Which = "all"
    text: str = ""
    """Only images whose caption or name contains this, in capitals or not."""


@dataclass(frozen=True, kw_only=True)
class Page:
    items: tuple[Item, ...]
    matching: int
    """How many match in all."""


def page(view: View, wish: Wish) -> Page:
    """The images a Wish asks for."""
    passes = _FILTERS.get(wish.which)
    text = " ".join(wish.text.split()).casefold()
    found = [item for item in view.items if (passes is None or passes(item)) and (text in item.caption.casefold() or text in item.name.casefold())]
    if wish.order in _ORDERS:
        found.sort(key=_ORDERS[wish.order])  # stable: of equal ones, by name
    return Page(items=tuple(found[wish.offset : wish.offset + wish.limit]), matching=len(found))
