"""The workbench's pure parts: what differs between two captions, where a caption is cut, where a
crop lies in a thumbnail, which tags are offered.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("scripts")


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        (
            "a red fox",
            "a blue fox",
            [["same", "a "], ["gone", "red"], ["new", "blue"], ["same", " fox"]],
        ),
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
    assert call("captions/difference.difference", before, after) == pieces


def test_texts_too_long_to_compare_are_told_as_a_whole(call):
    before, after = "a " * 300 + "z", "b " * 300 + "y"
    assert call("captions/difference.difference", "fox " + before, "fox " + after) == [
        ["same", "fox "],
        ["gone", before],
        ["new", after],
    ]


def test_a_word_more_in_a_very_long_caption_is_told_alone(call):
    long = ", ".join(f"tag {number}" for number in range(400))
    assert call("captions/difference.difference", long, long + ", ink") == [
        ["same", long],
        ["new", ", ink"],
    ]
    assert call("captions/difference.difference", long, "ink, " + long) == [
        ["new", "ink, "],
        ["same", long],
    ]


@pytest.mark.parametrize(
    ("text", "kept_end", "before", "cut"),
    [
        ("a fox in snow", 5, 60, {"kept": "a fox", "dropped": " in snow"}),
        ("one two three four", 13, 8, {"kept": "…three", "dropped": " four"}),
        ("a fox", 5, 60, {"kept": "a fox", "dropped": ""}),
    ],
)
def test_a_caption_is_cut_where_the_model_stops_reading(call, text, kept_end, before, cut):
    assert call("captions/tokens.cut", text, kept_end, before) == cut


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
    assert call("captions/check.outline", box, {"width": size[0], "height": size[1]}) == {
        "left": left,
        "top": top,
        "width": width,
        "height": height,
    }


def test_words_are_listed_by_commas_of_both_scripts_and_lines(call):
    assert call("captions/vocabulary.listed", "a fox, 水墨，雪\n ink wash ,, ") == [
        "a fox",
        "水墨",
        "雪",
        "ink wash",
    ]


@pytest.mark.parametrize(
    ("text", "place", "tag"),
    [
        ("1girl, red ha, sky", 13, {"from": 7, "to": 13, "typed": "red ha", "whole": "red ha"}),
        ("1girl, red ha, sky", 10, {"from": 7, "to": 13, "typed": "red", "whole": "red ha"}),
        ("红发，蓝", 4, {"from": 3, "to": 4, "typed": "蓝", "whole": "蓝"}),
        ("1girl, ", 7, {"from": 7, "to": 7, "typed": "", "whole": ""}),
        ("", 0, {"from": 0, "to": 0, "typed": "", "whole": ""}),
    ],
)
def test_the_tag_that_is_being_typed_stands_between_two_commas(call, text, place, tag):
    assert call("captions/complete.tagAt", text, place) == tag


@pytest.mark.parametrize(
    ("typed", "present", "offered"),
    [
        ("ha", [], ["hat", "red hair", "shadow hat"]),
        ("red_h", [], ["red hair"]),
        ("HAI", ["red hair"], []),
        ("air", [], ["red hair"]),
        ("a", [], []),
        ("fa", [], ["saber \\(fate\\)"]),
        ("  ", [], []),
    ],
)
def test_tags_that_begin_with_it_are_offered_first_and_the_frequent_before_the_rare(
    call, typed, present, offered
):
    tags = [
        {"tag": "red hair", "count": 9},
        {"tag": "saber \\(fate\\)", "count": 5},
        {"tag": "shadow hat", "count": 4},
        {"tag": "hat", "count": 2},
    ]
    assert [
        found["tag"] for found in call("captions/complete.fitting", tags, typed, present)
    ] == offered


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([("metadata", "metadata.csv"), ("metadata", "metadata.csv"), (None, None)], False),
        ([("text", "a.txt"), ("text", "b.txt")], False),
        ([("metadata", "metadata.csv"), ("text", "b.txt")], True),
        ([("metadata", "metadata.csv"), ("metadata", "sub/metadata.csv")], True),
        ([], False),
    ],
)
def test_where_a_caption_comes_from_is_told_only_where_they_come_from_several_places(
    call, sources, told
):
    assert (
        call(
            "captions/bench.hasSeveralSources",
            [{"source": source, "caption_file": file} for source, file in sources],
        )
        is told
    )
