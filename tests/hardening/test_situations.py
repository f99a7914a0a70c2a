"""The page of what can go wrong says what its table says, and the table what the tests and the
sources say.
"""

from __future__ import annotations

import re

import pytest

from tests.hardening.situations import PAGE, ROOT, TABLE, Situation, page

ROWS = [row for rows in TABLE.values() for row in rows]


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.hardening.situations"


def test_readme_leads_to_the_page():
    assert f"({PAGE.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_each_situation_names_a_test_that_is_there(row: Situation):
    file, _, name = row.test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
        row.test
    )


def test_what_is_seen_is_what_the_product_says():
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "lora_trainer").rglob("*.py")
    )
    # as the parser joins them: sentences are wrapped in the sources
    said = re.sub(r'"\s*\n\s*"', "", sources)
    quoted = {words for row in ROWS for words in re.findall(r'"([^"]+)"', row.seen)}
    assert quoted and sorted(words for words in quoted if words not in said) == []
