"""How often tags and words are used."""

from __future__ import annotations

from lora_trainer.webui.captions.tag_counts import TagCount, is_sentence, mostly, table


def test_tags_are_counted_once_a_caption_in_their_usual_spelling():
    found = table(["Red fur, fox", "red fur, snow, red fur", "red fur，狐狸", ""])
    assert (found.captions, found.distinct) == (3, 4)
    assert found.tags[0] == TagCount(tag="red fur", count=3)
    assert {tag.tag for tag in found.tags} == {"red fur", "fox", "snow", "狐狸"}


def test_the_most_frequent_or_the_first_by_name_are_kept():
    captions = ["b, a", "b, c", "b, c"]
    assert [(tag.tag, tag.count) for tag in table(captions, most=2).tags] == [("b", 3), ("c", 2)]
    assert [tag.tag for tag in table(captions, sort="name", most=2).tags] == ["a", "b"]
    assert table(captions, most=2).distinct == 3


def test_words_say_something():
    found = table(
        ["A fox sits in the snow, it's a don't-touch fox.", "Snow on a 雪 field"], "words"
    )
    assert {tag.tag: tag.count for tag in found.tags} == {
        "fox": 1,
        "sits": 1,
        "snow": 2,
        "it's": 1,
        "don't-touch": 1,
        "雪": 1,
        "field": 1,
    }


def test_sentences_are_told_from_tags():
    assert is_sentence("A red fox is sitting in the snow under a tree.")
    assert not is_sentence("1girl, red hair, looking at viewer")
    assert (
        mostly(
            [
                "A red fox is sitting in the snow.",
                "1girl, solo",
                "A wolf runs through the dark forest.",
            ]
        )
        == "sentences"
    )
    assert mostly(["", "1girl, solo"]) == "tags" == mostly([])
