"""The machinery of settings: fields with bounds and texts, validation, flat YAML.

A group of settings is a frozen dataclass derived from `Settings`; a YAML file is flat, and each key
is a field of one of its groups. Everything about a setting is at its field: `About`, and the
docstring under it. The tab's form, the commented YAML, README's table and the command line's
options are generated from it.

    setting(...)                        -> a field; `about(field)` returns its About
    read_mapping(path)                  -> dict      the keys and values of a YAML file
    groups_from_mapping(groups, dict)   -> groups    validated; raises one ConfigError with every
    problem
    group_to_mapping(group)             -> dict      the flat keys again
    current_keys(groups, dict)          -> dict      renamed keys -> current ones
    commented_yaml(groups), readme_table(groups), add_options(parser, ...), documentation_of(group)

Optional settings accept `auto`, `none` or an empty value. Needs PyYAML only; used by both
processes.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import difflib
import inspect
import math
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor

from lora_trainer.errors import ConfigError
from lora_trainer.files import MAX_DIGITS

Audience = Literal["everyone", "advanced", "local", "elsewhere"]
"""Who sees a setting in the tab: everyone; after unfolding Advanced; of these only local users (for
file paths); nobody, because another part of the tab sets it. README's table, the YAML and the
command line have all of them.
"""
TextEntry = Literal["", "lines", "paragraph", "names"]
"""How a text is entered, if not as one short line: `lines`, a list with one item per line;
`paragraph`, one long text; `names`, several words on the command line.
"""


@dataclass(frozen=True, kw_only=True)
class NamedChoice:
    """A choice with its title, which is not translated, and a help sentence."""

    title: str
    sentence: str = ""

    def __str__(self) -> str:
        return f"{self.title}: {self.sentence.rstrip('.')}" if self.sentence else self.title


class ProperName(str):
    """The title of a choice that is not translated."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class About:
    """The properties of a setting besides its type, default and docstring."""

    label: str = ""
    """Its name in the tab: the term that people search for."""
    text_label: str = ""
    """Its name in a training on texts, if different."""
    text_help: str = ""
    """Its help in a training on texts, if the docstring is about images."""
    unit: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Choice -> title, if different."""
    among: Callable[[], Mapping[str, NamedChoice]] | None = None
    """Choices determined at run time."""
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    hint: str = ""
    """For an invalid value."""
    audience: Audience = "advanced"
    order: int = 0
    """Position among the settings for everyone, which are shown as one group."""
    place: str | None = None
    """For the audience `elsewhere`: the part of the tab that sets it."""
    entry: TextEntry = ""
    step: float | None = None
    """Increment of the arrow buttons; None for learning rates."""
    example: str = ""
    """The value of a required setting in the commented YAML."""
    terms: str = ""
    """Additional search terms, not translated."""
    other_names: tuple[str, ...] = ()
    """Names of its key in other trainers, for the hint on an unknown key."""
    renamed_from: tuple[str, ...] = ()
    """Earlier names of its key, which are still read."""
    removed: tuple[str, ...] = ()
    """Choices of earlier versions, for which the hint gives a replacement."""
    affects_result: bool = True
    """Whether another value gives another LoRA for the same images, checkpoint and step."""
    in_presets: bool = True
    """Whether presets may contain it; not if it depends on the images or the checkpoint."""
    fixed_by_the_first_step: bool = False
    """Whether the shape of the weights depends on it, so that it cannot change on resume."""


def setting(
    default: Any = dataclasses.MISSING, bounds: tuple[float, float] | None = None, **details: Any
) -> Any:
    """A dataclass field with an `About`. `bounds`: at_least and at_most."""
    if bounds is not None:
        details["at_least"], details["at_most"] = bounds
    return field(default=default, metadata={"about": About(**details)})


def about(item: dataclasses.Field[Any]) -> About:
    """The About of a field."""
    details: About = item.metadata["about"]
    return details


def fields_of(group: Settings | type[Settings]) -> tuple[dataclasses.Field[Any], ...]:
    """The settings of a group."""
    return _fields(group if isinstance(group, type) else type(group))  # type: ignore[arg-type]


@cache
def _fields(group: Any) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(item for item in dataclasses.fields(group) if "about" in item.metadata)


def label_of(item: dataclasses.Field[Any], data: str = "images") -> str:
    """A setting's name in a training on images or texts."""
    told = about(item)
    return (told.text_label if data == "texts" else "") or told.label


