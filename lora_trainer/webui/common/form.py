"""The settings form as data, generated from the settings' fields (settings.schema.About).

    form(language)              every setting of a training shown in the tab, in groups
    shown(group, key, language) one setting of any group: label, help, type, choices, bounds
    current(values)             values by current keys

Paths and the LoRA's name are not fields: dataset, checkpoint and name are chosen elsewhere. Called
by the home route, preflight.py and caption_runs.py.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from lora_trainer.settings import captioning, schema, training
from lora_trainer.settings.schema import About, ProperName, Settings, about
from lora_trainer.webui import texts

Type = Literal[
    "text",
    "lines",
    "number",
    "integer",
    "auto_number",
    "auto_integer",
    "choice",
    "flag",
    "auto_flag",
    "list",
    "number_list",
    "paragraph",
]
"""`auto_...`: may be empty, for auto. `lines`: one item per line; `paragraph`: a multi-line text.
`list` and `number_list`: comma-separated.
"""

Texts = Mapping[str, str]
TITLE: Texts = {"plain": "Settings"}
AUTO: Texts = {"auto": "auto"}

_EVERY = [(group, item) for _, group in training.GROUPS for item in schema.fields_of(group)]
ONLY_FOR_TEXTS = frozenset(
    item.name
    for _, group in training.GROUPS
    if not group.for_images
    for item in schema.fields_of(group)
)
ONLY_FOR_IMAGES = frozenset(training.NOT_SHOWN_FOR_TEXTS)
LABELS: Mapping[str, str] = {
    item.name: about(item).label for _, item in _EVERY if about(item).audience != "elsewhere"
}
"""Key of a form field -> its English label."""
KEYS = frozenset(LABELS)
CHOSEN_ELSEWHERE: Mapping[str, str | None] = {
    item.name: about(item).place for _, item in _EVERY if about(item).audience == "elsewhere"
}
"""Keys that are not form fields -> the part of the tab that sets them."""
FOR_PRESETS = tuple(item.name for _, item in _EVERY if item.name in KEYS and about(item).in_presets)
"""Keys that user presets contain."""
PLACES: Mapping[str, str | None] = {**{key: key for key in LABELS}, **CHOSEN_ELSEWHERE}
"""Key -> where its problems are shown: a field's key, "dataset", "checkpoint", "init_lora", "name",
or None.
"""
PLAIN = tuple(
    item.name
    for _, item in sorted(_EVERY, key=lambda one: about(one[1]).order)
    if about(item).audience == "everyone"
)
"""Fields shown outside Advanced, in this order."""

# docstrings are read from the source files, which an update may change while the WebUI runs: read
# them at import
for _, _group in (*training.GROUPS, *captioning.option_groups()):
    schema.documentation_of(_group)

_GROUP_OF = {item.name: group for group, item in _EVERY}
_LABELS_IN_HELPS = {
    **LABELS,
    "init_lora": about(schema.field_named(training.LoraSettings, "init_lora")).label,
}
# keys without an underscore are ordinary words too
_KEYS_IN_A_SENTENCE = re.compile(
    r"(?<!\w)(?:{})(?!\w)".format("|".join(key for key in _LABELS_IN_HELPS if "_" in key))
)


class FormChoice(TypedDict):
    value: Any
    label: str


class SettingView(TypedDict):
    """One setting, for drawing. `optional`: may be empty, for auto."""

    key: str
    label: str
    help: str
    type: Type
    choices: list[FormChoice]
    minimum: float | None
    maximum: float | None
    above: float | None
    step: float | None
    default: Any
    optional: bool
    advanced: bool
    unit: str


class FormField(SettingView):
    """`terms`: search terms. `data`: the datasets it applies to; `text_label`, `text_help`: its
    label and help for datasets of texts.
    """

    terms: str
    data: Literal["images", "texts", "both"]
    text_label: str
    text_help: str


class FormGroup(TypedDict):
    id: str
    title: str
    advanced: bool
    fields: list[FormField]


class FormView(TypedDict):
    groups: list[FormGroup]


def form(language: str, cards: int = 2) -> FormView:
    """All groups: the basic fields first, then the advanced ones by their group of settings. cards:
    the number of this machine's graphics cards.
    """
    plain: FormGroup = {
        "id": "plain",
        "title": texts.translate(TITLE["plain"], language),
        "advanced": False,
        "fields": [_field(key, language) for key in PLAIN],
    }
    return {
        "groups": [
            plain,
            *(
                _advanced_group(identity, group, language, cards)
                for identity, group in training.GROUPS
            ),
        ]
    }


def is_for(key: str, cards: int) -> bool:
    """Whether a setting can be of use on a machine with that many graphics cards."""
    return cards > 1 or key != "devices"


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by current keys. Raises ConfigError if a setting is given under two names."""
    return schema.current_keys(training.GROUPS, values)


