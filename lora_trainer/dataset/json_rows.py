"""Captions in JSON, with their positions in the text, so that one can be changed alone.

entries(text)          -> members of the outermost list or object: kohya's {path: {caption,
                       tags}}, a list of objects
caption_in(values)     -> an object's caption, or None
with_caption(text, caption) -> an object's text with only its caption changed
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer import files
from lora_trainer.dataset.captions import caption_of, is_list, parts, tidy
from lora_trainer.files import NotJson

CAPTION_COLUMNS = tuple(
    (
        "text caption captions prompt description additional_feature tags label"
        " 描述 提示词 标注 标签"
    ).split()
)
"""Column names in order of preference: a file with both `text` and `label` means `text`."""

_TAGS = "tags"
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class JsonEntry:
    """A member of the outermost list or object: key (in an object), value, and the value's position
    in the text.
    """

    key: str | None
    value: Any
    start: int
    end: int
    member_start: int
    """Start of its key; in a list, of its value."""


def parse(text: str) -> Any:
    """Parse JSON. Raises NotJson."""
    # accept lone surrogates; see `_sound`
    return files.parse_json(text, names=True)


def entries(text: str) -> Iterator[JsonEntry]:
    """The members of the outermost list or object. Raises NotJson."""
    parse(text)
    at = _skip(text, 0)
    opening = text[at : at + 1]
    if opening not in ("[", "{"):
        raise NotJson("neither a list nor an object")
    closing = "]" if opening == "[" else "}"
    at = _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return
    while True:
        member, key = at, None
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        value, end = _DECODER.raw_decode(text, at)
        yield JsonEntry(key=key, value=value, start=at, end=end, member_start=member)
        at = _skip(text, end)
        if text[at] == closing:
            return
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match
    return match.end()


def caption_in(values: object) -> str | None:
    """The caption in an image's object, text or list; None if there is none.

    kohya trains on both caption and tags: the tags are appended to each line of the caption.
    """
    if not isinstance(values, Mapping):
        return _text_of(values)
    folded = {str(key).casefold(): value for key, value in values.items()}
    caption = next(
        (
            text
            for name in CAPTION_COLUMNS
            if name in folded and (text := _text_of(folded[name])) is not None
        ),
        None,
    )
    tags = _text_of(folded.get(_TAGS))
    if caption and tags and caption != tags and "caption" in folded and "text" not in folded:
        return "\n".join(f"{line}, {tidy(tags)}" for line in caption.split("\n"))
    return caption


def _text_of(value: object) -> str | None:
    if isinstance(value, str):
        return caption_of(_sound(value))
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        lines = caption_of("\n".join(tidy(_sound(str(each))) for each in value))
        return ", ".join(parts(lines)) if is_list(lines) else lines
    return None


def _sound(text: str) -> str:
    """Lone surrogates, which JSON allows but files do not, replaced by U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def with_caption(text: str, caption: str) -> str:
    """The JSON of an image's caption with another one, changing only the caption's text. Raises
    NotJson.
    """
    values = parse(text)
    if not isinstance(values, Mapping):
        return _literal(_as_before(values, caption), text)
    at = _skip(text, 0)
    members = list(entries(text))
    folded = {str(entry.key).casefold(): entry for entry in members}
    entry = next(
        (
            folded[name]
            for name in CAPTION_COLUMNS
            if name in folded and _text_of(folded[name].value) is not None
        ),
        None,
    )
    if entry is None:
        new = f'"text": {_literal(caption, text)}'
        return text[: at + 1] + new + (", " if members else "") + text[_skip(text, at + 1) :]
    # where kohya's tags are appended to the caption, the edited caption includes them
    tags, hint = folded.get(_TAGS), folded.get("caption")
    both = tags is not None and entry is hint and bool(_text_of(tags.value))
    changed = (
        text[: entry.start] + _literal(_as_before(entry.value, caption), text) + text[entry.end :]
    )
    if both and caption_in(parse(changed)) != caption:
        assert tags is not None
        ending = ", " + tidy(_text_of(tags.value) or "")
        lines = caption.split("\n")
        if all(line.endswith(ending) for line in lines):
            shortened = "\n".join(line.removesuffix(ending) for line in lines)
            return text[: entry.start] + _literal(shortened, text) + text[entry.end :]
        edits = sorted(
            [(entry.start, entry.end, _literal(caption, text)), (tags.start, tags.end, '""')],
            reverse=True,
        )
        for start, end, new in edits:
            text = text[:start] + new + text[end:]
        return text
    return changed


def _as_before(before: object, caption: str) -> object:
    """A list stays a list, of captions or of tags."""
    if not isinstance(before, list):
        return caption
    if is_list("\n".join(map(str, before))) and "\n" not in caption:
        return parts(caption)
    return caption.split("\n")


def _literal(value: object, like: str) -> str:
    """As JSON, escaped if the surrounding text is ASCII with escapes."""
    return json.dumps(value, ensure_ascii=like.isascii() and "\\u" in like)
