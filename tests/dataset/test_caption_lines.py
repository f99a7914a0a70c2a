"""Several lines of a caption are several captions of one image, or one list of tags; never glued,
whatever is done to them.
"""

from __future__ import annotations

from random import Random

import pytest

from lora_trainer.dataset.captions import (
    MAX_CAPTION_LENGTH,
    caption_of,
    edited,
    is_list,
    parts,
    training_caption,
    variants,
    with_trigger_word,
)
from lora_trainer.dataset.edits import clean
from lora_trainer.errors import DatasetError

BOATS = "a red boat on a lake\n1boat, red, lake, reeds\nthe boat lies still"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a red boat on a lake\r\n\r\n1boat, red, lake, reeds\r\nthe boat lies still\r\n",
            BOATS.split("\n"),
        ),
        ("1girl\nred hair\nlooking_at_viewer\n", ["1girl, red hair, looking_at_viewer"]),
        ("1girl,\nred hair,\nsmile,", ["1girl, red hair, smile"]),
        (
            "a red fox sits in the snow,\nlooking at the camera",
            ["a red fox sits in the snow, looking at the camera"],
        ),
        ("A fox.\nA cat.", ["A fox.", "A cat."]),
        ("红发少女\n蓝天\n微笑", ["红发少女, 蓝天, 微笑"]),
        ("一只红色的狐狸坐在雪地里\n雪地里的狐狸", ["一只红色的狐狸坐在雪地里", "雪地里的狐狸"]),
        ("{sitting, arms up}\nsmile", ["{sitting, arms up}, smile"]),
        ("a  fox,\t red ", ["a fox, red"]),
        ("", [""]),
    ],
)
def test_lines_are_captions_of_their_own_or_one_list_of_tags(text, expected):
    assert variants(caption_of(text)) == expected


def test_each_of_several_captions_is_drawn_and_one_alone_draws_nothing():
    drawn = [
        training_caption(BOATS, shuffle=False, keep_tokens=0, dropout=0.0, random=Random(step))
        for step in range(60)
    ]
    assert set(drawn) == set(BOATS.split("\n"))
    assert drawn == [
        training_caption(BOATS, shuffle=False, keep_tokens=0, dropout=0.0, random=Random(step))
        for step in range(60)
    ]
    random = Random(1)
    before = random.getstate()
    assert (
        training_caption("1girl\nsmile", shuffle=False, keep_tokens=0, dropout=0.0, random=random)
        == "1girl, smile"
    )
    assert random.getstate() == before


def test_the_trigger_word_goes_in_front_of_each():
    assert with_trigger_word("a boat\nan sks boat, red", "sks") == "sks, a boat\nan sks boat, red"
    assert with_trigger_word("1girl\nsmile", "sks") == "sks\n1girl\nsmile"


def test_an_edit_keeps_the_lines():
    assert edited(BOATS, lambda line: line.replace("boat", "ship")) == BOATS.replace("boat", "ship")
    assert edited("1girl\nsmile", lambda line: f"{line}, sun") == "1girl\nsmile\nsun"
    assert edited("1girl,\nsmile,", lambda line: f"{line}, sun") == "1girl,\nsmile,\nsun,"
    assert edited("1girl\nsmile", lambda line: line) == "1girl\nsmile"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a {sitting, arms up}, b", ["a {sitting, arms up}", "b"]),
        ("(red, blue:1.2), [a, (b, c)], d", ["(red, blue:1.2)", "[a, (b, c)]", "d"]),
        (r"\(red, blue\), fox \(a, b\)", [r"\(red, blue\)", r"fox \(a, b\)"]),
        (":(, smile, :), ;(, cat", [":(", "smile", ":)", ";(", "cat"]),
        ("(open, cat, dog", ["(open", "cat", "dog"]),
        ("cat), (a, b]", ["cat)", "(a", "b]"]),
        ("（红，蓝），猫", ["（红，蓝）", "猫"]),
        ("([a, b), c], d", ["([a, b)", "c]", "d"]),
    ],
)
def test_parts_are_not_cut_inside_brackets(caption, expected):
    assert parts(caption) == expected


def test_shuffling_keeps_what_stands_in_brackets():
    seen = {
        training_caption(
            "{sitting, arms up}, (red, blue:1.2)",
            shuffle=True,
            keep_tokens=0,
            dropout=0.0,
            random=Random(n),
        )
        for n in range(20)
    }
    assert seen == {"{sitting, arms up}, (red, blue:1.2)", "(red, blue:1.2), {sitting, arms up}"}


def test_a_caption_has_a_limit_and_a_sentence():
    assert clean("x" * MAX_CAPTION_LENGTH)
    with pytest.raises(DatasetError, match="the caption has 130000 characters, more than 20000"):
        clean("x" * 130_000)


def test_one_line_is_no_list():
    assert not is_list("1girl") and not is_list("")