def _advanced_group(identity: str, group: type[Settings], language: str, cards: int) -> FormGroup:
    keys = [
        item.name
        for item in schema.fields_of(group)
        if item.name in KEYS and item.name not in PLAIN and is_for(item.name, cards)
    ]
    return {
        "id": identity,
        "title": texts.translate(schema.title_of(group), language),
        "advanced": True,
        "fields": [_field(key, language) for key in keys],
    }


def _field(key: str, language: str) -> FormField:
    group = _GROUP_OF[key]
    details = about(schema.field_named(group, key))
    words = [details.label, key, key.replace("_", " "), *details.other_names, details.terms]
    told = shown(group, key, language)
    return {
        **told,
        "terms": " ".join(dict.fromkeys([*words, details.text_label])),
        "data": data_of(key),
        "text_label": texts.translate(details.text_label, language) or told["label"],
        "text_help": _help(details.text_help, language) or told["help"],
    }


def data_of(key: str) -> Literal["images", "texts", "both"]:
    """The datasets that a setting applies to."""
    if key in ONLY_FOR_TEXTS:
        return "texts"
    return "images" if key in ONLY_FOR_IMAGES else "both"


def shown(group: type[Settings], key: str, language: str) -> SettingView:
    """One setting of a group, for drawing."""
    item = schema.field_named(group, key)
    details = about(item)
    kind, optional = schema.kind_of(group, item)
    return {
        "key": key,
        "label": texts.translate(details.label, language),
        "help": " ".join(
            [
                _help(schema.documentation_of(group)[key], language),
                *_helps_of_choices(details, language),
            ]
        ),
        "type": type_of(group, key),
        "choices": [
            {"value": choice, "label": _choice(str(choice), _labels(details), language)}
            for choice in _offered(group, item)
        ],
        "minimum": details.at_least,
        "maximum": details.at_most,
        "above": details.above,
        "step": details.step or (1 if kind is int else None),
        "default": list(item.default) if isinstance(item.default, tuple) else item.default,
        "optional": optional,
        "advanced": details.audience != "everyone",
        "unit": texts.translate(details.unit, language) if details.unit else "",
    }


def _offered(group: type[Settings], item: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The possible values; of those that cannot be enumerated, the ones that have titles."""
    return schema.choices_of(group, item) or tuple(about(item).choices)


def _labels(details: About) -> Mapping[str, str]:
    """Choice -> its label."""
    if details.among is None:
        return details.choices
    return {name: ProperName(choice.title) for name, choice in details.among().items()}


def _helps_of_choices(details: About, language: str) -> Iterator[str]:
    """Help texts of the choices."""
    for choice in (details.among() if details.among is not None else {}).values():
        if choice.sentence:
            yield f"{choice.title}: {texts.translate(choice.sentence, language)}"


def _help(sentence: str, language: str) -> str:
    """The help text, with keys of other settings replaced by their labels."""
    return _KEYS_IN_A_SENTENCE.sub(
        lambda found: f"\u201c{texts.translate(_LABELS_IN_HELPS[found.group()], language)}\u201d",
        texts.translate(sentence, language),
    )


def type_of(group: type[Settings], key: str) -> Type:
    """The input type of a setting."""
    item = schema.field_named(group, key)
    kind, optional = schema.kind_of(group, item)
    entry = about(item).entry
    if _offered(group, item):
        return "choice"
    if typing.get_origin(kind) is tuple:
        if entry == "lines":
            return "lines"
        return "number_list" if typing.get_args(kind)[0] is float else "list"
    if kind in (str, Path):
        return "paragraph" if entry == "paragraph" else "text"
    names: dict[Any, Type] = {int: "integer", float: "number", bool: "flag"}
    optionals: dict[Any, Type] = {int: "auto_integer", float: "auto_number", bool: "auto_flag"}
    return optionals[kind] if optional else names[kind]


def _choice(choice: str, words: Mapping[str, str], language: str) -> str:
    name = words.get(choice) or AUTO.get(choice)
    if name is None or isinstance(name, ProperName):
        return str(name or choice)
    return texts.translate(name, language)
