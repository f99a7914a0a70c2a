"""Structured captions: fields of a caption, and a dataset's vocabulary.

    compose(fields)            {"subject": "a red fox", "light": "soft light"} -> "a red fox, soft
                               light"
    split(caption)             the inverse, heuristically
    read_vocabulary(folder)    vocabulary.yaml beside the images -> Vocabulary; write_vocabulary
    departures(captions, vocabulary)   captions that deviate, each with the corrected one

A vocabulary is an opening phrase for every caption, and preferred words, so that captions use the
same words for the same things. Used by the command line and the tab.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lora_trainer import files
from lora_trainer.dataset.captions import edited, parts, tidy, variants, with_trigger_word
from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.dataset.text import read_text
from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.settings.schema import parse_yaml

Field = Literal["subject", "action", "features", "scene", "style", "light", "colour"]
"""The parts of a caption in their usual order. features: clothing, hair, material and other
properties of the subject.
"""
FIELDS: tuple[Field, ...] = get_args(Field)

VOCABULARY_FILE = "vocabulary.yaml"
ALIKE = 0.84
"""difflib ratio above which two wordings count as one; words of five letters that differ in one
have 0.8.
"""

_CUES: dict[Field, str] = {
    "style": (
        r"style|painting|photo(graph)?|illustration|render(ing)?|water"
        r" ?colou?r|oil|anime|manga|sketch|drawing|print|pixel art|cartoon|realistic"
        r"|line ?art|concept art|ink wash|digital"
        r" art|artwork|cinematic|bokeh|film|close-?up|portrait"
    ),
    "light": (
        r"light(s|ing|ed)?|lit|backlit|glow(s|ing)?|shadows?|sunlight|sunset|sunrise|neon|dusk|dawn|moonlight|candlelight|shining|golden"
        r" hour"
    ),
    "colour": (
        r"colou?rs?|palette|tones?|monochrome|colou?rful|pastel|sepia|black and"
        r" white|greyscale|grayscale|hues?"
    ),
    "features": (
        r"wearing|dress(ed)?|shirt|jacket|coat|hats?|hair|eyes|armou?r|uniform|gloves|boots|glasses|scarf|skirt|with"
        r"|holding|made of|fur|horns"
    ),
    "scene": (
        r"background|in (a|an|the)|on (a|an|the)|at"
        r" (a|an|the)|under|forest|street|city|room|indoors|outdoors|lab(oratory)?|beach|mountains?"
        r"|sky|field|garden|kitchen|desert|castle|river|sea|snow"
    ),
    "action": r"\w{2,}ing",
}
"""Words by which parts are recognized, in order of precedence."""
_CUE_PATTERNS = {name: re.compile(rf"\b({cue})\b", re.IGNORECASE) for name, cue in _CUES.items()}
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def compose(fields: Mapping[Field, str], order: Sequence[Field] = FIELDS) -> str:
    """The non-empty fields in the given order, joined with commas. Raises DatasetError for an
    unknown field.
    """
    for name in fields:
        if name not in FIELDS:
            raise DatasetError(
                "a caption has no field {name}",
                hint="Use: {known}.",
                name=name,
                known=", ".join(FIELDS),
            )
    return ", ".join(part for name in order for part in parts(tidy(fields.get(name, ""))))


def split(caption: str, vocabulary: Vocabulary | None = None) -> dict[Field, str]:
    """A caption's comma-separated parts by field: by the vocabulary first, then by typical words.

    Unknown parts are the subject if first, otherwise features. {} for an empty caption.
    """
    found: dict[Field, list[str]] = {}
    for index, part in enumerate(parts(caption)):
        name = (
            _field_of(part, vocabulary) if index or _is_preferred(part, vocabulary) else "subject"
        )
        found.setdefault(name, []).append(part)
    return {name: ", ".join(found[name]) for name in FIELDS if name in found}


def _field_of(part: str, vocabulary: Vocabulary | None) -> Field:
    if vocabulary is not None:
        for name, words in vocabulary.fields.items():
            if any(_contains(part, word) for word in words):
                return name
    if re.match(r"\w+ing\b", part, re.IGNORECASE) and not _CUE_PATTERNS["light"].match(part):
        return "features" if part.casefold().startswith(("wearing", "holding")) else "action"
    return next(
        (name for name, pattern in _CUE_PATTERNS.items() if pattern.search(part)), "features"
    )


def _is_preferred(part: str, vocabulary: Vocabulary | None) -> bool:
    """Whether the vocabulary has the caption's first part in a field other than the subject."""
    return vocabulary is not None and any(
        _contains(part, word) for words in vocabulary.fields.values() for word in words
    )


