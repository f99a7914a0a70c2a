"""HTML and SVG elements. Texts are escaped where they enter; only `Markup` is taken as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = ("meta", "img", "path", "line", "circle", "polyline")
"""Elements without content."""


class Markup(str):
    """Escaped HTML."""

    __slots__ = ()


def tag(name: str, /, *parts: object, **attributes: object) -> Markup:
    """An element. Parts: Markup, texts, numbers, None (nothing), or sequences of these. Attributes:
    `class_` is class, other underscores are hyphens; None leaves one out.
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{named}>" if name in ("meta", "img") else f"<{name}{named}/>")
    return Markup(f"<{name}{named}>{joined(parts)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Parts in a row, escaped."""
    return Markup("".join(_escaped(part) for part in parts))


def _escaped(part: object) -> str:
    if part is None:
        return ""
    if isinstance(part, Markup):
        return part
    if isinstance(part, (list, tuple)):
        return joined(part)
    return html.escape(str(part))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], **attributes: object) -> Markup:
    """A table of texts."""
    return tag(
        "table",
        tag("thead", tag("tr", [tag("th", cell) for cell in head])),
        tag("tbody", [tag("tr", [tag("td", cell) for cell in row]) for row in rows]),
        **attributes,
    )
