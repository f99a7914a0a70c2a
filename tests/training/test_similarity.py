import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from lora_trainer.training.similarity import TrainingImages, signature


def scene(seed, size=(64, 64)):
    """Ten rectangles at random places."""
    draws = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(draws.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for left, top, red, green, blue in draws.integers(0, 200, (10, 5)).tolist():
        box = [left % size[0], top % size[1]]
        draw.rectangle((*box, box[0] + 20, box[1] + 20), fill=(red, green, blue))
    return image


def training(*images):
    names = [f"{number}.png" for number in range(len(images))]
    return TrainingImages(names, np.stack([signature(image) for image in images]))


SCENES = [scene(seed) for seed in range(24)]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        ImageOps.mirror,
        lambda image: image.resize((512, 512)),
        lambda image: image.point(lambda value: value // 2 + 40),
    ],
    ids=["as it is", "mirrored", "enlarged", "paler"],
)
def test_a_copy_is_found_however_it_was_changed(change):
    found = training(*SCENES).nearest([change(SCENES[3])], 2)
    assert next(iter(found.nearest)) == "3.png" and found.nearest["3.png"] > 0.99
    assert found.copied == ["3.png"] and len(found.nearest) == 2


def test_another_picture_is_no_copy_and_a_picture_of_one_colour_is_like_none():
    images = training(*SCENES)
    found = images.nearest([scene(99)], 8)
    assert found.copied == [] and max(found.nearest.values()) < 0.8
    plain = images.nearest([Image.new("RGB", (64, 64), "red")], 8)
    assert set(plain.nearest.values()) == {0.0} and plain.copied == []


def test_images_that_are_nearly_equal_are_not_said_to_be_copied():
    near = [SCENES[0].point(lambda value, add=add: min(255, value + add)) for add in range(4)]
    assert training(*near).nearest([scene(0)], 4).copied == []
    # of others, one pair that is nearly equal hides nothing
    assert training(*SCENES, near[1]).nearest([SCENES[5]], 4).copied == ["5.png"]


def test_a_single_image_can_be_copied():
    assert training(SCENES[0]).nearest([SCENES[0]], 8).copied == ["0.png"]
