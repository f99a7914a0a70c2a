"""Bulk edits: a requested action -> a function from caption to caption. Pure, except that regular
expressions run in a separate process.

    edit = action({"do": "add", "text": "ink wash", "at": "end"}, captions)     raises DatasetError
    edit(caption) -> caption

Captions of tags ("1girl, red hair") and of sentences are treated alike: a tag is a comma-separated
part. Called by workbench.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_trainer import environment, files
from lora_trainer.dataset import template
from lora_trainer.dataset.captions import (
    MAX_CAPTION_LENGTH,
    caption_of,
    edited,
    part_spans,
    parts,
    tidy,
    variants,
    with_trigger_word,
)
from lora_trainer.dataset.template import FIELDS, Field, Vocabulary
from lora_trainer.errors import DatasetError, LoraTrainerError, Message
from lora_trainer.webui.common.form import Texts

REGEX_SECONDS = 4.0
"""Timeout for all captions together. Ordinary patterns need milliseconds; catastrophic backtracking
may never end.
"""
_LONGEST_TEXT = 5000
_COMMAS, _ENDS = (",", "，"), (".", ";", "!", "?", "。", "；")

# -I and -c: no site packages, so it starts in about 20 ms. Prints the matches with their
# replacements; stops if a text grows beyond the total size of all captions
_REPLACE_APART = """
import json, re, sys
asked = json.loads(sys.stdin.buffer.read())
pattern = re.compile(asked["find"], asked["flags"])
found = []
for caption in asked["captions"]:
    changes, length = [], len(caption)
    for match in pattern.finditer(caption):
        changes.append([match.start(), match.end(), match.expand(asked["replace"])])
        length += len(changes[-1][2])
        if length > asked["limit"]:
            changes = None
            break
    found.append(changes)
