"""Finds masks of other images: fox_mask.png beside fox.jpg, or masks/fox.png.

They are left out of training, and tell the check where the subject is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from pathlib import Path

from lora_trainer.dataset.listing import folded

_MASK = re.compile(r"(.+)[-_](mask|masklabel|condlabel)")
_SIGN = re.compile("mask|condlabel")


def find_masks(images: Sequence[Path], captioned: Container[Path]) -> dict[Path, Path]:
    """{mask: its image}. An image with its own caption is no mask."""
    # early exit: most datasets have none
    candidates = [
        image
        for image in images
        if _SIGN.search(os.fspath(image).casefold()) and image not in captioned
    ]
    if not candidates:
        return {}
    by_stem = {(image.parent, folded(image.stem)): image for image in images}
    masks = {}
    for image in candidates:
        named, stem = _MASK.fullmatch(folded(image.stem)), folded(image.stem)
        owner = by_stem.get((image.parent, named[1])) if named else None
        if owner is None and folded(image.parent.name) in ("mask", "masks"):
            owner = by_stem.get((image.parent.parent, stem)) or (
                by_stem.get((image.parent.parent, named[1])) if named else None
            )
        if owner is not None:
            masks[image] = owner
    return masks
