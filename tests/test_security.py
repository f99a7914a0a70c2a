"""SECURITY.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NOT_PROMISED = ("To report something", "What is not promised")


def names_of_tests() -> set[str]:
    trees = (
        ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")
    )
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_test_that_the_security_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 15 and sorted(named - names_of_tests()) == []


def test_each_promise_names_the_test_that_holds_it():
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if title not in NOT_PROMISED:
            assert "`test_" in body, title
            for promise in re.findall(r"^- .*", body, flags=re.MULTILINE):
                assert "`test_" in promise, promise