print(json.dumps(found))
"""

Edit = Callable[[str], str]


def action(
    values: Mapping[str, Any],
    captions: Sequence[str],
    vocabulary: Vocabulary | None = None,
    order: Sequence[Field] = FIELDS,
) -> Edit:
    """A request -> a function from caption to caption, to be applied to `captions`. Raises
    DatasetError.

    vocabulary, order: the dataset's vocabulary and order of template fields.
    """
    make = _ACTIONS.get(_text(values, "do"))
    if make is None:
        raise DatasetError("{do} is not a bulk edit", hint="Reload the page.", do=values.get("do"))
    # several captions of one image are edited separately
    lines = [line for caption in captions for line in variants(caption)]
    edit = make(_Arguments(values, lines, vocabulary, order))
    return edit if make in _OF_ALL_LINES else lambda caption: edited(caption, edit)


class _Arguments:
    """The arguments of an action."""

    def __init__(
        self,
        values: Mapping[str, Any],
        captions: Sequence[str],
        vocabulary: Vocabulary | None = None,
        order: Sequence[Field] = FIELDS,
    ) -> None:
        self.order = order
        self.values = values
        self.captions = captions
        self.vocabulary = vocabulary

    def text(self, key: str) -> str:
        return _text(self.values, key)

    def flag(self, key: str) -> bool:
        return self.values.get(key) is True

    def number(self, key: str) -> int:
        value = self.values.get(key, 0)
        return max(0, value) if isinstance(value, int) else 0

    def tags(self) -> list[str]:
        found = self.values.get("tags")
        if (
            not isinstance(found, list)
            or not all(isinstance(tag, str) for tag in found)
            or not any(tag.strip() for tag in found)
        ):
            raise DatasetError(
                "no tag was chosen", hint="Choose the tags in the table, or type them."
            )
        return [part for tag in found for part in parts(tag)]


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise LoraTrainerError(
            "{key} in the request has the wrong type",
            hint="Reload the page: it may be older than the extension.",
            key=key,
        )
    if len(value) > _LONGEST_TEXT:
        raise DatasetError(
            "the text is longer than {limit} characters",
            hint="A caption needs a few dozen words.",
            limit=_LONGEST_TEXT,
        )
    return value


# --- tags -----------------------------------------------------------------------------------------


def _add(arguments: _Arguments) -> Edit:
    new, at = parts(tidy(arguments.text("text"))), arguments.values.get("at", "end")
    if not new:
        raise DatasetError("there is nothing to add", hint="Type the words that are to be added.")

    def edit(caption: str) -> str:
        present = {part.casefold() for part in parts(caption)}
        adding = [tag for tag in new if tag.casefold() not in present]
        if not adding:
            return caption
        if at == "after-first" and part_spans(caption):
            _, end = part_spans(caption)[0]
            return _replaced(caption, [Change(end, end, "".join(f", {tag}" for tag in adding))])
        # existing parts keep their punctuation
        whole = ", ".join(adding)
        if not caption:
            return whole
        return f"{whole}, {caption}" if at == "front" else f"{caption.rstrip(' ,，')}, {whole}"

    return edit


def _remove(arguments: _Arguments) -> Edit:
    unwanted = {tag.casefold() for tag in arguments.tags()}

    def edit(caption: str) -> str:
        return _replaced(
            caption,
            [
                Change(start, end, "")
                for start, end in part_spans(caption)
                if caption[start:end].casefold() in unwanted
            ],
        )

    return edit


def _replace_tag(arguments: _Arguments) -> Edit:
    old, new = arguments.text("tag").strip().casefold(), ", ".join(parts(arguments.text("replace")))
    if not old:
        raise DatasetError("no tag was chosen", hint="Choose the tags in the table, or type them.")

    def edit(caption: str) -> str:
        changes = [
            Change(start, end, new)
            for start, end in part_spans(caption)
            if caption[start:end].casefold() == old
        ]
        return _without_repeats(_replaced(caption, changes)) if changes else caption

    return edit


def _sort(arguments: _Arguments) -> Edit:
    first = arguments.number("keep_first")
    how_often = Counter(
        part.casefold() for caption in arguments.captions for part in parts(caption)
    )

    def order(part: str) -> tuple[int, str]:
        return (
            -how_often[part.casefold()] if arguments.values.get("by") == "frequency" else 0
        ), part.casefold()

    def edit(caption: str) -> str:
        found = parts(caption)
        return ", ".join([*found[:first], *sorted(found[first:], key=order)])

    return edit


def _dedupe(arguments: _Arguments) -> Edit:
    return _without_repeats


def _without_repeats(caption: str) -> str:
    seen: set[str] = set()
    changes = []
    for start, end in part_spans(caption):
        part = caption[start:end].casefold()
        # the first of equal tags stays at its position
        if part in seen:
            changes.append(Change(start, end, ""))
        seen.add(part)
    return _replaced(caption, changes)


def _tidy(arguments: _Arguments) -> Edit:
    """Normalize spaces, empty parts and full-width commas; text inside sentences is unchanged."""
    return lambda caption: ", ".join(parts(tidy(caption)))


# --- text -----------------------------------------------------------------------------------------


def _set(arguments: _Arguments) -> Edit:
    caption = caption_of(arguments.text("caption"))
    return lambda _: caption


def _clear(arguments: _Arguments) -> Edit:
    return lambda _: ""


def _remove_text(arguments: _Arguments) -> Edit:
    return _replacing(
        _Arguments(
            {**arguments.values, "find": arguments.text("text"), "replace": "", "regex": False},
            arguments.captions,
        )
    )


def _replace(arguments: _Arguments) -> Edit:
    return _replacing(arguments)


def _replacing(arguments: _Arguments) -> Edit:
    find, replacement = arguments.text("find"), arguments.text("replace")
    if not find:
        raise DatasetError(
            "there is nothing to search for", hint="Type the words that are to be replaced."
        )
    flags = 0 if arguments.flag("case") else re.IGNORECASE
    if arguments.flag("regex"):
        table = dict(
            zip(
                arguments.captions,
                _found_apart(find, replacement, flags, list(arguments.captions)),
                strict=True,
            )
        )
        return lambda caption: _replaced(caption, table[caption])
    escaped = re.escape(find)
    pattern = re.compile(rf"(?<!\w){escaped}(?!\w)" if arguments.flag("whole") else escaped, flags)
    return lambda caption: _replaced(
        caption, [Change(*match.span(), replacement) for match in pattern.finditer(caption)]
    )


class Change(NamedTuple):
    """A span of a caption, and its replacement."""

    start: int
    end: int
    text: str


def _replaced(caption: str, changes: Sequence[Change]) -> str:
    """A caption with these changes applied, from left to right. The comma and space beside removed
    text are removed too.

    Raises DatasetError if the result is too long.
    """
    length = len(caption) + sum(
        len(change.text) - (change.end - change.start) for change in changes
    )
    if length > MAX_CAPTION_LENGTH:
        hint = "Use a shorter replacement, or a more specific search."
        raise DatasetError(
            "a caption would have {count} characters, more than {limit}",
            hint=hint,
            count=length,
            limit=MAX_CAPTION_LENGTH,
        )
    pieces: list[str] = []
    at, took_out = 0, False
    for change in changes:
        piece = caption[at : change.start]
        pieces.append(_joined(pieces, piece) if took_out else piece)
        pieces.append(change.text)
        at, took_out = change.end, not change.text.strip() and change.end > change.start
    pieces.append(_joined(pieces, caption[at:]) if took_out else caption[at:])
    return "".join(pieces)


def _joined(before: list[str], behind: str) -> str:
    """The text after a removal, joined to the text `before` it, whose end may be modified in
    place.
    """
    front = _front(before)
    ends_part = not front.strip() or front.rstrip()[-1] in _COMMAS
    if ends_part and behind.lstrip()[:1] in (*_COMMAS, ""):
        # of two commas one is removed
        behind = behind.lstrip()[1:].lstrip() if behind.strip() else ""
        if not behind:
            _cut(before, " ,，")
        return behind
    if behind.lstrip()[:1] in (*_ENDS, *_COMMAS):
        _cut(before, " ,，" if ends_part else " ")
        return behind.lstrip() if front.strip() else behind.lstrip(" ,，.;")
    if not behind.strip():
        _cut(before, " ")
        return ""
    return behind.lstrip() if not front.strip() or front[-1].isspace() else behind


def _front(before: list[str]) -> str:
    """The end of the preceding text, back to the last letter."""
    seen = ""
    for piece in reversed(before):
        seen = piece + seen
        if seen.strip():
            break
    return seen


def _cut(before: list[str], signs: str) -> None:
    while before:
        before[-1] = before[-1].rstrip(signs)
        if before[-1]:
            return
        before.pop()


def _found_apart(
    find: str, replacement: str, flags: int, captions: list[str]
) -> list[list[Change]]:
    """The matches of a regular expression in each caption, with replacements. Raises DatasetError.

    Runs in a separate process that can be killed: matching may take exponential time.
    """
    try:
        pattern = re.compile(find, flags)
    except (re.error, OverflowError, RecursionError) as error:
        where = getattr(error, "pos", None)
        hint = (
            "Put \\ before . ( ) [ ] * + ? to match them literally, or turn off regular"
            " expressions."
        )
        reason = getattr(error, "msg", None) or str(error)
        raise DatasetError(
            "the regular expression is invalid: {reason} (at character {place})",
            hint=hint,
            reason=reason,
            place=(where or 0) + 1,
        ) from error
    try:
        pattern.sub(replacement, "")
    except (re.error, IndexError) as error:
        hint = "\\1 is the match of the first group; write \\\\ for a backslash."
        raise DatasetError(
            "the replacement cannot be used: {reason}", hint=hint, reason=error
        ) from error
    asked = json.dumps(
        {
            "find": find,
            "replace": replacement,
            "flags": flags,
            "captions": captions,
            "limit": MAX_CAPTION_LENGTH,
        }
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _REPLACE_APART],
            input=asked.encode(),
            capture_output=True,
            timeout=REGEX_SECONDS,
            check=True,
            creationflags=environment.NO_WINDOW,
        )
        found = files.parse_json(done.stdout, names=True)
    except subprocess.TimeoutExpired as error:
        hint = "Nested repetitions such as (a+)+ can take forever. Simplify the pattern."
        raise DatasetError(
            "the regular expression took longer than {seconds} seconds",
            hint=hint,
            seconds=round(REGEX_SECONDS),
        ) from error
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise DatasetError(
            "the regular expression cannot be run: {reason}",
            hint="Replace plain text instead.",
            reason=error,
        ) from error
    if None in found:
        hint = "Use a shorter replacement, or a more specific search."
        raise DatasetError(
            "a caption would have more than {limit} characters", hint=hint, limit=MAX_CAPTION_LENGTH
        )
    return [[Change(*change) for change in changes] for changes in found]


# --- trigger word, template and vocabulary --------------------------------------------------------


def _trigger(arguments: _Arguments) -> Edit:
    word, older = arguments.text("word").strip(), arguments.text("instead_of").strip()
    if not word:
        raise DatasetError("there is no trigger word", hint="Type one, such as sks_style.")
    if "," in word or "，" in word:
        raise DatasetError(
            "the trigger word {word} contains a comma",
            hint="Choose one word, such as sks_style.",
            word=word,
        )

    def edit(caption: str) -> str:
        if older and older.casefold() != word.casefold():
            found = re.finditer(rf"(?<!\w){re.escape(older)}(?!\w)", caption, re.IGNORECASE)
            caption = _replaced(caption, [Change(*match.span(), "") for match in found])
        return with_trigger_word(caption, word)

    return edit


def _compose(arguments: _Arguments) -> Edit:
    given = fields_of(arguments.values.get("fields"))
    if not any(given.values()):
        raise DatasetError("there is nothing to add", hint="Type the words that are to be added.")
    if not arguments.flag("keep"):
        whole = template.compose(given, arguments.order)
        return lambda _: whole
    named = {name: words for name, words in given.items() if words}
    return lambda caption: template.compose(
        {**template.split(caption, arguments.vocabulary), **named}, arguments.order
    )


def fields_of(values: object) -> dict[Field, str]:
    """The template's fields of a request. Raises LoraTrainerError."""
    if not isinstance(values, Mapping) or not all(
        isinstance(words, str) for words in values.values()
    ):
        raise LoraTrainerError(
            "{key} in the request has the wrong type",
            hint="Reload the page: it may be older than the extension.",
            key="fields",
        )
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        raise DatasetError(
            "a caption has no field {name}",
            hint="Use: {known}.",
            name=unknown[0],
            known=", ".join(FIELDS),
        )
    return {name: tidy(values[name]) for name in FIELDS if name in values}


