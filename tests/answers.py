"""The types of what the routes answer and are sent, for the JavaScript: made from the annotations
of the handlers and the TypedDicts that they name, which mypy compares with what is really sent.

    python tests/__main__.py --module tests.answers     writes javascript/common/answers.d.ts

tests/webui/test_answers.py says when the file is not that of the Python any more, and which route
has no type.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from lora_trainer.webui.http import routing

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "javascript" / "common" / "answers.d.ts"

HEAD = """\
// What the routes answer, and what they are sent. Made from lora_trainer/webui by tests/answers.py;
// do not change it here.
"""

WORDS = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
    PlainTextResponse: "string",
}


def answer_of(entry: routing.RouteEntry) -> object:
    """The annotation of what a route answers; None for a file."""
    hint = typing.get_type_hints(entry.handler)["return"]
    return None if hint is Response else hint


def text() -> str:
    """What has to stand in answers.d.ts."""
    routing.find_routes()
    answers = [
        (entry.method, pattern(entry.path), answer, entry.body)
        for entry in sorted(routing.ROUTES, key=lambda entry: entry.path)
        if (answer := answer_of(entry)) is not None
    ]
    found: dict[str, type] = {}
    for _, _, answer, body in answers:
        for one in (*typed_dicts(answer), *typed_dicts(body)):
            assert found.setdefault(one.__name__, one) is one, f"two are called {one.__name__}"
    return (
        HEAD
        + "".join(interface(name, found[name]) for name in sorted(found))
        + table("GetAnswers", {path: told for verb, path, told, _ in answers if verb == "GET"})
        + table("PostAnswers", {path: told for verb, path, told, _ in answers if verb == "POST"})
        + table("PostBodies", {path: body for _, path, _, body in answers if body is not None})
    )


def pattern(path: str) -> str:
    """/runs/{id}/live -> runs/${string}/live"""
    return re.sub(r"\{\w+\}", "${string}", path.lstrip("/"))


def table(name: str, rows: dict[str, object]) -> str:
    """An interface whose keys are addresses below lora-trainer/."""
    lines = [
        (f"    [path: `{path}`]" if "$" in path else f'    "{path}"') + f": {type_of(hint)};"
        for path, hint in rows.items()
    ]
    return f"\nexport interface {name} {{\n" + "\n".join(lines) + "\n}\n"


def typed_dicts(hint: object) -> Iterator[type]:
    """Every TypedDict that an annotation names, and those that they name."""
    if typing.is_typeddict(hint):
        yield typing.cast(type, hint)
        for inner in typing.get_type_hints(hint).values():
            yield from typed_dicts(inner)
    for argument in typing.get_args(hint):
        yield from typed_dicts(argument)


def interface(name: str, answer: type) -> str:
    said = inspect.cleandoc(answer.__dict__.get("__doc__") or "")
    optional: frozenset[str] = getattr(answer, "__optional_keys__", frozenset())
    lines = [
        f"    {key}{'?' if key in optional else ''}: {type_of(hint)};"
        for key, hint in typing.get_type_hints(answer).items()
    ]
    comment = "".join(f"// {line}\n".replace("// \n", "//\n") for line in said.splitlines())
    return (
        "\n"
        + comment
        + f"export interface {name} {{\n"
        + "".join(line + "\n" for line in lines)
        + "}\n"
    )


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
        return " | ".join(
            str(one).lower() if isinstance(one, bool) else f'"{one}"' for one in arguments
        )
    if origin in (list, tuple):
        inner = type_of(arguments[0])
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if origin is dict:
        return f"Record<{type_of(arguments[0])}, {type_of(arguments[1])}>"
    raise TypeError(f"{hint} is nothing that JSON has")


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8", newline="\n")
