"""Translations: one table per language, `translations/CODE.json`, keyed by the English text.

Python's messages are templates (errors.Message) and are translated here before their values are
inserted; the browser gets the same table. English needs none. Another language is one more file.

The tables are not in `localizations/`: the hosts merge that folder of every extension into their
own interface by exact match, so that "Seed" or "Settings" would override the user's language pack.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from lora_trainer import files
from lora_trainer.errors import ConfigError, LoraTrainerError, Message

FOLDER = Path(__file__).resolve().parent / "translations"
ENGLISH = "en"
NAMES = {"en": "English", "zh_CN": "简体中文"}
"""Native name of each language; the code is used for others."""

log = logging.getLogger("lora_trainer.webui")


@cache
def languages() -> tuple[str, ...]:
    """The codes of all languages, English first."""
    return (ENGLISH, *sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def table(language: str) -> Mapping[str, str]:
    """English text -> translation. Empty for English and unknown languages."""
    if language not in languages() or language == ENGLISH:
        return {}
    try:
        return dict(files.load_json(FOLDER / f"{language}.json"))
    except files.UNREADABLE:
        log.exception("the table of %s cannot be read", language)
        return {}


def choose(*preferences: str) -> str:
    """The first available language among the requested ones: a code, the name of a host's
    localization ("zh-Hans (All)"), or an Accept-Language header.
    """
    for preference in preferences:
        for part in preference.split(","):
            language = _match(part.split(";")[0].strip())
            if language:
                return language
    return ENGLISH


def _match(preference: str) -> str:
    """zh-Hans, zh_CN, zh-TW -> zh_CN: an exact match, else a table of the same language."""
    plain = re.sub(r"[^a-z]+", "_", preference.lower()).strip("_")
    if not plain:
        return ""
    exact = [code for code in languages() if plain == code.lower()]
    same = [code for code in languages() if plain.split("_")[0] == code.lower().split("_")[0]]
    return next(iter(exact + same), "")


def translate(text: str, language: str) -> str:
    """The translation of a template, or the template itself."""
    return table(language).get(text, text)


def render(message: Message, language: str) -> str:
    """A message in a language, with its values; values that are messages are translated too.

    The first letter is capitalized if the template starts with a word: errors start in lower case
    because they may follow a file name.
    """
    text = _filled(message, language)
    begins_with_a_word = re.match(r"[a-z]+(?![\w.])", message.template)
    return (
        text[0].upper() + text[1:]
        if begins_with_a_word and text.startswith(begins_with_a_word[0])
        else text
    )


def _filled(message: Message, language: str) -> str:
    values = {key: _rendered(value, language) for key, value in message.values.items()}
    for template in (translate(message.template, language), message.template):
        try:
            return template.format(**values) if values else template
        except (KeyError, IndexError, ValueError):
            # a run's folder may contain messages of another version
            log.warning("%r does not fit its values", template)
    return message.template


def render_beside(message: Message, name: str, language: str) -> str:
    """A message shown beside the thing of this name: without the name if it starts with it."""
    template = translate(message.template, language)
    begin = re.match(r"\{(name|path)\}[:\s\uff1a]*", template)
    if not begin or str(message.values.get(begin[1])) != name:
        return render(message, language)
    # the remainder has no translation of its own
    text = _filled(Message(template[begin.end() :], message.values), language)
    return text[:1].upper() + text[1:]


def render_all(messages: Iterable[Message], language: str) -> str:
    """Messages joined; without spaces in Chinese and Japanese."""
    return ("" if language.startswith(("zh", "ja")) else " ").join(
        render(message, language) for message in messages
    )


class Sentence(TypedDict):
    """An error or notice, and what to do."""

    message: str
    hint: str


def render_error(error: LoraTrainerError, language: str) -> Sentence:
    """An error's message and hint."""
    return {
        "message": render(_message_of(error, language), language),
        "hint": render(error.hint, language),
    }


def render_in_one_line(error: LoraTrainerError, language: str) -> str:
    """An error's message, with its hint in parentheses."""
    sentence = render_error(error, language)
    return (
        f"{sentence['message']} ({sentence['hint']})" if sentence["hint"] else sentence["message"]
    )


def _message_of(error: LoraTrainerError, language: str) -> Message:
    """The message of an error; of a list of invalid settings, each is translated."""
    if not (
        isinstance(error, ConfigError)
        and len(error.problems) > 1
        and "lines" in error.message.values
    ):
        return error.message
    stop = "\u3002" if language.startswith(("zh", "ja")) else ". "
    lines = "\n".join(
        "- " + stop.join(filter(None, (sentence["message"], sentence["hint"])))
        for sentence in (render_error(problem, language) for problem in error.problems)
    )
    return Message(error.message.template, {**error.message.values, "lines": lines})


def _rendered(value: Any, language: str) -> Any:
    if isinstance(value, Message):
        return _filled(value, language)
    return (
        _filled(_message_of(value, language), language)
        if isinstance(value, LoraTrainerError)
        else value
    )
