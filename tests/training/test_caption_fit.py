"""Captions compared with those of other images."""

from __future__ import annotations

import random

import pytest
import torch

from lora_trainer.training.caption_fit import OTHER_CAPTIONS, caption_fit, compared_captions

CAPTIONS = ["a fox", "a fox", "a wolf", "a bear", "an owl", "a fox"]


def compared(captions, trained=10_000, seed=0):
    return compared_captions(captions, trained, 4, random.Random(seed))


def test_each_image_is_compared_with_captions_that_are_not_its_own():
    found = compared(CAPTIONS)
    assert sorted(found.images) == [0, 1, 2, 3, 4, 5]
    for index, others in zip(found.images, found.others, strict=True):
        assert len(others) == OTHER_CAPTIONS and CAPTIONS[index] not in others
    assert found == compared(CAPTIONS) and found != compared(CAPTIONS, seed=1)


@pytest.mark.parametrize(
    ("captions", "trained", "count"),
    [
        (CAPTIONS, 160, 4),  # 16 forward passes an image, 0.4 for each that is trained
        (CAPTIONS, 159, 0),
        (["a fox"] * 6, 10_000, 0),
        (["a fox", "a wolf", "a bear"], 10_000, 0),
        ([f"fox {number}" for number in range(100)], 10_000, 32),
    ],
)
def test_as_many_are_compared_as_the_training_is_long(captions, trained, count):
    found = compared(captions, trained)
    assert (len(found.images) if found else 0) == count


def test_a_caption_that_describes_its_image_gives_the_lower_loss():
    own = torch.tensor([0.1, 0.3])
    others = [torch.tensor([0.2, 0.1]), torch.tensor([0.4, 0.1])]
    assert caption_fit(own, others).tolist() == pytest.approx([1.0, -1.0])
