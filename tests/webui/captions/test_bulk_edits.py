"""What each bulk edit makes of a caption."""

from __future__ import annotations

import pytest

from lora_trainer.dataset.template import Vocabulary
from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions import bulk_edits
from lora_trainer.webui.captions.bulk_edits import action, title


def edited(caption, vocabulary=None, others=(), **values):
    return action(values, [caption, *others], vocabulary)(caption)


@pytest.mark.parametrize(
    ("at", "caption", "after"),
    [
        ("end", "a fox, snow", "a fox, snow, ink wash"),
        ("front", "a fox, snow", "ink wash, a fox, snow"),
        ("after-first", "sks, a fox", "sks, ink wash, a fox"),
        ("end", "", "ink wash"),
        ("end", "a fox, Ink Wash", "a fox, Ink Wash"),
        ("end", "A fox sits in snow.", "A fox sits in snow., ink wash"),
        ("end", "a fox, ", "a fox, ink wash"),
    ],
)
def test_adding_puts_tags_where_they_are_wanted_and_never_twice(at, caption, after):
    assert edited(caption, do="add", text="ink wash", at=at) == after


def test_several_tags_are_added_and_those_that_are_there_are_left_out():
    assert (
        edited("a fox, snow", do="add", text="ink wash, snow, 水墨", at="end")
        == "a fox, snow, ink wash, 水墨"
    )


def test_removing_takes_whole_tags_only():
    assert edited("1girl, red hair, hair", do="remove", tags=["Hair"]) == "1girl, red hair"
    assert edited("a;  b", do="remove", tags=["x"]) == "a;  b"
    assert edited("红发，狐狸", do="remove", tags=["狐狸"]) == "红发"


def test_replacing_text_is_literal_unless_asked_otherwise():
    assert (
        edited("a (fox) and a FOX", do="replace", find="(fox)", replace="wolf")
        == "a wolf and a FOX"
    )
    assert (
        edited("foxes, fox", do="replace", find="fox", replace="wolf", whole=True) == "foxes, wolf"
    )
    assert edited("Fox, fox", do="replace", find="fox", replace="wolf", case=True) == "Fox, wolf"
    assert edited("a fox", do="replace", find="fox", replace=r"\1") == r"a \1"


def test_what_is_replaced_by_nothing_leaves_no_empty_part():
    assert edited("a fox, snow, ink", do="remove-text", text="snow") == "a fox, ink"
    assert edited("snow, a fox", do="remove-text", text="snow") == "a fox"
    assert edited("snow", do="remove-text", text="snow") == ""


def test_a_regular_expression_may_use_its_groups():
    assert (
        edited(
            "red hair, blue eyes",
            do="replace",
            regex=True,
            find=r"(\w+) (hair|eyes)",
            replace=r"\2: \1",
        )
        == "hair: red, eyes: blue"
    )
    assert edited("a fox 12", do="replace", regex=True, find=r"\s*\d+$", replace="") == "a fox"


def test_a_pattern_that_is_none_is_told_with_its_place():
    with pytest.raises(
        DatasetError,
        match=r"regular expression is invalid: missing \), unterminated subpattern \(at character 3\)",
    ):
        edited("a", do="replace", regex=True, find="a (b", replace="")
    with pytest.raises(
        DatasetError, match="the replacement cannot be used: invalid group reference 2"
    ):
        edited("a", do="replace", regex=True, find="(a)", replace=r"\2")


def test_a_pattern_that_runs_away_is_ended(monkeypatch):
    monkeypatch.setattr(bulk_edits, "REGEX_SECONDS", 1.0)
    with pytest.raises(DatasetError, match="took longer than 1 seconds"):
        edited("a" * 60 + "!", do="replace", regex=True, find="(a+)+$", replace="b")


def test_sorting_keeps_the_first_and_may_follow_frequency():
    assert (
        edited("sks, Zoo, apple, fox", do="sort", by="name", keep_first=1) == "sks, apple, fox, Zoo"
    )
    assert edited("c, b, a", do="sort", by="frequency", others=["b, x", "b, a"]) == "b, a, c"


def test_repeated_tags_go_and_the_first_stays_where_it_is():
    assert edited("Fox, snow, fox, ink, SNOW", do="dedupe") == "Fox, snow, ink"
    assert edited("Two foxes. They sleep, cold", do="dedupe") == "Two foxes. They sleep, cold"


def test_tidying_fixes_spaces_and_commas():
    assert edited(" a fox ,,snow，  ink wash, ", do="tidy") == "a fox, snow, ink wash"


