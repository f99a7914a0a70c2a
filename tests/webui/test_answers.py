"""javascript/common/answers.d.ts says what lora_trainer/webui sends."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest

from tests import answers


def test_the_types_of_the_javascript_are_those_of_the_python():
    assert answers.FILE.read_text(encoding="utf-8") == answers.text(), (
        "run: python3 tests/__main__.py --module tests.answers"
    )


class Inner(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (str, "string"),
        (float, "number"),
        (bool, "boolean"),
        (int | None, "number | null"),
        (Literal["train", "caption"], '"train" | "caption"'),
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
