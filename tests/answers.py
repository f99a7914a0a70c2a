"""The types of what the routes answer, for the JavaScript: made from the TypedDicts in
lora_trainer/webui that the answers are, which mypy compares with what is really sent.

    python tests/__main__.py --module tests.answers     writes javascript/common/answers.d.ts

tests/webui/test_answers.py says when the file is not that of the Python any more.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_trainer" / "webui"
FILE = ROOT / "javascript" / "common" / "answers.d.ts"

MODULES = ("training.run_view", "training.runs", "loras.library", "tab.routes")
"""Of lora_trainer.webui: where answers are defined."""

HEAD = """\
// What the routes answer. Made from lora_trainer/webui by tests/answers.py; do not change it here.
"""

WORDS = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def answers() -> dict[str, type]:
    """Name -> TypedDict, in the order of the modules."""
    found: dict[str, type] = {}
    for name in MODULES:
        module = importlib.import_module(f"lora_trainer.webui.{name}")
        for key, value in vars(module).items():
            if typing.is_typeddict(value) and value.__module__ == module.__name__:
                assert key not in found, f"two answers are called {key}"
                found[key] = value
    return found


def text() -> str:
    """What has to stand in answers.d.ts, as prettier formats it."""
    return HEAD + "".join(interface(name, answer) for name, answer in answers().items())


def interface(name: str, answer: type) -> str:
    said = inspect.cleandoc(answer.__dict__.get("__doc__") or "")
    hints = typing.get_type_hints(answer)
    lines = [f"    {key}: {type_of(hint)};" for key, hint in hints.items()]
    comment = "".join(f"// {line}\n".replace("// \n", "//\n") for line in said.splitlines())
    return "\n" + comment + f"export interface {name} {{\n" + "\n".join(lines) + "\n}\n"


def type_of(hint: object) -> str:
    """The TypeScript of a Python annotation. Raises TypeError for one that JSON has not."""
    if hint in WORDS:
        return WORDS[typing.cast(type, hint)]
    if hint is typing.Any:
        return "unknown"
    if typing.is_typeddict(hint):
        return typing.cast(type, hint).__name__
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_of(one) for one in arguments)
    if origin is typing.Literal:
        return " | ".join(f'"{one}"' for one in arguments)
    if origin in (list, tuple):
        inner = type_of(arguments[0])
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if origin is dict:
        return f"Record<{type_of(arguments[0])}, {type_of(arguments[1])}>"
    raise TypeError(f"{hint} is nothing that JSON has")


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8", newline="\n")
