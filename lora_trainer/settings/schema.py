"""The machinery of settings: fields with bounds, what is wrong with a value, and flat YAML files.

A group of settings is a frozen dataclass that derives from `Settings`; a YAML file is flat, and
each key names one field of one of its groups. The text under a field is its only documentation.

    setting(...)                        -> a field with its bounds and hint
    read_mapping(path)                  -> dict      the keys and values of a YAML file
    groups_from_mapping(groups, dict)   -> groups    checked; raises one ConfigError that lists
                                                     everything wrong
    group_to_mapping(group)             -> dict      the flat keys again
    commented_yaml(groups), readme_table(groups), documentation_of(group) -> the fields in words

Optional settings accept `auto`, `none` or nothing at all for "choose for me". Which settings there
are is in the modules beside this one. Needs PyYAML only; used by both processes.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from lora_trainer.errors import ConfigError
from lora_trainer.files import MOST_DIGITS


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    hint: str = "",
    advanced: bool = False,
    example: str = "",
) -> Any:
    """A dataclass field with its bounds, and what to say when they are broken; `example` stands in
    the commented YAML for what is required.
    """
    metadata = {
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "hint": hint,
        "advanced": advanced,
        "example": example,
    }
    return field(default=default, metadata=metadata)


def fields_of(group: Settings | type[Settings]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a group of settings: each group is a dataclass, their common base is none."""
    return dataclasses.fields(group)  # type: ignore[arg-type]


class Settings:
    """Base of the setting groups: types, choices and bounds are checked at construction, all at
    once.
    """

    def __post_init__(self) -> None:
        problems = [problem for item in fields_of(self) for problem in _field_problems(item, self)]
        if not problems:
            problems = list(self.contradictions())
        if problems:
            raise ConfigError.listing(problems, type(self).__name__)

    def contradictions(self) -> Iterator[ConfigError]:
        """What is wrong between fields, given that each is right by itself."""
        return iter(())


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file as they stand. Raises ConfigError."""
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
    """The values of a YAML text that anybody may have written. Raises ConfigError, which names
    `path`, and nothing else.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
        require_usable(values)
        return values
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # a date that is none, a number of more digits than Python reads
        reason = " ".join(str(error).split())
        raise ConfigError(
            "{path} holds a value that cannot be used: {reason}",
            hint=MEND_YAML,
            path=path,
            reason=reason,
        ) from error


MEND_YAML = "Mend the file, or let `python -m lora_trainer init FILE` write a new one to fill in."
DEEPEST_YAML = 20
"""Lists within lists: a setting is a list at most."""


def require_usable(value: Any) -> None:
    """Raises ValueError for what could be neither shown nor written again."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, int) and abs(value) > 10**MOST_DIGITS:
        raise ValueError("a number has too many digits")
    elif isinstance(value, (list, tuple, set, dict)):
        for part in value:
            require_usable(part)
        if isinstance(value, dict):
            require_usable(list(value.values()))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML silently takes the last; and what a few
    bytes make endless: nesting and aliases.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*) is not understood here", problem_mark=place
            )
        if self._depth > DEEPEST_YAML:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {DEEPEST_YAML} deep", problem_mark=place
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
                    problem=f"{key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


QUOTE_PATHS = (
    r"In double quotes YAML takes \n for a line end and \t for a tab. Put the path in single"
    r" quotes, or write / for \."
)


def unquoted(text: str) -> str:
    """A path without the quotes that come with "Copy as path", and without spaces around it."""
    text = text.strip()
    while len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("'", "'"), ("\u201c", "\u201d")):
        text = text[1:-1].strip()
    return text


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    """The parser's complaint as a sentence with the line it is about."""
    detail = str(getattr(error, "problem", None) or error)
    # a line without a colon is noticed one line too late
    mark = getattr(error, "context_mark" if "expected ':'" in detail else "problem_mark", None)
    line = mark.line + 1 if mark else "?"
    hint = "Each line is `key: value`; put a path or text with special characters in single quotes."
    if "'\\t'" in detail:
        detail, hint = (
            "a tab",
            "YAML does not allow tabs at the start of a line; use spaces, or nothing.",
        )
    elif "unknown escape" in detail:
        hint = QUOTE_PATHS
    elif detail.endswith("is there twice"):
        hint = "Keep one of the two lines."
    return ConfigError(
        "{path}, line {line}: not valid YAML ({detail})",
        hint=hint,
        path=path,
        line=line,
        detail=detail,
    )


