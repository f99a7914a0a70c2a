"""Captions: the trigger word, and what one training step sees."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lora_trainer.dataset.captions import parts, tidy, training_caption, with_trigger_word


@pytest.mark.parametrize(
    ("caption", "word", "expected"),
    [
        ("a red fox", "sks", "sks, a red fox"),
        ("a photo of sks fox", "sks", "a photo of sks fox"),
        ("a photo of SKS, snow", "sks", "a photo of SKS, snow"),
        ("desks and chairs", "sks", "sks, desks and chairs"),
        ("sks_old, fox", "sks", "sks, sks_old, fox"),
        ("a fox in ink style", "Ink Style", "a fox in ink style"),
        ("一只狐狸", "水墨", "水墨, 一只狐狸"),
        ("a fox", "c++ (style)", "c++ (style), a fox"),
        ("c++ (style), a fox", "c++ (style)", "c++ (style), a fox"),
        ("a red fox", "", "a red fox"),
        ("", "sks", "sks"),
        ("fox", " sks ", "sks, fox"),
    ],
)
def test_the_trigger_word_is_put_in_front_where_it_lacks(caption, word, expected):
    assert with_trigger_word(caption, word) == expected


def test_a_caption_is_one_line():
    assert tidy("  a fox,\n\tred \u3000 snow\r\n") == "a fox, red snow"


def test_parts_are_between_commas_of_either_width():
    assert parts("1girl, red eyes，汉服,, bamboo ") == ["1girl", "red eyes", "汉服", "bamboo"]


def caption(text: str, random: Random, **settings: object) -> str:
    return training_caption(
        text, **{"shuffle": False, "keep_tokens": 0, "dropout": 0.0, **settings}, random=random
    )  # type: ignore[arg-type]


def test_without_shuffle_and_dropout_a_caption_stays_and_nothing_is_drawn():
    random = Random(1)
    before = random.getstate()
    assert caption("a fox, ,red", random) == "a fox, ,red"
    assert random.getstate() == before


def test_shuffle_keeps_the_first_parts_and_loses_none():
    random = Random(1)
    seen = {caption("sks, a, b, c", random, shuffle=True, keep_tokens=1) for _ in range(200)}
    assert seen == {
        "sks, a, b, c",
        "sks, a, c, b",
        "sks, b, a, c",
        "sks, b, c, a",
        "sks, c, a, b",
        "sks, c, b, a",
    }


def test_keeping_more_parts_than_there_are_keeps_all():
    assert caption("a, b", Random(1), shuffle=True, keep_tokens=9) == "a, b"


def test_the_same_random_state_gives_the_same_caption():
    once, again = Random(7), Random(7)
    captions = [caption("a, b, c, d", once, shuffle=True, dropout=0.3) for _ in range(20)]
    assert len(set(captions)) > 5
    assert [caption("a, b, c, d", again, shuffle=True, dropout=0.3) for _ in range(20)] == captions


def test_dropout_empties_its_share_of_the_captions():
    random = Random(1)
    counts = Counter(caption("sks, a", random, dropout=0.25, keep_tokens=1) for _ in range(4000))
    assert set(counts) == {"", "sks, a"}
    assert 900 < counts[""] < 1100