def test_replacing_a_tag_makes_no_repetition():
    assert (
        edited("grey fur, gray fur, fox", do="replace-tag", tag="grey fur", replace="gray fur")
        == "gray fur, fox"
    )
    assert edited("fox, snow", do="replace-tag", tag="snow", replace="") == "fox"


def test_the_trigger_word_comes_in_front_and_an_older_one_goes():
    assert edited("a fox", do="trigger", word="sks") == "sks, a fox"
    assert edited("a SKS fox", do="trigger", word="sks") == "a SKS fox"
    assert (
        edited("old_style, a fox", do="trigger", word="sks", instead_of="old_style") == "sks, a fox"
    )
    with pytest.raises(DatasetError, match="contains a comma"):
        edited("a fox", do="trigger", word="sks, style")


def test_fields_compose_a_caption_or_replace_their_part_of_it():
    assert (
        edited("anything", do="compose", fields={"light": "soft light", "subject": "a red fox"})
        == "a red fox, soft light"
    )
    kept = edited(
        "a fox, sleeping, soft light",
        do="compose",
        keep=True,
        fields={"light": "neon light", "style": ""},
    )
    assert kept == "a fox, sleeping, neon light"
    order = ("style", "subject", "action", "features", "scene", "light", "colour")
    assert (
        action({"do": "compose", "fields": {"subject": "a fox", "style": "ink"}}, [], None, order)(
            "x"
        )
        == "ink, a fox"
    )
    with pytest.raises(DatasetError, match="a caption has no field mood"):
        edited("x", do="compose", fields={"mood": "grim"})


def test_the_vocabulary_fixes_captions():
    words = Vocabulary(
        opening="sci-fi laboratory", fields={"features": ("polished metal surface",)}
    )
    assert (
        edited("a robot, polished metal surfaces", words, do="vocabulary")
        == "sci-fi laboratory, a robot, polished metal surface"
    )
    with pytest.raises(DatasetError, match="has no vocabulary yet"):
        edited("x", None, do="vocabulary")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"do": "add", "text": " , "}, "there is nothing to add"),
        ({"do": "remove", "tags": []}, "no tag was chosen"),
        ({"do": "replace", "find": ""}, "there is nothing to search for"),
        ({"do": "explode"}, "explode is not a bulk edit"),
        ({"do": "set", "caption": "x" * 5001}, "longer than 5000 characters"),
    ],
)
def test_what_makes_no_sense_is_said(values, sentence):
    with pytest.raises(DatasetError, match=sentence):
        action(values, ["a"])


def test_an_edit_is_called_by_what_it_did():
    assert str(title({"do": "replace", "find": "fox", "replace": "wolf"})) == "fox replaced by wolf"
    assert str(title({"do": "remove", "tags": ["a", "b"]})) == "Removed: a, b"
    assert str(title({"do": "add", "text": "y" * 99})) == "Added: " + "y" * 59 + "…"


@pytest.mark.parametrize(
    ("caption", "text", "expected"),
    [
        ("a cat, with a hat.", "with a hat", "a cat."),
        ("a cat with a hat, sun", "with a hat", "a cat, sun"),
        ("a,  b , hat ,  c", "hat", "a,  b , c"),
        ("a  cat,  big , red.", "red", "a  cat,  big."),
        ("A fox. A hat. A  dog", "A hat.", "A fox. A  dog"),
        ("hat", "hat", ""),
    ],
)
def test_what_is_removed_takes_its_comma_along_and_nothing_else_changes(caption, text, expected):
    assert action({"do": "remove-text", "text": text}, [caption])(caption) == expected
    assert (
        action(
            {"do": "replace", "find": text.replace(".", r"\."), "replace": "", "regex": True},
            [caption],
        )(caption)
        == expected
    )


def test_tags_in_brackets_stay_together():
    caption = "b, (red, blue:1.2), a {sitting, arms up}, B"
    assert (
        action({"do": "sort"}, [caption])(caption) == "(red, blue:1.2), a {sitting, arms up}, b, B"
    )
    assert (
        action({"do": "dedupe"}, [caption])(caption) == "b, (red, blue:1.2), a {sitting, arms up}"
    )
    assert (
        action({"do": "remove", "tags": ["(red, blue:1.2)"]}, [caption])(caption)
        == "b, a {sitting, arms up}, B"
    )


@pytest.mark.parametrize("regex", [False, True])
def test_a_replacement_does_not_grow_without_limit(regex):
    with pytest.raises(DatasetError, match="a caption would have"):
        caption = "a" * 1000
        action({"do": "replace", "find": "a", "replace": "x" * 5000, "regex": regex}, [caption])(
            caption
        )