def field_named(group: type[Settings], key: str) -> dataclasses.Field[Any]:
    """One setting of a group."""
    return next(item for item in fields_of(group) if item.name == key)


class Settings:
    """Base of setting groups: validates types, choices and bounds at construction."""

    for_images: ClassVar[bool] = True
    """Whether a training on images reads the group."""

    def __post_init__(self) -> None:
        problems = [problem for item in fields_of(self) for problem in _field_problems(item, self)]
        if not problems:
            problems = list(self.contradictions())
        if problems:
            raise ConfigError.listing(problems, type(self).__name__)

    def contradictions(self) -> Iterator[ConfigError]:
        """Problems between fields that are valid by themselves."""
        return iter(())


Groups = Sequence[tuple[str, type[Settings]]]
"""The groups of a file, with their names."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError."""
    if path.suffix.lower() == ".toml":
        raise ConfigError(
            "{path} is a TOML file, as other trainers use",
            hint="`python -m lora_trainer init FILE` writes a YAML file to fill in.",
            path=path,
        )
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError:
        raise ConfigError(
            "there is no file {path}",
            hint="`python -m lora_trainer init {path}` writes one to start from.",
            path=path,
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "{path} is not a text file in UTF-8",
            hint="In the editor: Save as, with the encoding UTF-8.",
            path=path,
        ) from error
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror or error
        raise ConfigError(
            "{path} cannot be read: {reason}",
            hint="It must be a text file in UTF-8.",
            path=path,
            reason=reason,
        ) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            "{path} is not a list of `key: value` lines",
            hint="`python -m lora_trainer init FILE` writes an example.",
            path=path,
        )
    return {str(key): value for key, value in values.items()}


def parse_yaml(text: str, path: Path) -> Any:
    """The content of an untrusted YAML text. Raises ConfigError, which names `path`."""
    try:
        if len(text) > MOST_KEPT:
            return _parsed.__wrapped__(text)
        # a copy: who asked may change it
        return copy.deepcopy(_parsed(text))
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # an invalid date, or a number with more digits than Python accepts
        reason = " ".join(str(error).split())
        raise ConfigError(
            "{path} holds a value that cannot be used: {reason}",
            hint=FIX_YAML,
            path=path,
            reason=reason,
        ) from error


MOST_KEPT = 2**15
"""Characters of a text whose values are kept for the next time."""


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """The same few files are read again and again, and PyYAML takes milliseconds for one. Raises
    what `parse_yaml` explains.
    """
    loader = _Loader if "\t" in text else _FastLoader
    try:
        values = yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        if loader is _Loader or len(text) > MOST_KEPT:
            raise
        # for its message
        values = yaml.load(text, Loader=_Loader)
    require_usable(values)
    return values


FIX_YAML = "Fix the file, or write a new one with `python -m lora_trainer init FILE`."
MAX_YAML_DEPTH = 20
"""Nesting of collections; settings need one level."""
SEVERAL_DEVICES = r"auto|all|\d{1,3}(,\d{1,3})+|xpu:\d{1,3}(,xpu:\d{1,3})+|cpu(,cpu)+"
"""The setting `devices`. Several processes on a CPU, as in cpu,cpu, are for tests."""


def require_usable(value: Any) -> None:
    """Raise ValueError for values that could not be shown or written."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, int) and abs(value) > 10**MAX_DIGITS:
        raise ValueError("a number has too many digits")
    elif isinstance(value, (list, tuple, set, dict)):
        for part in value:
            require_usable(part)
        if isinstance(value, dict):
            require_usable(list(value.values()))


class _Refusals(Composer, SafeConstructor):
    """Refuses duplicate keys, of which PyYAML takes the last, aliases, and deep nesting. To be
    mixed into a loader.
    """

    peek_event: Callable[[], Any]
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*) are not supported here", problem_mark=place
            )
        if self._depth > MAX_YAML_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {MAX_YAML_DEPTH} deep", problem_mark=place
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key.value}", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


class _Loader(_Refusals, yaml.SafeLoader):
    """Parses in Python."""


_WithLibyaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_Refusals, _WithLibyaml):  # type: ignore[misc]
    """Parses with libyaml where PyYAML has it: many times as fast, but its messages say less, and
    it accepts tabs that PyYAML's own parser refuses.
    """

    def __init__(self, stream: str) -> None:
        _WithLibyaml.__init__(self, stream)
        Composer.__init__(self)


QUOTE_PATHS = (
    r"In double quotes YAML takes \n for a line end and \t for a tab. Put the path in single"
    r" quotes, or write / for \."
)


def unquoted(text: str) -> str:
    """A path without surrounding spaces and the quotes of "Copy as path"."""
    text = text.strip()
    while len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("'", "'"), ("\u201c", "\u201d")):
        text = text[1:-1].strip()
    return text


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    """The parser's error with its line, as a ConfigError."""
    detail = str(getattr(error, "problem", None) or error)
    # a missing colon is reported one line too late
    mark = getattr(error, "context_mark" if "expected ':'" in detail else "problem_mark", None)
    line = mark.line + 1 if mark else "?"
    hint = "Each line is `key: value`; put a path or text with special characters in single quotes."
    if "'\\t'" in detail:
        detail = "a tab"
        hint = "YAML does not allow tabs at the start of a line; use spaces, or nothing."
    elif "unknown escape" in detail:
        hint = QUOTE_PATHS
    elif detail.startswith("duplicate key"):
        hint = "Keep one of the two lines."
    return ConfigError(
        "{path}, line {line}: not valid YAML ({detail})",
        hint=hint,
        path=path,
        line=line,
        detail=detail,
    )


