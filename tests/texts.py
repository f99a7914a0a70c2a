"""Every sentence a visitor of the tab may read, collected from the sources: the keys that each
language's table has to have.

    python -m tests.texts        what is missing from the tables (lora_trainer/webui/translations),
                                 and what nothing uses any more

Python: the literal templates and hints of errors, messages and findings (of whichever function
passes them on: the argument may be a name for a literal, or a choice between two), what the
settings tell at their fields, the presets. JavaScript: the literal arguments of t() and
plural().
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_trainer"
TABLES = PACKAGE / "webui" / "translations"
NOT_IN_THE_TAB = (
    "demo",
    "diagnosis",
    "console",
    "__main__",
    "language/assistant",
    "language/pairs",
    "planner/command",
)
"""Packages and modules whose sentences only a command line shows."""

TEXT_FUNCTIONS = {
    "Message",
    "error",
    "warning",
    "warn",
    "translated",
    "echo",
    "t",
    "_error",
    "_problem",
    "_warning",
    "_bad_row",
    "missing",
    "Label",
    "NoExample",
}
"""Functions whose first text is a template, beside the error classes; `hint` and `template` are
texts wherever they stand.
"""
TEXT_KEYWORDS = {"hint", "template", "hint_template", "sentence"}

_JS_STRING = r'"((?:[^"\\]|\\.)*)"'
_JS_T = re.compile(r"\bt\(\s*" + _JS_STRING)
_JS_COUNT = re.compile(r"\bplural\(\s*[^\"]*?,\s*" + _JS_STRING + r"\s*,\s*" + _JS_STRING)
# t(condition ? "one" : "other"): both are texts
_JS_CHOICE = re.compile(r"\bt\(\s*[^\"()]*\?\s*" + _JS_STRING + r"\s*:\s*" + _JS_STRING)


def python_texts() -> set[str]:
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if not _left_out(path)
    }
    shared: dict[str, set[str]] = {}
    for tree in trees.values():
        for name, texts in _constants(tree).items():
            if name.lstrip("_").isupper():
                shared.setdefault(name, set()).update(texts)
    found: set[str] = set()
    for tree in trees.values():
        constants = {**shared, **_constants(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found |= set(_texts_of_call(node, constants))
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found |= set(_texts_of_defaults(node, constants))
            elif isinstance(node, ast.AnnAssign) and _is_text_annotation(node.annotation):
                found |= set(_literals(node.value, constants))
    return {text for text in found if _is_sentence(text)}


def _constants(tree: ast.Module) -> dict[str, set[str]]:
    """Names that stand for literal texts anywhere in a module: constants, and templates that a
    function chooses between.
    """
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        for target, value in _assigned(node) if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name) and isinstance(value, (ast.Constant, ast.IfExp)):
                found.setdefault(target.id, set()).update(_literals(value, {}))
    return {name: texts for name, texts in found.items() if texts}


def _assigned(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(name, value) of each, also of `template, hint = "...", "..."`."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _left_out(path: Path) -> bool:
    inside = path.relative_to(PACKAGE).with_suffix("")
    return inside.parts[0] in NOT_IN_THE_TAB or inside.as_posix() in NOT_IN_THE_TAB


def _texts_of_call(node: ast.Call, constants: dict[str, set[str]]) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in (
        "log",
        "logging",
        "logger",
        "warnings",
    ):
        return
    says = (
        name in TEXT_FUNCTIONS
        or name in ("OutOfMemory", "NotFinite", "ProcessLost", "NotFound", "Conflict", "Forbidden")
        or (name.endswith("Error") and name[0].isupper())
    )
    if says and name not in (
        "ValueError",
        "TypeError",
        "KeyError",
        "RuntimeError",
        "OSError",
        "AssertionError",
    ):
        for argument in node.args:
            texts = list(_literals(argument, constants))
            if texts and any(" " in text for text in texts):
                yield from texts
                break
    for keyword in node.keywords:
        if keyword.arg in TEXT_KEYWORDS:
            yield from _literals(keyword.value, constants)


def _texts_of_defaults(
    node: ast.FunctionDef | ast.AsyncFunctionDef, constants: dict[str, set[str]]
) -> Iterator[str]:
    arguments = node.args
    for argument, default in zip(
        reversed(arguments.args), reversed(arguments.defaults), strict=False
    ):
        if argument.arg in TEXT_KEYWORDS:
            yield from _literals(default, constants)
    for argument, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.arg in TEXT_KEYWORDS and keyword_default is not None:
            yield from _literals(keyword_default, constants)


def _is_text_annotation(annotation: ast.expr) -> bool:
    """A table declared with `Texts` in its type holds texts of the tab: LABELS: Texts = {...}."""
    return "Texts" in ast.unparse(annotation)


def _literals(node: ast.expr | None, constants: dict[str, set[str]]) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _literals(body, constants)
            yield from _literals(orelse, constants)
        case ast.Name(id=name):
            yield from constants.get(name, ())
        case ast.Attribute(attr=name):
            yield from constants.get(name, ())
        case ast.Dict(values=values):
            for value in values:
                yield from _literals(value, constants)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            for element in elements:
                yield from _literals(element, constants)
        case ast.Subscript(value=value):
            yield from _literals(value, constants)
        case ast.BoolOp(values=values):
            for value in values:
                yield from _literals(value, constants)
        case ast.Call(func=ast.Attribute(value=value, attr="get"), args=arguments):
            yield from _literals(value, constants)
            for argument in arguments[1:]:
                yield from _literals(argument, constants)


def _is_sentence(text: str) -> bool:
    """Whether there is anything to translate beside the values' places."""
    return bool(re.search(r"[A-Za-z]{2}", re.sub(r"\{[^}]*\}", "", text)))


