"""Captions from fields and back, and captions against a vocabulary."""

from __future__ import annotations

import pytest

from lora_trainer.dataset.template import (
    Vocabulary,
    compose,
    departures,
    read_vocabulary,
    split,
    write_vocabulary,
)
from lora_trainer.errors import DatasetError

FOX = {
    "subject": "a red fox",
    "action": "running",
    "features": "wearing a blue scarf",
    "scene": "in a snowy forest",
    "style": "watercolor painting",
    "light": "soft morning light",
    "colour": "muted colors",
}


def test_fields_compose_a_caption_in_their_natural_order():
    assert (
        compose(dict(reversed(FOX.items())))
        == "a red fox, running, wearing a blue scarf, in a snowy forest, watercolor painting, soft"
        " morning light, muted colors"
    )


def test_empty_fields_leave_no_commas():
    assert (
        compose({"subject": " a fox ", "action": "", "light": "backlit, , neon glow ,"})
        == "a fox, backlit, neon glow"
    )
    assert compose({}) == ""


def test_an_unknown_field_is_refused():
    with pytest.raises(DatasetError, match="no field mood"):
        compose({"mood": "calm"})


def test_a_composed_caption_is_split_into_its_fields_again():
    assert split(compose(FOX)) == FOX


@pytest.mark.parametrize(
    "caption",
    [
        "1girl, solo, long hair, smiling, neon lighting, city street",
        "a fox",
        "",
        "一只猫，雪地",
        "fox, fox, lit by fire, x",
    ],
)
def test_no_part_is_lost_in_splitting(caption):
    parts = sorted(part.strip() for part in caption.replace("，", ",").split(",") if part.strip())
    assert sorted(part for part in compose(split(caption)).split(", ") if part) == parts


def test_the_vocabulary_knows_fields_better():
    vocabulary = Vocabulary(fields={"scene": ("polished metal surface",)})
    assert (
        split("robot, a polished metal surface", vocabulary)["scene"] == "a polished metal surface"
    )


# --- the file -------------------------------------------------------------------------------------


def test_a_vocabulary_is_written_and_read_again(tmp_path):
    vocabulary = Vocabulary(
        opening="科幻实验室",
        fields={"scene": ("polished metal surface",), "light": ("neon", "cold light")},
    )
    assert read_vocabulary(tmp_path) is None
    write_vocabulary(tmp_path, vocabulary)
    assert read_vocabulary(tmp_path) == vocabulary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "is not a vocabulary"),
        ("opening: [a]\n", "is not a vocabulary"),
        ("words: {}\n", "is not a vocabulary"),
        ("fields: {mood: [a]}\n", "no field mood"),
        ("fields: {light: neon}\n", "light is not a list"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, text, message):
    (tmp_path / "vocabulary.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_vocabulary(tmp_path)


def test_an_empty_file_is_an_empty_vocabulary(tmp_path):
    (tmp_path / "vocabulary.yaml").write_text("", encoding="utf-8")
    assert read_vocabulary(tmp_path) == Vocabulary()


# --- captions against it --------------------------------------------------------------------------

LAB = Vocabulary(
    opening="sci-fi laboratory",
    fields={
        "scene": ("polished metal surface",),
        "light": ("cold blue light",),
        "features": ("grey armour",),
    },
)


@pytest.mark.parametrize(
    ("caption", "fixed"),
    [
        ("sci fi laboratory, polished metal surfaces", "sci-fi laboratory, polished metal surface"),
        (
            "a robot in gray armor, cold blue lights",
            "sci-fi laboratory, a robot in grey armour, cold blue light",
        ),
        ("a robot, sci-fi laboratory", "sci-fi laboratory, a robot"),
        ("polished medal surface", "sci-fi laboratory, polished metal surface"),
        ("zorbl, a robot", "zorbl, sci-fi laboratory, a robot"),
        ("Sci-Fi lab, a robot", "sci-fi laboratory, a robot"),
    ],
)
def test_departures_come_with_the_caption_as_it_should_be(caption, fixed):
    (found,) = departures({"a.png": caption}, LAB, "zorbl")
    assert found.fixed == fixed
    assert departures({"a.png": fixed}, LAB, "zorbl") == []


@pytest.mark.parametrize(
    "caption",
    [
        "sci-fi laboratory, a robot",
        "Sci-Fi Laboratory at night",
        "zorbl, sci-fi laboratory",
        "",
        "  ",
    ],
)
def test_captions_that_keep_to_it_are_left_alone(caption):
    assert departures({"a.png": caption}, LAB, "zorbl") == []


def test_other_words_are_not_taken_for_preferred_ones():
    vocabulary = Vocabulary(fields={"light": ("night light", "neon"), "scene": ("forest",)})
    assert departures({"a": "bright light, noon, florist, the forest"}, vocabulary) == []


def test_what_was_written_and_what_is_preferred_are_named():
    (found,) = departures({"a": "sci-fi laboratory, cold blue lights"}, LAB)
    assert (found.lacks_opening, found.variants) == (
        False,
        (("cold blue lights", "cold blue light"),),
    )