def _vocabulary(arguments: _Arguments) -> Edit:
    vocabulary = arguments.vocabulary
    if vocabulary is None:
        raise DatasetError(
            "this dataset has no vocabulary yet",
            hint="Enter its opening phrase and its words first.",
        )
    word = arguments.text("trigger")

    def edit(caption: str) -> str:
        found = template.departures({"": caption}, vocabulary, word)
        return found[0].fixed if found else caption

    return edit


_ACTIONS: Mapping[str, Callable[[_Arguments], Edit]] = {
    "add": _add,
    "remove": _remove,
    "replace-tag": _replace_tag,
    "sort": _sort,
    "dedupe": _dedupe,
    "tidy": _tidy,
    "set": _set,
    "clear": _clear,
    "remove-text": _remove_text,
    "replace": _replace,
    "trigger": _trigger,
    "compose": _compose,
    "vocabulary": _vocabulary,
}


_OF_ALL_LINES = (_set, _clear)
"""Actions that replace all of an image's captions by one."""


def title(values: Mapping[str, Any]) -> Message:
    """The title of an action in the list of edits."""
    shown = {
        key: _shortened(str(values.get(key, "")))
        for key in ("text", "find", "replace", "tag", "word")
    }
    tags = values.get("tags")
    shown["tags"] = _shortened(", ".join(map(str, tags))) if isinstance(tags, list) else ""
    template = _TITLES.get(str(values.get("do")), "Captions changed")
    return Message(
        template, {key: value for key, value in shown.items() if "{" + key + "}" in template}
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


_TITLES: Texts = {
    "add": "Added: {text}",
    "remove": "Removed: {tags}",
    "replace-tag": "{tag} replaced by {replace}",
    "sort": "Tags sorted",
    "dedupe": "Repeated tags removed",
    "tidy": "Captions tidied",
    "set": "One caption for several images",
    "clear": "Captions cleared",
    "remove-text": "Removed: {text}",
    "replace": "{find} replaced by {replace}",
    "trigger": "Trigger word {word} set",
    "compose": "Captions composed",
    "vocabulary": "Vocabulary applied to captions",
}