def javascript_texts() -> set[str]:
    found: set[str] = set()
    for path in sorted((ROOT / "javascript").rglob("*.js")):
        source = path.read_text(encoding="utf-8")
        for pattern in (_JS_T, _JS_COUNT, _JS_CHOICE):
            for match in pattern.finditer(source):
                found |= {json.loads(f'"{text}"') for text in match.groups()}
    return {text for text in found if _is_sentence(text)}


def documented_texts() -> set[str]:
    """What the settings say of themselves in the tab."""
    from lora_trainer.captioning import captioners
    from lora_trainer.settings import captioning, schema, training

    groups = [group for _, group in training.GROUPS]
    own = [info.settings for info in captioners.every().values()]
    found = {schema.title_of(group) for group in groups}
    for group in (*groups, captioning.CaptionSettings, *own):
        for item in schema.fields_of(group):
            told = schema.about(item)
            if told.audience != "elsewhere":
                found |= {told.label, schema.documentation_of(group)[item.name], told.unit}
                found |= {told.text_label, told.text_help}
                found |= {
                    words
                    for words in told.choices.values()
                    if not isinstance(words, schema.ProperName)
                }
                if told.among is not None:
                    found |= {choice.sentence for choice in told.among().values()}
    return {text for text in found if _is_sentence(text)}


def preset_texts() -> set[str]:
    import yaml

    found: set[str] = set()
    for path in sorted((PACKAGE / "webui" / "settings" / "presets").glob("*.yaml")):
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
        found |= {preset["title"], preset["why"], *preset.get("notes", {}).values()}
    return found


def needed() -> set[str]:
    return python_texts() | javascript_texts() | documented_texts() | preset_texts()


def file(code: str) -> Path:
    return TABLES / f"{code}.json"


def table(code: str) -> dict[str, str]:
    values = json.loads(file(code).read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def codes() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.json"))


def main() -> int:
    wanted = needed()
    for code in codes():
        known = set(table(code))
        missing, unused = sorted(wanted - known), sorted(known - wanted)
        print(
            json.dumps(
                {"file": str(file(code).relative_to(ROOT)), "missing": missing, "unused": unused},
                ensure_ascii=False,
                indent=1,
            )
        )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
