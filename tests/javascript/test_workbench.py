"""The workbench's pure parts: what differs between two captions, where a caption is cut, where a crop lies in a thumbnail."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("scripts")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def scripts(script_page):
    for name in ("", "_bulk", "_findings", "_tokens", "_words"):
        script_page.add_script_tag(path=ROOT / "javascript" / f"lora_trainer_workbench{name}.js")


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("a red fox", "a blue fox", [["same", "a "], ["gone", "red"], ["new", "blue"], ["same", " fox"]]),
        ("fox, snow", "fox, snow, ink", [["same", "fox, snow"], ["new", ", ink"]]),
        ("fox, snow", "snow", [["gone", "fox, "], ["same", "snow"]]),
        ("", "ink", [["new", "ink"]]),
        ("ink", "", [["gone", "ink"]]),
        ("水墨画", "水彩画", [["same", "水"], ["gone", "墨"], ["new", "彩"], ["same", "画"]]),
        ("same", "same", [["same", "same"]]),
        ("", "", []),
    ],
)
def test_what_differs_is_told_word_by_word(call, before, after, pieces):
    assert call("workbench.bulk.difference", before, after) == pieces


def test_texts_too_long_to_compare_are_told_as_a_whole(call):
    before, after = "a " * 300, "b " * 300
    assert call("workbench.bulk.difference", before, after) == [["gone", before], ["new", after]]


@pytest.mark.parametrize(
    ("text", "kept_end", "before", "cut"),
    [
        ("a fox in snow", 5, 60, {"kept": "a fox", "dropped": " in snow"}),
        ("one two three four", 13, 8, {"kept": "…three", "dropped": " four"}),
        ("a fox", 5, 60, {"kept": "a fox", "dropped": ""}),
    ],
)
def test_a_caption_is_cut_where_the_model_stops_reading(call, text, kept_end, before, cut):
    assert call("workbench.tokens.cut", text, kept_end, before) == cut


@pytest.mark.parametrize(
    ("box", "size", "place"),
    [
        ([0, 0, 100, 100], (100, 100), ("0%", "0%", "100%", "100%")),
        ([0, 10, 200, 90], (200, 100), ("0%", "30%", "100%", "40%")),
        ([10, 0, 90, 200], (100, 200), ("30%", "0%", "40%", "100%")),
    ],
)
def test_a_crop_is_outlined_where_the_thumbnail_shows_it(call, box, size, place):
    left, top, width, height = place
    assert call("workbench.check.outline", box, {"width": size[0], "height": size[1]}) == {"left": left, "top": top, "width": width, "height": height}


def test_words_are_listed_by_commas_of_both_scripts_and_lines(call):
    assert call("workbench.words.listed", "a fox, 水墨，雪\n ink wash ,, ") == ["a fox", "水墨", "雪", "ink wash"]


@pytest.mark.parametrize(
    ("message", "hint", "said"),
    [("too small", "Use larger ones.", "too small. Use larger ones."), ("Stopped.", "Try again.", "Stopped. Try again."), ("too small", "", "too small"), ("", "", "")],
)
def test_a_remark_and_its_hint_are_one_text(call, message, hint, said):
    assert call("workbench.sentence", message, hint) == said
