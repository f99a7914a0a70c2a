from collections import Counter
from pathlib import Path

import pytest

from lora_trainer.dataset.held_out import choose, divide, held_out_count, of_folder
from lora_trainer.dataset.scan import Dataset, Example


def example(name, folder="images", digest=None):
    return Example(
        path=Path(name),
        name=name,
        caption="a fox",
        width=64,
        height=64,
        digest=digest or name,
        repeats=1,
        folder=folder,
    )


def dataset(count, folder="images"):
    return Dataset(
        examples=tuple(example(f"{folder}/{number:02d}.png", folder) for number in range(count)),
        findings=(),
    )


@pytest.mark.parametrize(
    ("images", "split", "count"),
    [
        (19, None, 0),
        (20, None, 2),
        (36, None, 4),
        (1000, None, 8),
        (1000, 0.1, 100),
        (5, 0.2, 1),
        (4, 0.1, 0),
        (2, 0.5, 1),
        (1, 0.5, 0),
        (40, 0.0, 0),
    ],
)
def test_how_many_are_held_out(images, split, count):
    assert held_out_count(images, split) == count


def test_no_image_is_both_trained_and_held_out_and_none_is_lost():
    whole = dataset(40)
    divided = divide(whole, 0.3, seed=1)
    trained = [one.name for one in divided.trained.examples]
    held_out = [one.name for one in divided.held_out.examples]
    assert (len(trained), divided.held_out.count, len(held_out)) == (28, 12, 8)
    assert not set(trained) & set(held_out)
    assert trained == sorted(trained)
    assert divide(whole, 0.3, seed=1) == divided != divide(whole, 0.3, seed=2)
    assert divided.note is None


def test_too_few_images_are_told_only_where_a_share_was_asked_for():
    assert divide(dataset(4), None, seed=0).note is None
    assert divide(dataset(4), 0.0, seed=0).note is None
    divided = divide(dataset(4), 0.1, seed=0)
    assert str(divided.note) == (
        "validation_split is 0.1, which is less than one of 4 images: none is used for validation"
    )
    assert divided.trained == dataset(4) and not divided.held_out.count


def test_the_held_out_images_are_spread_over_the_folders():
    examples = (
        *dataset(30, "fox").examples,
        *dataset(12, "owl").examples,
        *dataset(1, "elk").examples,
    )
    for seed in range(5):
        folders = Counter(examples[index].folder for index in choose(examples, 4, seed))
        assert folders == {"fox": 3, "owl": 1}
    # when every folder would give half of its images or more, others are taken too
    assert len(choose(examples, 40, 0)) == 40


def test_an_image_with_a_copy_is_trained_on():
    examples = [example("a.png", digest="1"), example("b.png", digest="1"), example("c.png")]
    assert choose(examples, 3, 0) == [2]


def test_of_a_folder_of_ones_own_what_is_trained_on_too_is_not_validated_on():
    trained = dataset(3)
    own = [example("x.png"), example("y.png", digest="images/01.png")]
    divided = of_folder(trained, own, seed=0)
    assert divided.trained == trained
    assert [one.name for one in divided.held_out.examples] == ["x.png"]
    assert divided.held_out.count == 1
    assert str(divided.note).startswith("1 of 2 images in validation_dir are trained on too")
    assert of_folder(trained, own[:1], seed=0).note is None
