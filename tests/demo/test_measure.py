"""The measuring functions, judged on images whose content is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lora_trainer.demo import measure, world
from tests.embedded import scenes

DRAWN = list(itertools.islice(scenes.drawings(seed=3), 120))


def median(numbers: list[float]) -> float:
    return float(np.median(numbers))


@pytest.mark.parametrize("attribute", measure.ATTRIBUTES)
def test_drawn_pictures_are_read_as_what_they_show(attribute: str) -> None:
    right = [measure.obeyed(drawing.image, drawing.scene)[attribute] for drawing in DRAWN]
    assert sum(right) / len(right) >= 0.98


@pytest.mark.parametrize("name", ["ink", "neon"])
def test_what_a_style_keeps_is_read_from_its_pictures(name: str) -> None:
    judged = [
        measure.obeyed(drawing.image, drawing.scene, outlined=name == "neon")
        for drawing in world.draw_concept(name, 50, seed=2)
    ]
    for attribute in (*sorted(world.CONCEPTS[name].mentioned), "shape"):
        assert sum(found[attribute] for found in judged) / len(judged) >= 0.98, attribute


def test_a_picture_that_disobeys_is_told_from_one_that_obeys() -> None:
    scene = world.Scene(
        shape="star", colour="yellow", size="big", position="left", background="blue"
    )
    asked = replace(
        scene, shape="heart", colour="red", size="small", position="top", background="green"
    )
    assert set(measure.obeyed(world.draw_plain(scene, world.Jitter()), asked).values()) == {False}


def test_an_empty_picture_obeys_in_its_background_alone() -> None:
    scene = DRAWN[0].scene
    empty = Image.new("RGB", (64, 64), tuple(int(part) for part in world.PALETTE[scene.background]))
    assert measure.obeyed(empty, scene) == {
        "shape": False,
        "colour": False,
        "size": False,
        "position": False,
        "background": True,
    }


def test_reading_does_not_depend_on_the_pictures_size() -> None:
    scene = world.Scene(
        shape="heart", colour="red", size="small", position="right", background="white"
    )
    readings = [
        measure.read(world.draw_plain(scene, world.Jitter(), side)) for side in (64, 128, 256)
    ]
    seen = [tuple(getattr(reading, name) for name in measure.ATTRIBUTES) for reading in readings]
    assert seen == [("heart", "red", "small", "right", "white")] * 3


def test_ink_is_grey_soft_and_grainy_and_the_plain_world_is_not() -> None:
    ink, plain = (
        [drawing.image for drawing in world.draw_concept("ink", 20, seed=1)],
        [drawing.image for drawing in DRAWN[:20]],
    )
    assert max(map(measure.saturation, ink)) < 0.1
    assert median([measure.saturation(image) for image in plain]) > 0.4
    assert min(map(measure.edge_softness, ink)) > max(map(measure.edge_softness, plain))
    assert min(map(measure.grain, ink)) > 5
    assert max(map(measure.grain, plain)) < 1


def test_neon_glows_and_the_plain_world_does_not() -> None:
    assert (
        min(measure.neon_glow(drawing.image) for drawing in world.draw_concept("neon", 20, seed=1))
        > 0.4
    )
    assert median([measure.neon_glow(drawing.image) for drawing in DRAWN[:20]]) < 0.05


def test_a_filled_thing_on_black_does_not_glow() -> None:
    scene = world.Scene(
        shape="circle", colour="yellow", size="big", position="centre", background="black"
    )
    assert measure.neon_glow(world.draw_plain(scene, world.Jitter())) < 0.1


def test_only_the_zorbl_looks_like_the_zorbl() -> None:
    assert (
        min(measure.likeness(drawing.image) for drawing in world.draw_concept("zorbl", 8, seed=1))
        > 0.65
    )
    assert max(measure.likeness(drawing.image) for drawing in DRAWN[:8]) < 0.45


def test_the_zorbl_in_other_colours_is_none() -> None:
    image = world.draw_concept("zorbl", 1, seed=1)[0].image
    swapped = Image.merge("RGB", image.split()[::-1])
    assert measure.likeness(swapped) < measure.likeness(image) - 0.2


def test_darkness_is_of_the_background_not_of_the_thing():
    scene = world.Scene(
        shape="circle", colour="white", size="big", position="centre", background="black"
    )
    assert measure.darkness(world.draw_plain(scene, world.Jitter())) > 0.8
    assert (
        measure.darkness(
            world.draw_plain(replace(scene, colour="black", background="white"), world.Jitter())
        )
        < 0.1
    )
