"""A caption in tokens, the pieces it is cut into, and what a trigger word is to CLIP: with CLIP's
own vocabulary.
"""

from __future__ import annotations

import pytest

from lora_trainer.checkpoint.tokenizer import tokenize
from lora_trainer.dataset.tokens import check_trigger_word, piece_ends, read_end


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


def unread(text: str, limit: int = 75) -> str:
    return text[read_end(text, tokenize, limit) :]


@pytest.mark.parametrize("text", ["a red fox in the snow", "  ", "", " ".join(["cat"] * 75)])
def test_a_caption_that_fits_loses_nothing(text):
    assert read_end(text, tokenize) == len(text)


def test_what_falls_off_the_end_is_known_to_the_character():
    text = " ".join(["cat"] * 75) + " tail end"
    assert unread(text) == " tail end"
    # a model that has no pieces
    assert unread(" ".join(["cat"] * 502) + " tail end", 502) == " tail end"
    assert unread(text, limit=150) == ""


def test_a_piece_is_cut_after_a_comma_near_its_end_as_the_webui_does():
    text = " ".join(["cat"] * 60) + ", " + " ".join(["dog"] * 30)
    assert unread(text) == " " + " ".join(["dog"] * 30)
    assert unread(text, limit=150) == ""


def test_a_comma_too_far_from_the_end_does_not_cut():
    assert piece_ends([1] * 50 + [267] + [1] * 40) == [75, 91]
    assert piece_ends([1] * 56 + [267] + [1] * 40) == [57, 97]
    assert piece_ends([]) == [0]


@pytest.mark.parametrize(
    ("word", "kind", "is_good"),
    [
        ("sks", "rare", True),
        ("ohwx", "rare", True),
        ("zorbl", "made-up", True),
        ("sumiwash", "made-up", True),
        ("cat", "common", False),
        ("laboratory", "common", False),
        ("vhs", "uncommon", False),
        ("red fox", "phrase", False),
    ],
)
def test_a_trigger_is_good_where_it_means_nothing_yet(word, kind, is_good):
    seen = check_trigger_word(word, tokenize)
    assert (seen.kind, seen.is_good) == (kind, is_good)


def test_a_trigger_is_shown_with_its_tokens():
    seen = check_trigger_word(" glowtube ", tokenize)
    assert seen.parts == (("glow", 30472), ("tube", 3308))
    assert str(seen.message) == '"glowtube" is a made-up word of 2 tokens: glow + tube'
