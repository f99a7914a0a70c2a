"""Captions in JSON: what lies in a .json or .jsonl, with the places in the text where each thing
stands, so that one can be changed alone.

    entries(text)          -> the members of the outermost list or object, one by one: kohya's
                           {path: {caption, tags}}, a list of objects
    caption_in(values)     -> the caption that an object holds, as a text, or None
    with_caption(text, caption) -> the text of one object with another caption, and nothing else
    changed

Called by dataset.metadata, dataset.sources and dataset.edits.
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

CAPTION_COLUMNS = (
    "text",
    "caption",
    "captions",
    "prompt",
    "description",
    "additional_feature",
    "tags",
    "label",
    "描述",
    "提示词",
    "标注",
    "标签",
)
"""The columns' names, the surest first: a file with both `text` and `label` means `text`."""

_TAGS = "tags"
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class JsonEntry:
    """A member of the outermost list or object: its key in an object, its value, and where the
    value stands in the text.
    """

    key: str | None
    value: Any
    start: int
    end: int
    member_start: int
    """Where its key begins; in a list, its value."""


def parse(text: str) -> Any:
    """JSON -> values. Raises NotJson for anything else."""
    # half a pair of surrogates is no reason to refuse the rest: see `_sound`
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
    """The caption in an object (or the text, or the list) that belongs to one picture; None where
    there is none.

    kohya writes a caption and tags, and trains on both: the tags behind each line of the caption.
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
    """Half a pair of surrogates, which JSON can name and no file can hold, as the sign for a letter
    that is lost.
    """
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def with_caption(text: str, caption: str) -> str:
    """The JSON of one picture's caption, with another one: only the caption's own text changes.
    Raises NotJson.
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
    # where kohya's tags are trained behind the caption, the caption that was edited holds them
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
    """A list stays a list: of captions, or of tags."""
    if not isinstance(before, list):
        return caption
    return (
        parts(caption)
        if is_list("\n".join(map(str, before))) and "\n" not in caption
        else caption.split("\n")
    )


def _literal(value: object, like: str) -> str:
    """As JSON; escaped, where the text around it is plain ASCII with escapes."""
    return json.dumps(value, ensure_ascii=like.isascii() and "\\u" in like)
