"""What captions/text.js and images/upload.js say of a text and a file."""

from __future__ import annotations

import pytest

from lora_trainer.dataset.listing import CAPTION_SUFFIXES
from lora_trainer.dataset.metadata import JSON_SUFFIX, TABLE_SUFFIXES

pytestmark = pytest.mark.xdist_group("scripts")


@pytest.mark.parametrize(
    ("text", "tidy"),
    [(" a\r\n\r\n fox,  snow ", "a\nfox, snow"), ("", ""), ("\n", ""), ("狐狸\u3000雪", "狐狸 雪")],
)
def test_a_caption_is_compared_as_the_server_keeps_it(call, text, tidy):
    from lora_trainer.dataset.edits import clean

    assert call("captions/text.tidy", text) == tidy == clean(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a red fox, snow", 4),
        ("1girl, solo", 2),
        ("水墨画", 3),
        ("a 水墨 fox", 4),
        ("blue-green hanfu", 2),
        (" , ,", 0),
    ],
)
def test_words_are_counted_in_english_and_chinese(call, text, count):
    assert call("captions/text.wordCount", text) == count


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("sks, a fox", "sks", True),
        ("a SKS fox", "sks", True),
        ("tasks", "sks", False),
        ("a fox", "sks", False),
        ("a (x+y) fox", "(x+y)", True),
        ("水墨风, 狐狸", "水墨风", True),
        ("一张水墨风的画", "水墨风", False),
        ("ink_wash", "ink", False),
    ],
)
def test_the_trigger_word_counts_as_a_whole_word_as_in_training(call, text, word, found):
    from lora_trainer.dataset.captions import with_trigger_word

    assert (
        call("captions/text.hasTrigger", text, word)
        == found
        == (with_trigger_word(text, word) == text)
    )


def test_captions_are_sent_after_the_images_they_belong_to(call):
    assert [
        call("images/upload.rank", {"path": path})
        for path in ("a.png", "x/b.JPG", "set.zip", "metadata.CSV", "meta_cap.json", "photo")
    ] == [0, 0, 1, 2, 2, 0]
    for suffix in (*CAPTION_SUFFIXES, *TABLE_SUFFIXES, JSON_SUFFIX):
        assert call("images/upload.rank", {"path": f"a{suffix}"}) == 2, suffix