def groups_from_mapping(
    groups: Groups, values: Mapping[str, Any], source: str, base: Path | None = None
) -> dict[str, Settings]:
    """Flat keys -> validated groups. A key in several groups belongs to the first. Raises one
    ConfigError with every problem.
    """
    known: dict[str, tuple[dataclasses.Field[Any], type[Settings]]] = {}
    for _, group in groups:
        for item in fields_of(group):
            known.setdefault(item.name, (item, group))
    problems: list[ConfigError] = []
    converted: dict[str, Any] = {}
    values = current_keys(groups, values)
    broken: set[str] = set()
    for key, value in values.items():
        if key not in known:
            problems.append(_unknown_key(key, known))
            continue
        try:
            converted[key] = _convert(*known[key], value, base or Path.cwd())
        except ConfigError as problem:
            problems.append(problem)
            broken.add(key)
    made: dict[str, Settings] = {}
    names: dict[Any, list[str]] = {}
    for name, group in groups:
        # a group with several names is validated once
        names.setdefault(group, []).append(name)
    for group, group_names in names.items():
        fields_here = fields_of(group)
        missing = [
            item.name
            for item in fields_here
            if item.default is dataclasses.MISSING
            and item.name not in converted
            and item.name not in broken
        ]
        problems += [
            ConfigError(
                "{key} is missing", hint=_first_sentence(documentation_of(group)[key]), key=key
            )
            for key in missing
        ]
        here = {
            item.name: converted[item.name]
            for item in fields_here
            if item.name in converted and known[item.name][1] is group
        }
        # placeholders for missing or invalid required fields, so that the others are validated too
        for item in fields_here:
            if item.default is dataclasses.MISSING and item.name not in here:
                here[item.name] = Path()
        try:
            made.update(dict.fromkeys(group_names, group(**here)))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError.listing(problems, source)
    return made