def groups_from_mapping(
    groups: Sequence[tuple[str, type[Settings]]],
    values: Mapping[str, Any],
    source: str,
    base: Path | None = None,
) -> dict[str, Settings]:
    """Flat keys -> the groups of settings they belong to. Raises one ConfigError with all
    problems.
    """
    known = {item.name: (item, group) for _, group in groups for item in fields_of(group)}
    problems: list[ConfigError] = []
    converted: dict[str, Any] = {}
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
    for group_name, group in groups:
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
        here = {item.name: converted[item.name] for item in fields_here if item.name in converted}
        # a required field that is missing or broken has been reported; a stand-in lets the others
        # be checked too
        for item in fields_here:
            if item.default is dataclasses.MISSING and item.name not in here:
                here[item.name] = Path()
        try:
            made[group_name] = group(**here)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError.listing(problems, source)
    return made


def group_to_mapping(group: Settings) -> dict[str, Any]:
    """One group of settings -> flat keys with plain YAML values."""
    return {item.name: _plain(getattr(group, item.name)) for item in fields_of(group)}


def commented_yaml(groups: Sequence[tuple[str, type[Settings]]], values: Mapping[str, Any]) -> str:
    """A YAML file to start from: every key with its meaning; `values` fill in, the rest are
    defaults (commented out).
    """
    lines = ["# One run of lora_trainer. Lines that start with # show the defaults.", ""]
    for _, group in groups:
        told = documentation_of(group)
        lines += [f"# ---- {inspect.cleandoc(group.__doc__ or '')} ----", ""]
        for item in fields_of(group):
            lines += textwrap.wrap(
                told[item.name],
                120,
                initial_indent="# ",
                subsequent_indent="# ",
            )
            if item.name in values:
                lines.append(dump({item.name: _plain(values[item.name])}).rstrip())
            elif item.default is dataclasses.MISSING:
                lines.append(f"{item.name}: {item.metadata['example']}")
            else:
                lines.append(
                    "#" + dump({item.name: _plain(item.default)}).rstrip().replace("\n", "\n#")
                )
            lines.append("")
    return "\n".join(lines)


def readme_table(groups: Sequence[tuple[str, type[Settings]]]) -> str:
    """The settings as Markdown tables, one a group."""
    parts = []
    for _, group in groups:
        told = documentation_of(group)
        parts += [
            f"**{inspect.cleandoc(group.__doc__ or '')}**",
            "",
            "| key | default | meaning |",
            "| --- | --- | --- |",
        ]
        for item in fields_of(group):
            default = (
                "required" if item.default is dataclasses.MISSING else f"`{_shown(item.default)}`"
            )
            parts.append(
                f"| `{item.name}` | {default} | {told[item.name].replace('|', chr(92) + '|')} |"
            )
        parts.append("")
    return "\n".join(parts)


