"""javascript/common/answers.d.ts says what lora_trainer/webui sends and is sent."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, TypedDict, get_type_hints

import pytest

from lora_trainer.webui.http import routing
from tests import answers

MOST_UNTYPED = 2
"""Fields of a body that needs no type of its own."""


def test_the_types_of_the_javascript_are_those_of_the_python():
    assert answers.FILE.read_text(encoding="utf-8") == answers.text(), (
        "run: python3 tests/__main__.py --module tests.answers"
    )


def test_every_route_says_what_it_answers():
    routing.find_routes()
    untyped = [
        f"{entry.method} {entry.path}"
        for entry in routing.ROUTES
        if (hint := answers.answer_of(entry)) is not None and "unknown" in answers.type_of(hint)
    ]
    assert not untyped


def fields_read(entry: routing.RouteEntry) -> Iterator[str]:
    """The fields of a body that a handler asks for by name, and "*" where it hands on the whole."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(entry.handler)))):
        match node:
            case ast.Call(ast.Attribute(attr="value"), [ast.Constant(str(name)), *_]):
                yield name
            case ast.Call(ast.Attribute(attr="chosen")):
                yield "select"
            case ast.Call(args=args) if any(
                isinstance(one, ast.Attribute) and one.attr == "body" for one in args
            ):
                yield "*"


def test_every_route_says_what_it_is_sent_where_that_is_more_than_two_fields():
    routing.find_routes()
    for entry in routing.ROUTES:
        read = set(fields_read(entry))
        if entry.body is not None:
            assert read - {"*"} <= get_type_hints(entry.body).keys(), entry.path
        else:
            assert "*" not in read and len(read) <= MOST_UNTYPED, entry.path


class Inner(TypedDict):
    name: str


class Some(TypedDict, total=False):
    done: Literal[True]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (str, "string"),
        (float, "number"),
        (bool, "boolean"),
        (int | None, "number | null"),
        (Literal["train", "caption"], '"train" | "caption"'),
        (Literal[True], "true"),
        (list[Inner], "Inner[]"),
        (list[int | None], "(number | null)[]"),
        (tuple[float, ...], "number[]"),
        (dict[str, Inner], "Record<string, Inner>"),
        (dict[str, Any], "Record<string, unknown>"),
    ],
)
def test_an_annotation_becomes_the_type_that_its_json_has(hint, words):
    assert answers.type_of(hint) == words


def test_what_json_has_not_is_no_answer():
    with pytest.raises(TypeError):
        answers.type_of(bytes)


def test_an_answer_keeps_its_words():
    assert answers.interface("Inner", Inner) == (
        "\nexport interface Inner {\n    name: string;\n}\n"
    )
    assert answers.interface("Some", Some) == ("\nexport interface Some {\n    done?: true;\n}\n")
