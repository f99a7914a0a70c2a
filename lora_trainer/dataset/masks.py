"""Which pictures are masks of other pictures: fox_mask.png beside fox.jpg, or masks/fox.png in the
folder of fox.jpg.

Called by dataset.scan, which leaves them out, and by check, which asks them how much of the picture
is the subject.
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
    """{mask: the image it belongs to}. What has a caption of its own is a picture, whatever its
    name.
    """
    # most datasets have none, and are asked at each look
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
