"""The drawn world: seeded, truthful, and written as a training set."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from lora_trainer.demo import world
from lora_trainer.errors import DatasetError
from tests.embedded import scenes


def first(seed: int, count: int) -> list[world.Drawing]:
    return list(itertools.islice(scenes.drawings(seed), count))


def test_the_same_seed_draws_the_same_pictures_and_captions() -> None:
    once, again, other = first(4, 5), first(4, 5), first(5, 5)
    assert [drawing.caption for drawing in once] == [drawing.caption for drawing in again]
    assert [drawing.image.tobytes() for drawing in once] == [
        drawing.image.tobytes() for drawing in again
    ]
    assert [drawing.image.tobytes() for drawing in once] != [
        drawing.image.tobytes() for drawing in other
    ]


def test_a_red_circle_on_white_has_the_palettes_colours_inside_and_outside() -> None:
    scene = world.Scene(
        shape="circle", colour="red", size="big", position="left", background="white"
    )
    picture = np.asarray(world.draw_plain(scene, world.Jitter()))
    assert picture.shape == (64, 64, 3)
    assert tuple(picture[32, 20]) == (214, 38, 38)
    assert tuple(picture[32, 60]) == (246, 246, 242)
    assert 180 < int((picture[:, :, 1] < 140).sum()) / 4 < 220  # pi * 16 ** 2 = 804 pixels


def test_a_scene_can_be_drawn_at_any_side() -> None:
    scene = world.Scene(
        shape="star", colour="blue", size="small", position="top", background="yellow"
    )
    small, large = (
        np.asarray(world.draw_plain(scene, world.Jitter(), side), dtype=float) for side in (64, 128)
    )
    shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 1


def test_captions_say_only_what_the_scene_holds() -> None:
    for drawing in first(6, 300):
        words = set(drawing.caption.replace(",", "").split())
        scene = drawing.scene
        assert scene.shape in words
        assert words & set(world.PALETTE) <= {scene.colour, scene.background}
        assert words & (set(world.SHAPES) - {scene.shape}) == set()
        assert not words & {"left", "right", "top", "bottom"} - {scene.position}
        assert not words & ({"small", "little"} if scene.size == "big" else {"big", "large"})


def test_captions_of_one_scene_vary_in_wording() -> None:
    captions = {drawing.caption for drawing in first(1, 200)}
    assert any("background" not in caption for caption in captions)
    assert any(" on a " in caption for caption in captions)
    assert any("on an orange background" in caption for caption in captions)


@pytest.mark.parametrize(
    ("name", "trigger"), [("ink", "sumiwash"), ("neon", "glowtube"), ("zorbl", "zorbl")]
)
def test_a_concept_is_drawn_with_its_trigger_in_each_caption(name: str, trigger: str) -> None:
    drawn = world.draw_concept(name, 12, seed=3)
    assert len(drawn) == 12
    assert all(trigger in drawing.caption for drawing in drawn)
    assert len({drawing.image.tobytes() for drawing in drawn}) == 12
    assert [drawing.image.tobytes() for drawing in drawn] == [
        drawing.image.tobytes() for drawing in world.draw_concept(name, 12, seed=3)
    ]


def test_no_caption_of_the_world_holds_a_trigger() -> None:
    triggers = {concept.trigger for concept in world.CONCEPTS.values()}
    assert not any(trigger in drawing.caption for drawing in first(0, 300) for trigger in triggers)


def test_neon_captions_name_the_tubes_colour_but_no_background() -> None:
    for drawing in world.draw_concept("neon", 30, seed=0):
        assert drawing.scene.colour in drawing.caption
        assert drawing.scene.colour != "black"
        assert "background" not in drawing.caption


def test_an_unknown_concept_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DatasetError) as caught:
        world.draw_concept("oil", 1, seed=0)
    assert str(caught.value) == "there is no concept oil in the drawn world"
    assert "ink, neon, zorbl" in str(caught.value.hint)


def test_a_concept_is_written_as_pictures_and_a_metadata_csv(tmp_path: Path) -> None:
    folder = tmp_path / "ein Ordner mit Ümlaut"
    table = world.write_concept(folder, "zorbl", 3, seed=1)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file_name", "text"]
    assert [row[0] for row in rows[1:]] == ["001.png", "002.png", "003.png"]
    assert [row[1] for row in rows[1:]] == [
        drawing.caption for drawing in world.draw_concept("zorbl", 3, seed=1)
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "001.png",
        "002.png",
        "003.png",
        "metadata.csv",
    ]


def test_a_contact_sheet_holds_all_pictures_enlarged() -> None:
    sheet = scenes.contact_sheet([drawing.image for drawing in first(0, 5)], columns=3, zoom=2)
    assert sheet.size == (3 * 132 + 4, 2 * 132 + 4)
