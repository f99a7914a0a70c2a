"""lora_trainer_captions.js and lora_trainer_upload.js: their pure parts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("scripts")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def scripts(script_page):
    for name in (
        "lora_trainer_dataset.js",
        "lora_trainer_upload.js",
        "lora_trainer_images.js",
        "lora_trainer_captions.js",
    ):
        script_page.add_script_tag(path=ROOT / "javascript" / name)


@pytest.mark.parametrize(
    ("text", "tidy"),
    [(" a\r\n\r\n fox,  snow ", "a\nfox, snow"), ("", ""), ("\n", ""), ("狐狸\u3000雪", "狐狸 雪")],
)
def test_a_caption_is_compared_as_the_server_keeps_it(call, text, tidy):
    from lora_trainer.dataset.edits import clean

    assert call("captions.tidy", text) == tidy == clean(text)


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
    assert call("captions.words", text) == count


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
        call("captions.hasTrigger", text, word) == found == (with_trigger_word(text, word) == text)
    )


def test_captions_are_sent_after_the_images_they_belong_to(call):
    assert [
        call("upload.rank", {"path": path})
        for path in ("a.png", "x/b.JPG", "set.zip", "a.txt", "metadata.CSV", "photo")
    ] == [0, 0, 1, 2, 2, 0]
