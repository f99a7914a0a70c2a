"""A caption in tokens, the pieces it is cut into, and what a trigger word is to CLIP: with CLIP's own vocabulary."""

from __future__ import annotations

import pytest

from lora_trainer.checkpoint.tokenizer import tokenize
from lora_trainer.dataset.tokens import look_at_trigger, piece_ends, view


def parts_of(text: str) -> list[str]:
    return [text[token.start : token.end] for token in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A PHOTO  of\n a\tCAT ", ["A", "PHOTO", "of", "a", "CAT"]),
        ("sumiwash, a pond", ["su", "mi", "wash", ",", "a", "pond"]),
        ("ＦＵＬＬ ｗｉｄｔｈ", ["ＦＵＬＬ", "ｗｉｄｔｈ"]),  # repaired to ASCII before it is read
        ("Tom &amp; Jerry", ["Tom", "&", "Jerry"]),
        ("一只猫", ["一", "一", "只", "只", "猫", "猫", "猫"]),  # several tokens in one character
        ("naïve café", ["na", "ï", "ve", "café"]),
        ("", []),
    ],
)
def test_tokens_know_their_place_in_the_text_as_it_was_written(text, parts):
    assert parts_of(text) == parts


def test_a_caption_that_fits_is_one_piece_and_loses_nothing():
    seen = view("a red fox in the snow", tokenize)
    assert (seen.count, seen.pieces, seen.piece_counts, seen.kept_end, seen.dropped) == (6, ((0, 21),), (6,), 21, "")


def test_an_empty_caption_has_no_tokens():
    seen = view("  ", tokenize)
    assert (seen.count, seen.pieces, seen.dropped) == (0, (), "")


def test_what_falls_off_the_end_is_shown_to_the_character():
    text = " ".join(["cat"] * 75) + " tail end"
    seen = view(text, tokenize)
    assert (seen.count, seen.piece_counts, seen.kept_end) == (77, (75,), 299)
    assert seen.dropped == " tail end"
    assert view(text, tokenize, limit=150).dropped == ""


def test_a_piece_is_cut_after_a_comma_near_its_end_as_the_webui_does():
    text = " ".join(["cat"] * 60) + ", " + " ".join(["dog"] * 30)
    seen = view(text, tokenize)
    assert seen.piece_counts == (61,)
    assert seen.dropped == " " + " ".join(["dog"] * 30)
    both = view(text, tokenize, limit=150)
    assert both.piece_counts == (61, 30) and both.dropped == ""


def test_a_comma_too_far_from_the_end_does_not_cut():
    assert piece_ends([1] * 50 + [267] + [1] * 40) == [75, 91]
    assert piece_ends([1] * 56 + [267] + [1] * 40) == [57, 97]
    assert piece_ends([]) == [0]


@pytest.mark.parametrize(
    ("word", "kind", "is_good"),
    [
        ("sks", "rare", True), ("ohwx", "rare", True), ("zorbl", "made-up", True), ("sumiwash", "made-up", True), ("cat", "common", False),
        ("laboratory", "common", False), ("vhs", "uncommon", False), ("red fox", "phrase", False),
    ],
)  # fmt: skip
def test_a_trigger_is_good_where_it_means_nothing_yet(word, kind, is_good):
    seen = look_at_trigger(word, tokenize)
    assert (seen.kind, seen.is_good) == (kind, is_good)


def test_a_trigger_is_shown_with_its_tokens():
    seen = look_at_trigger(" glowtube ", tokenize)
    assert seen.parts == (("glow", 30472), ("tube", 3308))
    assert str(seen.message) == '"glowtube" is a made-up word of 2 tokens: glow + tube'