def _contains(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


# --- the vocabulary -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The preferred words of a dataset."""

    opening: str = ""
    """The phrase that every caption starts with, after the trigger word, or ""."""
    fields: Mapping[Field, tuple[str, ...]] = field(default_factory=dict)
    """Preferred words and phrases by field."""

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for words in self.fields.values() for word in words)


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A caption that deviates from the vocabulary."""

    name: str
    """The image's name."""
    caption: str
    lacks_opening: bool
    variants: tuple[tuple[str, str], ...]
    """(as written, as preferred)."""
    fixed: str


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """vocabulary.yaml in a dataset folder, or None. Raises DatasetError if invalid."""
    path = folder / VOCABULARY_FILE
    if not path.exists():
        return None
    try:
        values = parse_yaml(read_text(path).content, path)
    except ConfigError as error:
        hint = "Fix it, or remove it and set the vocabulary again."
        raise DatasetError(
            "{path} is not valid YAML: {reason}", hint=hint, path=path, reason=error
        ) from error
    return vocabulary_from(values if values is not None else {}, path)


def vocabulary_from(values: object, path: Path) -> Vocabulary:
    """The content of YAML or JSON as a Vocabulary. `path` is for the message of DatasetError."""
    hint = "It needs `opening: a phrase`, and under `fields:` lists of words for {known}."
    known = ", ".join(FIELDS)
    if not isinstance(values, Mapping) or not set(values) <= {"opening", "fields"}:
        raise DatasetError("{path} is not a vocabulary", hint=hint, path=path, known=known)
    opening, fields = values.get("opening") or "", values.get("fields") or {}
    if not isinstance(opening, str) or not isinstance(fields, Mapping):
        raise DatasetError("{path} is not a vocabulary", hint=hint, path=path, known=known)
    for name, words in fields.items():
        if name not in FIELDS:
            raise DatasetError(
                "{path}: there is no field {name}",
                hint="Use: {known}.",
                path=path,
                name=name,
                known=known,
            )
        if (
            not isinstance(words, Sequence)
            or isinstance(words, str)
            or not all(isinstance(word, str) for word in words)
        ):
            raise DatasetError(
                "{path}: {name} is not a list of words",
                hint=hint,
                path=path,
                name=name,
                known=known,
            )
    kept = {
        name: tuple(tidy(word) for word in fields[name] if tidy(word))
        for name in FIELDS
        if fields.get(name)
    }
    return Vocabulary(opening=tidy(opening), fields=kept)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> Path:
    """Write vocabulary.yaml atomically. Returns its path. Raises OSError."""
    values = {
        "opening": vocabulary.opening,
        "fields": {name: list(words) for name, words in vocabulary.fields.items()},
    }
    path = folder / VOCABULARY_FILE
    files.write_text(path, yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
    return path


# --- comparing captions ---------------------------------------------------------------------------


def departures(
    captions: Mapping[str, str], vocabulary: Vocabulary, trigger_word: str = ""
) -> list[Departure]:
    """{image name: caption} -> those that lack the opening phrase, or have another wording of a
    preferred word. Empty captions are ignored.
    """
    found = (
        _departure(name, caption, vocabulary, trigger_word.strip())
        for name, caption in captions.items()
        if caption.strip()
    )
    return [departure for departure in found if departure is not None]


def vocabulary_findings(
    captions: Mapping[Path, tuple[str, str]], vocabulary: Vocabulary, trigger_word: str = ""
) -> list[Finding]:
    """{image: (name, caption)} -> a warning per departure, with the fix {"do": "set_caption",
    "caption": ...}.
    """
    findings = []
    for path, (name, caption) in captions.items():
        for departure in departures({name: caption}, vocabulary, trigger_word):
            hint = (
                "If all captions begin with the same phrase, that phrase learns what the "
                "images share."
            )
            template = '{name}: the caption does not begin with "{opening}"'
            values: dict[str, Any] = {"name": name, "opening": vocabulary.opening}
            if departure.variants:
                hint = (
                    "Use one word for one thing: the model learns each wording as something "
                    "different."
                )
                written, preferred = departure.variants[0]
                template = '{name}: the caption says "{written}"; the vocabulary has "{preferred}"'
                values = {"name": name, "written": written, "preferred": preferred}
            fix = {"do": "set_caption", "caption": departure.fixed}
            found = warning("vocabulary", template, hint=hint, path=path, fix=fix, **values)
            findings.append(found)
    return findings


def _departure(
    name: str, caption: str, vocabulary: Vocabulary, trigger_word: str
) -> Departure | None:
    """The departures of all lines of a caption, combined."""
    found = {
        line: _line_departure(name, line, vocabulary, trigger_word) for line in variants(caption)
    }
    departed = [departure for departure in found.values() if departure]
    if not departed:
        return None
    fixed = edited(
        caption, lambda line: departure.fixed if (departure := found.get(line)) else line
    )
    return Departure(
        name=name,
        caption=caption,
        lacks_opening=any(one.lacks_opening for one in departed),
        variants=tuple(variant for one in departed for variant in one.variants),
        fixed=fixed,
    )


def _line_departure(
    name: str, caption: str, vocabulary: Vocabulary, trigger_word: str
) -> Departure | None:
    fixed, found_text = tidy(caption), []
    for word in dict.fromkeys(
        (*([vocabulary.opening] if vocabulary.opening else []), *vocabulary.words)
    ):
        # from the end, so that earlier positions stay valid
        for start, end in reversed(list(_variants(fixed, word, vocabulary))):
            found_text.append((fixed[start:end], word))
            fixed = fixed[:start] + word + fixed[end:]
    lacks_opening = bool(vocabulary.opening) and not _begins(
        fixed, vocabulary.opening, trigger_word
    )
    if lacks_opening:
        fixed = _opened(fixed, vocabulary.opening, trigger_word)
    if not lacks_opening and not found_text:
        return None
    return Departure(
        name=name,
        caption=caption,
        lacks_opening=lacks_opening,
        variants=tuple(found_text),
        fixed=fixed,
    )


def _without_trigger(caption: str, trigger_word: str) -> str:
    """The caption without the trigger word at its start."""
    if trigger_word and re.match(rf"{re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption[len(trigger_word) :].lstrip(" ,，")
    return caption


def _begins(caption: str, opening: str, trigger_word: str) -> bool:
    return (
        re.match(
            rf"{re.escape(opening)}(?!\w)", _without_trigger(caption, trigger_word), re.IGNORECASE
        )
        is not None
    )


def _opened(caption: str, opening: str, trigger_word: str) -> str:
    rest = _without_trigger(caption, trigger_word)
    # move it to the front if it is elsewhere in the caption
    others = [part for part in parts(rest) if part.casefold() != opening.casefold()]
    opened = ", ".join([opening, *others])
    return with_trigger_word(opened, trigger_word) if rest != caption else opened


def _variants(text: str, preferred: str, vocabulary: Vocabulary) -> Iterator[tuple[int, int]]:
    """(start, end) of other spellings, numbers or hyphenations of a preferred phrase, without
    overlaps.
    """
    words = list(_WORD.finditer(text))
    count = len(_WORD.findall(preferred))
    others = {word.casefold() for word in (*vocabulary.words, vocabulary.opening)} - {
        preferred.casefold()
    }
    settled = bytearray(len(text))
    for begin, end in (
        match.span() for word in (*others, preferred) if word for match in _occurrences(text, word)
    ):
        settled[begin:end] = b"\1" * (end - begin)
    free_from = 0
    # "sci-fi" is one word and "sci fi" two
    for start in range(len(words)):
        for length in (count, count + 1, count - 1):
            if length < 1 or start + length > len(words) or words[start].start() < free_from:
                continue
            first, last = words[start].start(), words[start + length - 1].end()
            found_text = text[first:last]
            if any(settled[first:last]) or re.search("[,，]", found_text):
                continue
            if _is_variant(found_text, preferred):
                yield first, last
                free_from = last
                break


def _occurrences(text: str, word: str) -> Iterable[re.Match[str]]:
    return re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)


def _is_variant(found_text: str, preferred: str) -> bool:
    one, other = found_text.casefold(), preferred.casefold()
    letters = _WORD.search(other)
    # spellings have the same first letter; tested first, because this runs for every word
    return (
        letters is not None and one[0] == letters.group()[0] and _is_spelled_otherwise(one, other)
    )


@lru_cache(maxsize=100_000)
def _is_spelled_otherwise(one: str, other: str) -> bool:
    if one == other:
        return False
    if _key(one) == _key(other):
        return True
    # a typo; short words are too often other words
    return (
        len(other) >= 6
        and one[0] == other[0]
        and abs(len(one) - len(other)) <= 2
        and difflib.SequenceMatcher(None, one, other).ratio() >= ALIKE
    )


_SPELLINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"colour", "color"),
    (r"grey", "gray"),
    (r"armour", "armor"),
    (r"centre\b", "center"),
    (r"jewellery", "jewelry"),
    (r"is(e|ed|ing)\b", r"iz\1"),
    (r"lab\b", "laboratory"),
    (r"ies\b", "y"),
    (r"(ss|x|ch|sh)es\b", r"\1"),
    (r"([^s])s\b", r"\1"),
)
"""Normalizes British and American spelling, and plurals."""


@lru_cache(maxsize=50_000)
def _key(text: str) -> str:
    for pattern, replacement in _SPELLINGS:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"[\W_]+", "", text)