def current_keys(groups: Groups, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by current keys. Raises ConfigError if a setting is given by both its names."""
    present = {
        old: item.name
        for _, group in groups
        for item in fields_of(group)
        for old in about(item).renamed_from
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = present.get(key, key)
        if name in found or (name != key and name in values):
            raise ConfigError(
                "{old} is an earlier name of {key}, which is set too",
                hint="Keep one of the two.",
                old=key,
                key=name,
            )
        found[name] = value
    return found


def group_to_mapping(group: Settings) -> dict[str, Any]:
    """A group as flat keys with plain YAML values."""
    return {item.name: plain(getattr(group, item.name)) for item in fields_of(group)}


def title_of(group: type[Settings]) -> str:
    """A group's title."""
    return inspect.cleandoc(group.__doc__ or "")


def commented_yaml(groups: Groups, values: Mapping[str, Any]) -> str:
    """A YAML file with every key and its meaning; defaults other than `values` are commented
    out.
    """
    lines = ["# One run of lora_trainer. Lines that start with # show the defaults.", ""]
    for _, group in groups:
        lines += [f"# ---- {title_of(group)} ----", ""]
        for item in fields_of(group):
            lines += textwrap.wrap(
                f"{_labelled(item)}: {explained(group, item)}",
                120,
                initial_indent="# ",
                subsequent_indent="# ",
            )
            if item.name in values:
                lines.append(dump({item.name: plain(values[item.name])}).rstrip())
            elif item.default is dataclasses.MISSING:
                lines.append(f"{item.name}: {about(item).example}")
            else:
                lines.append(
                    "#" + dump({item.name: plain(item.default)}).rstrip().replace("\n", "\n#")
                )
            lines.append("")
    return "\n".join(lines)


def readme_table(groups: Groups) -> str:
    """The settings as Markdown tables, one per group."""
    parts = []
    for _, group in groups:
        parts += [
            f"**{title_of(group)}**",
            "",
            "| key | name | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for item in fields_of(group):
            default = (
                "required" if item.default is dataclasses.MISSING else f"`{_shown(item.default)}`"
            )
            meaning = explained(group, item).replace("|", chr(92) + "|")
            parts.append(f"| `{item.name}` | {_labelled(item)} | {default} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def add_options(parser: argparse.ArgumentParser, groups: Groups) -> None:
    """Add an option per setting, absent from the parsed arguments if not given; groups_from_mapping
    validates them. The help of a key in several groups has the meaning in each; unnamed groups are
    common.
    """
    places: dict[str, list[tuple[str, type[Settings], dataclasses.Field[Any]]]] = {}
    for name, group in groups:
        for item in fields_of(group):
            places.setdefault(item.name, []).append((name, group, item))
    for key, uses in places.items():
        _, group, item = uses[0]
        parser.add_argument(
            "--" + key.replace("_", "-"),
            required=item.default is dataclasses.MISSING,
            default=argparse.SUPPRESS,
            help=_option_help(uses).replace("%", "%%"),
            **_option_kind(group, item),
        )


def _option_kind(group: type[Settings], item: dataclasses.Field[Any]) -> dict[str, Any]:
    kind, _ = kind_of(group, item)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction if item.default else "store_true"}
    if about(item).entry == "names":
        return {"nargs": "+", "metavar": "NAME"}
    if choices_of(group, item):
        return {"metavar": "NAME"}
    return {"metavar": {Path: "PATH", int: "N", float: "N"}.get(kind, "TEXT")}


def _option_help(uses: Sequence[tuple[str, type[Settings], dataclasses.Field[Any]]]) -> str:
    """The option's meanings, with the names of the groups."""
    names: dict[str, list[str]] = {}
    for name, group, item in uses:
        default = item.default in (dataclasses.MISSING, None, "", (), False)
        text = explained(group, item) + ("" if default else f" (default: {_shown(item.default)})")
        names.setdefault(text, []).append(name)
    return " ".join(
        f"{', '.join(group_names)}: {text}" if any(group_names) else text
        for text, group_names in names.items()
    )


def _labelled(item: dataclasses.Field[Any]) -> str:
    """A setting's label and unit."""
    details = about(item)
    return f"{details.label} ({details.unit})" if details.unit else details.label


def explained(group: type[Settings], item: dataclasses.Field[Any]) -> str:
    """The field's docstring and choices."""
    text = documentation_of(group)[item.name]
    details = about(item)
    words: Mapping[str, str | NamedChoice] = (
        details.choices if details.among is None else details.among()
    )
    choices = [
        str(choice) if _is_redundant(str(choice), shown) else f"{choice} ({shown})"
        for choice in choices_of(group, item)
        for shown in [str(words.get(str(choice), choice))]
    ]
    return f"{text} One of: {', '.join(choices)}." if choices else text


@cache
def _definitions(module: types.ModuleType) -> dict[str, ast.stmt]:
    """The classes of a module. inspect.getsource would read the whole module for each of them."""
    source = inspect.getsource(module)
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


@cache
def _documentation(group: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(group.__mro__[: group.__mro__.index(Settings)]):
        module = sys.modules.get(base.__module__)
        definition = _definitions(module).get(base.__qualname__) if module else None
        if definition is None:
            # a class within something else
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
            ):
                text = str(ast.literal_eval(following.value))
                found[statement.target.id] = " ".join(text.split())
    return found


def _is_redundant(choice: str, shown: str) -> bool:
    return shown.lower().replace(" ", "_").replace("-", "_") == choice


def documentation_of(group: type[Settings]) -> dict[str, str]:
    """Key -> docstring under its field, from the source."""
    return _documentation(group)  # type: ignore[arg-type]  # mypy: a class is unhashable


# --- one value ------------------------------------------------------------------------------------


@cache
def _annotations(group: Any) -> dict[str, Any]:
    return typing.get_type_hints(group)


def kind_of(group: type[Settings], item: dataclasses.Field[Any]) -> tuple[Any, bool]:
    """A field's type without None, and whether None (auto) is allowed."""
    return _kind(group, item.name)  # type: ignore[arg-type]  # as above


@cache
def _kind(group: Any, name: str) -> tuple[Any, bool]:
    annotation = _annotations(group)[name]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return (
            next(option for option in typing.get_args(annotation) if option is not type(None)),
            True,
        )
    return annotation, False


def words_of(group: type[Settings], item: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The words that a setting takes besides values of its kind."""
    return _words(group, item.name)  # type: ignore[arg-type]  # as above


@cache
def _words(group: Any, name: str) -> tuple[str, ...]:
    options = typing.get_args(_annotations(group)[name])
    kinds = [option for option in options if typing.get_origin(option) is Literal]
    return tuple(word for kind in kinds for word in typing.get_args(kind))


def choices_of(group: type[Settings], item: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The possible values, if enumerable."""
    among = about(item).among
    if among is not None:
        return tuple(among())
    kind, _ = kind_of(group, item)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _convert(item: dataclasses.Field[Any], group: type[Settings], value: Any, base: Path) -> Any:
    """A YAML value -> the field's type. Raises ConfigError for a wrong type."""
    kind, optional = kind_of(group, item)
    if optional and (
        value is None
        or (isinstance(value, str) and value.strip().lower() in ("auto", "none", "null", ""))
    ):
        return None
    words = words_of(group, item)
    # YAML reads a bare `off` as False
    said = "off" if value is False else str(value).strip().lower()
    if said in words:
        return said
    choices = choices_of(group, item)
    if choices:
        # YAML reads a bare `no` as False
        if value is False and "no" in choices:
            return "no"
        # "75" means 75
        return next(
            (choice for choice in choices if str(choice) == str(value).strip().lower()), value
        )
    is_list = typing.get_origin(kind) is tuple
    element = typing.get_args(kind)[0] if is_list else kind
    try:
        made = tuple(
            _path(item, one, base) if element is Path else _scalar(element, one)
            for one in (_listed(item, value) if is_list else [value])
        )
    except (ValueError, OverflowError, RuntimeError):
        # OverflowError: .inf for an int; RuntimeError: ~user without a home folder
        raise ConfigError(
            "{key} is {value!r}, but must be {expected}",
            hint=about(item).hint,
            key=item.name,
            value=value,
            expected=_expected(kind),
        ) from None
    return made if is_list else made[0]


def _listed(item: dataclasses.Field[Any], value: Any) -> Sequence[Any]:
    """The elements of the value of a list setting. Raises ValueError if it is none."""
    if isinstance(value, str):
        # prompts contain commas; layer names do not
        one = about(item).entry == "lines"
        return [value] if one else [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (int, float, Path)) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return value


def _path(item: dataclasses.Field[Any], value: Any, base: Path) -> Path:
    """An absolute path. Raises ConfigError, ValueError, RuntimeError."""
    # YAML reads a folder named 2024 as a number
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    text = unquoted(str(value)) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text:
        raise ValueError
    if any(character < " " for character in text):
        raise ConfigError(
            "{key} is {value!r}, which holds a line end or a tab",
            hint=QUOTE_PATHS,
            key=item.name,
            value=str(value),
        )
    return (base / Path(text).expanduser()).absolute()


def _scalar(kind: Any, value: Any) -> Any:
    """An int, float, bool or str. Raises ValueError."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        if isinstance(value, str):
            value = float(value) if set(value.lower()) & {".", "e"} else int(value)
        if isinstance(value, float) and value != int(value):
            raise ValueError
        if not isinstance(value, (int, float)):
            raise ValueError
        return int(value)
    if kind is float:
        # YAML 1.1 reads 2e-4 (without a dot) as a string
        number = float(value) if isinstance(value, (int, float, str)) else None
        if number is None:
            raise ValueError
        return number
    raise TypeError(kind)


def _field_problems(item: dataclasses.Field[Any], settings: Settings) -> Iterator[ConfigError]:
    value = getattr(settings, item.name)
    kind, optional = kind_of(type(settings), item)
    if (value is None and optional) or value in words_of(type(settings), item):
        return
    details = about(item)
    hint, bounds = details.hint, _bounds_text(details)
    choices = choices_of(type(settings), item)
    if choices:
        if value not in choices or isinstance(value, bool):
            named = ", ".join(str(choice) for choice in choices)
            close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
            suggestion = (
                f"Did you mean {close[0]}?" if close and value not in details.removed else hint
            )
            yield ConfigError(
                "{key} is {value!r}, but must be one of: {named}",
                hint=suggestion,
                key=item.name,
                value=value,
                named=named,
            )
        return
    is_tuple = typing.get_origin(kind) is tuple
    element = typing.get_args(kind)[0] if is_tuple else kind
    values = value if is_tuple and isinstance(value, tuple) else (value,)
    for one in values:
        if not _is_a(element, one):
            yield ConfigError(
                "{key} is {value!r}, but must be {expected}",
                hint=hint,
                key=item.name,
                value=one,
                expected=_expected(element),
            )
        elif element in (int, float) and not _within(details, one):
            yield ConfigError(
                "{key} is {value}, but must be {bounds}",
                hint=hint,
                key=item.name,
                value=one,
                bounds=bounds,
            )


def _is_a(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _within(details: About, value: float) -> bool:
    low, high, above = details.at_least, details.at_most, details.above
    # not isfinite, which raises for integers beyond any float
    if value != value or value in (math.inf, -math.inf):
        return False
    return not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )


def _bounds_text(details: About) -> str:
    low, high, above = details.at_least, details.at_most, details.above
    if above is not None:
        return f"above {above:g} and at most {high:g}"
    return f"between {_number(low)} and {_number(high)}"


def _number(value: float | None) -> str:
    if value is None:
        return "any"
    return str(int(value)) if value == int(value) else f"{value:g}"


def _expected(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is tuple:
        if typing.get_args(kind)[0] is float:
            return "a list, such as [0, 0.5, 1]"
        if typing.get_args(kind)[0] is Path:
            return "a list of paths"
        return "a list of texts, such as [to_q, to_v]"
    return {
        int: "a whole number",
        float: "a number, such as 1e-4",
        bool: "true or false",
        str: "a text",
        Path: "a path",
    }.get(kind, str(kind))


def _unknown_key(
    key: str, known: Mapping[str, tuple[dataclasses.Field[Any], type[Settings]]]
) -> ConfigError:
    others = {other: name for name, (item, _) in known.items() for other in about(item).other_names}
    close = difflib.get_close_matches(key, [*known, *others], 1, cutoff=0.6)
    meant = others.get(key) or (others.get(close[0], close[0]) if close else "")
    hint = "`python -m lora_trainer init FILE` lists every setting."
    if meant:
        hint = f"Did you mean {meant}?"
    return ConfigError("{key} is not a setting", hint=hint, key=key)


def device_problems(device: str, devices: str = "auto") -> Iterator[ConfigError]:
    """Problems with the names of devices, regardless of availability."""
    if not re.fullmatch(r"auto|mps|cpu|(cuda|xpu)(:\d{1,3})?", device, re.ASCII):
        yield ConfigError(
            "device is {value!r}", hint="Use auto, cuda, cuda:1, mps or cpu.", value=device
        )
        return
    names = [name.strip() for name in devices.split(",")]
    cards = [name for name in names if name != "cpu"]
    if not re.fullmatch(SEVERAL_DEVICES, ",".join(names), re.ASCII) or len(cards) > len(set(cards)):
        yield ConfigError(
            "devices is {value!r}",
            hint="Use auto, all, or numbers of cards such as 0,1; for one card, set device.",
            value=devices,
        )
    elif devices != "auto" and (":" in device or device not in {"auto", *_kinds_of(names, device)}):
        yield ConfigError(
            "device is {device}, but devices is {devices}: they name different devices",
            hint="Set device to auto, or devices to auto.",
            device=device,
            devices=devices,
        )


def _kinds_of(names: Sequence[str], device: str) -> set[str]:
    """The values of `device` that name no other device than these. A number is a card of cuda's."""
    kinds = {"cuda" if name.isdigit() else name.partition(":")[0] for name in names}
    return {device} if kinds == {"all"} else kinds


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".") + "."


def plain(value: Any) -> Any:
    """A setting's value as in YAML."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(part) for part in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


class _Dumper(yaml.SafeDumper):
    pass


# `auto` instead of null
_Dumper.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:str", "auto")
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=True
    ),
)


def dump(values: Mapping[str, Any]) -> str:
    """Plain values -> YAML."""
    return str(
        yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    )
