r"""Detects prompt syntax in captions and sample prompts, which the text encoder reads as words.

unescaped(caption)         "fox \(animal\)" -> "fox (animal)": the WebUI removes these
                           backslashes from prompts
foreign(text)              -> other syntax: emphasis, wildcards, placeholders, options of other
                           tools
caption_syntax(captions)   {image: (name, caption)} -> findings
prompt_syntax(prompts)     the same for sample prompts
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.errors import Message

_ESCAPED = re.compile(r"\\([()\[\]{}])")
_LONGEST_QUOTE = 40
_NOTHING: Mapping[str, str] = {}

_SORTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"(?<!\w)(?:Negative prompt:|Steps: \d+, (?:Sampler|CFG scale|Size|Seed|Model)\b)",
            re.IGNORECASE,
        ),
        "parameters",
    ),
    (re.compile(r"<(?:lora|lyco|hypernet|embedding):[^<>\n]{1,100}>", re.IGNORECASE), "lora"),
    (
        re.compile(
            r"\[(?:trigger|name|filewords|caption|subject|token|concept)\]|\{(?:trigger|name|filewords|caption|subject|token|concept|prompt)?\}"
            r"|%(?:trigger|name|caption|filewords)%",
            re.IGNORECASE,
        ),
        "placeholder",
    ),
    (re.compile(r"\{[^{}\n|]{0,100}\|[^{}\n]{0,200}\}|__[\w/ -]{1,60}__"), "wildcard"),
    (re.compile(r"\[[^\[\]\n:|]{0,100}(?:[:|][^\[\]\n:|]{0,100}){1,2}\]"), "editing"),
    (
        re.compile(
            r"(?<!\\)[(\[][^()\[\]\n]{1,100}:\s*\d*\.?\d+\s*[)\]]|:\s*\d*\.?\d+\)|\(\([^()\n]{1,100}\)\)|\{\{[^{}\n]{1,100}\}\}"
        ),
        "emphasis",
    ),
    (
        re.compile(
            r"(?<!\S)--(?:[a-z]{1,2}|ar|seed|steps|cfg|width|height|no|style|stylize|niji|version)(?=\s|$)(?:\s+[\d.:x]+)?"
        ),
        "option",
    ),
    (re.compile(r"(?<!\w)BREAK(?!\w)|(?<=\s)AND(?=\s)|\|\|\|"), "separator"),
)
"""(pattern, kind). Patterns have bounded length, so that matching takes linear time."""

_SIGN = re.compile(r"[<\[\](){}%|]|__|--|BREAK|\bAND\b|(?i:negative prompt:|steps: )")
"""Each pattern needs one of these, which few captions have."""

_CAPTIONS: dict[str, Message] = {
    "parameters": Message(
        "captions contain generation parameters of a WebUI ({count}, such as {example} in "
        "{name}): they are trained as plain text"
    ),
    "lora": Message(
        "captions contain a LoRA tag ({count}, such as {example} in {name}): it is trained as "
        "plain text"
    ),
    "placeholder": Message(
        "captions contain a placeholder ({count}, such as {example} in {name}): it is not "
        "replaced, but trained as plain text"
    ),
    "wildcard": Message(
        "captions contain a wildcard ({count}, such as {example} in {name}): it is not "
        "replaced, but trained as plain text"
    ),
    "editing": Message(
        "captions contain prompt editing ({count}, such as {example} in {name}): it is trained "
        "as plain text"
    ),
    "emphasis": Message(
        "captions contain emphasis ({count}, such as {example} in {name}): it is trained as "
        "plain text, brackets and number included"
    ),
    "option": Message(
        "captions contain an option of another program ({count}, such as {example} in {name}): "
        "it is trained as plain text"
    ),
    "separator": Message(
        "captions contain a separator of another program ({count}, such as {example} in "
        "{name}): it is trained as plain text"
    ),
}
_PROMPTS: dict[str, Message] = {
    "parameters": Message(
        "a sample prompt contains generation parameters, {example}: previews read them as plain"
        " text"
    ),
    "lora": Message(
        "a sample prompt contains a LoRA tag, {example}: previews read it as plain text, and "
        "show the LoRA in training anyway"
    ),
    "placeholder": Message("a sample prompt contains a placeholder, {example}: it is not replaced"),
    "wildcard": Message("a sample prompt contains a wildcard, {example}: it is not replaced"),
    "editing": Message(
        "a sample prompt contains prompt editing, {example}: previews read it as plain text"
    ),
    "emphasis": Message(
        "a sample prompt contains emphasis, {example}: previews read it as plain text"
    ),
    "option": Message(
        "a sample prompt contains an option, {example}: previews read it as plain text"
    ),
    "separator": Message(
        "a sample prompt contains a separator, {example}: previews read it as plain text"
    ),
    "escaped": Message(
        "a sample prompt contains an escaped bracket, {example}: previews read the backslash as"
        " well"
    ),
}
_CAPTION_HINT = (
    "Remove it: no prompt sends it to the text encoder. In Captions, Change many finds and "
    "replaces it everywhere."
)
_PROMPT_HINT = (
    "Write sample prompts in plain words; size, steps and strength have their own settings."
)


def unescaped(caption: str) -> str:
    """A caption without backslashes before brackets."""
    return _ESCAPED.sub(r"\1", caption)


@lru_cache(maxsize=50_000)
def foreign(text: str) -> Mapping[str, str]:
    """{kind: first example} of prompt syntax in a text, except escaped brackets."""
    if not _SIGN.search(text):
        return _NOTHING
    found: dict[str, str] = {}
    taken: list[tuple[int, int]] = []
    plain = _ESCAPED.sub("  ", text)
    for pattern, sort in _SORTS:
        for match in pattern.finditer(plain):
            # each part of the text counts for one kind only
            if not any(start < match.end() and match.start() < end for start, end in taken):
                taken.append(match.span())
                found[sort] = _shortened(match[0])
                break
    return found


def caption_syntax(captions: Mapping[Path, tuple[str, str]]) -> list[Finding]:
    """One warning per kind of syntax, with the number of captions; one per caption with escaped
    brackets, which can be fixed.
    """
    rows = [(path, name, caption) for path, (name, caption) in captions.items()]
    escaped = [finding for each in rows for finding in escaped_brackets(*each)]
    return escaped + foreign_syntax(rows)


def foreign_syntax(captions: Iterable[tuple[Path, str, str]]) -> list[Finding]:
    """(image, its name, its caption) -> one warning for each sort of syntax, with how many captions
    hold it.
    """
    findings = []
    holders: dict[str, list[tuple[Path, str, str]]] = {}
    for path, name, caption in captions:
        for sort, example in foreign(caption).items():
            holders.setdefault(sort, []).append((path, name, example))
    for sort, held in holders.items():
        path, name, example = held[0]
        found = warning(
            "foreign-syntax",
            _CAPTIONS[sort].template,
            hint=_CAPTION_HINT,
            path=path,
            count=len(held),
            example=example,
            name=name,
        )
        findings.append(dataclasses.replace(found, related=tuple(path for path, _, _ in held)))
    return findings


def escaped_brackets(path: Path, name: str, caption: str) -> list[Finding]:
    """A warning where a caption has escaped brackets, which can be fixed."""
    if "\\" not in caption or unescaped(caption) == caption:
        return []
    template = "{name}: the caption has escaped brackets, and the backslash is trained as well"
    hint = (
        "The WebUI takes the backslash out of a prompt before the text encoder sees it: captions"
        " are better without."
    )
    found = warning("escaped-brackets", template, hint=hint, path=path, name=name)
    return [dataclasses.replace(found, fix={"do": "unescape"})]


def prompt_syntax(prompts: Sequence[str]) -> list[Finding]:
    """A warning per kind of syntax in sample prompts, with the first example."""
    examples: dict[str, str] = {}
    for prompt in prompts:
        escaped = _ESCAPED.search(prompt)
        examples = {**foreign(prompt), **({"escaped": escaped[0]} if escaped else {}), **examples}
    return [
        warning("prompt-syntax", _PROMPTS[sort].template, hint=_PROMPT_HINT, example=example)
        for sort, example in examples.items()
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"