def documentation_of(group: type[Settings]) -> dict[str, str]:
    """Key -> the text under its field, read from the source of a group of settings (a class)."""
    found: dict[str, str] = {}
    definition = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
        ):
            found[statement.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return found


# --- one value ------------------------------------------------------------------------------------


@cache
def _annotations(group: Any) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _kind(item: dataclasses.Field[Any], group: Any) -> tuple[Any, bool]:
    """A field's type without None, and whether None is allowed."""
    annotation = _annotations(group)[item.name]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return (
            next(option for option in typing.get_args(annotation) if option is not type(None)),
            True,
        )
    return annotation, False


def _convert(item: dataclasses.Field[Any], group: type[Settings], value: Any, base: Path) -> Any:
    """A YAML value -> the field's type. Raises ConfigError for the wrong type."""
    kind, optional = _kind(item, group)
    if optional and (
        value is None
        or (isinstance(value, str) and value.strip().lower() in ("auto", "none", "null", ""))
    ):
        return None
    wrong = ConfigError(
        "{key} is {value!r}, but must be {expected}",
        hint=item.metadata.get("hint", ""),
        key=item.name,
        value=value,
        expected=_expected(kind),
    )
    origin = typing.get_origin(kind)
    if origin is Literal:
        # YAML reads a bare `no` as False
        if value is False and "no" in typing.get_args(kind):
            return "no"
        # "75" means 75
        return next(
            (
                choice
                for choice in typing.get_args(kind)
                if str(choice) == str(value).strip().lower()
            ),
            value,
        )
    if origin is tuple:
        element = typing.get_args(kind)[0]
        if isinstance(value, str):
            # prompts contain commas; names of layers do not
            value = (
                [value]
                if item.name == "sample_prompts"
                else [part.strip() for part in value.split(",") if part.strip()]
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise wrong
        try:
            return tuple(_scalar(element, part) for part in value)
        except (ValueError, OverflowError):
            raise wrong from None
    try:
        if kind is Path:
            # YAML reads a folder called 2024 as a number
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
        return _scalar(kind, value)
    except (ValueError, OverflowError, RuntimeError):
        # OverflowError: .inf for a whole number; RuntimeError: ~somebody, who has no home here
        raise wrong from None


def _scalar(kind: Any, value: Any) -> Any:
    """One int, float, bool or str. Raises ValueError."""
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
        # YAML 1.1 reads 2e-4, without a dot, as text
        number = float(value) if isinstance(value, (int, float, str)) else None
        if number is None:
            raise ValueError
        return number
    raise TypeError(kind)


def _field_problems(item: dataclasses.Field[Any], settings: Settings) -> Iterator[ConfigError]:
    value = getattr(settings, item.name)
    kind, optional = _kind(item, type(settings))
    if value is None and optional:
        return
    hint, bounds = item.metadata["hint"], _bounds_in_words(item)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices or isinstance(value, bool):
            named = ", ".join(str(choice) for choice in choices)
            close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
            suggestion = (
                f"Did you mean {close[0]}?" if close and (item.name, value) not in REMOVED else hint
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
        elif element in (int, float) and not _within(item, one):
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


def _within(item: dataclasses.Field[Any], value: float) -> bool:
    low, high, above = item.metadata["at_least"], item.metadata["at_most"], item.metadata["above"]
    # not isfinite: it fails for whole numbers beyond all floats
    if value != value or value in (math.inf, -math.inf):
        return False
    return not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )


def _bounds_in_words(item: dataclasses.Field[Any]) -> str:
    low, high, above = item.metadata["at_least"], item.metadata["at_most"], item.metadata["above"]
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
        return (
            "a list, such as [0, 0.5, 1]"
            if typing.get_args(kind)[0] is float
            else "a list of texts, such as [to_q, to_v]"
        )
    return {
        int: "a whole number",
        float: "a number, such as 1e-4",
        bool: "true or false",
        str: "a text",
        Path: "a path",
    }.get(kind, str(kind))


def _unknown_key(key: str, known: Mapping[str, Any]) -> ConfigError:
    close = difflib.get_close_matches(key, [*known, *ALIASES], 1, cutoff=0.6)
    meant = ALIASES.get(key) or (ALIASES.get(close[0], close[0]) if close else "")
    hint = (
        f"Did you mean {meant}?"
        if meant
        else "`python -m lora_trainer init FILE` lists every setting."
    )
    return ConfigError("{key} is not a setting", hint=hint, key=key)


REMOVED = {("lr_scheduler", "constant_with_warmup")}
"""Choices of an earlier version: the setting's hint says what does the same."""

ALIASES = {
    # what other trainers call it -> what it is called here; named in the hint, never guessed at
    # silently
    "network_dim": "lora_rank",
    "rank": "lora_rank",
    "network_alpha": "lora_alpha",
    "alpha": "lora_alpha",
    "lr": "learning_rate",
    "unet_lr": "learning_rate",
    "train_batch_size": "batch_size",
    "max_train_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "steps": "max_train_steps",
    "pretrained_model_name_or_path": "base_model",
    "model": "base_model",
    "output_name": "name",
    "save_every_n_steps": "save_steps",
    "save_every_n_epochs": "save_epochs",
    "caption_dropout_rate": "caption_dropout",
    "flip_aug": "flip_augmentation",
    "optimizer_type": "optimizer",
    "network_dropout": "lora_dropout",
    "dropout": "lora_dropout",
    "trigger": "trigger_word",
    "prompts": "sample_prompts",
    "num_repeats": "repeats",
    "v_parameterization": "prediction_type",
    "zero_terminal_snr_rescale": "zero_terminal_snr",
    "image_dir": "train_data_dir",
    "data_dir": "train_data_dir",
}


def device_problems(device: str) -> Iterator[ConfigError]:
    """What is wrong with the name of a device, whether it is there or not."""
    if not re.fullmatch(r"auto|mps|cpu|(cuda|xpu)(:\d{1,3})?", device, re.ASCII):
        yield ConfigError(
            "device is {value!r}", hint="Use auto, cuda, cuda:1, mps or cpu.", value=device
        )


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".") + "."


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
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


# 0.0002 as 2.0e-4 would be text to other YAML readers; `auto` reads better than null
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
