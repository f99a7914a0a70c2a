"""Which image is the mask of which."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.dataset.masks import find_masks


def test_masks_are_told_by_their_name_or_folder():
    images = [
        Path(name)
        for name in (
            "fox.jpg",
            "fox_mask.png",
            "hen.png",
            "masks/hen.png",
            "cat-masklabel.png",
            "cat.webp",
            "lone_mask.png",
        )
    ]
    assert find_masks(images, ()) == {
        Path("fox_mask.png"): Path("fox.jpg"),
        Path("masks/hen.png"): Path("hen.png"),
        Path("cat-masklabel.png"): Path("cat.webp"),
    }


def test_what_has_a_caption_is_a_picture():
    assert find_masks([Path("fox.jpg"), Path("fox_mask.png")], {Path("fox_mask.png")}) == {}
