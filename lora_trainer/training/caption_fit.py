"""Whether each caption says what its image shows, as far as the checkpoint can tell.

The checkpoint predicts an image's noise with its own caption and with captions of other images,
under the same noise. The caption that describes the image gives the lower loss: a diffusion model
is a classifier (arXiv 2303.16203).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

OTHER_CAPTIONS = 3
MOST_IMAGES = 32
FEWEST_IMAGES = 4
EFFORT = 0.4
"""Forward passes for each image that is trained, of which the check before the first step may cost
this much more.
"""


@dataclass(frozen=True, kw_only=True)
class ComparedCaptions:
    """The images to compare, by their index, and captions of others for each."""

    images: tuple[int, ...]
    others: tuple[tuple[str, ...], ...]
    """OTHER_CAPTIONS for each image; none is its own."""


def compared_captions(
    captions: Sequence[str], trained: int, levels: int, numbers: random.Random
) -> ComparedCaptions | None:
    """As many images as `trained` images in all allow. levels: noise levels of an image. None if
    they are too few, or all have the same caption.
    """
    if len(set(captions)) < 2:
        return None
    affordable = int(trained * EFFORT / (levels * (1 + OTHER_CAPTIONS)))
    count = min(len(captions), MOST_IMAGES, affordable)
    if count < FEWEST_IMAGES:
        return None
    images = tuple(numbers.sample(range(len(captions)), count))
    distinct = sorted(set(captions))
    return ComparedCaptions(
        images=images,
        others=tuple(
            tuple(
                numbers.choice([one for one in distinct if one != captions[index]])
                for _ in range(OTHER_CAPTIONS)
            )
            for index in images
        ),
    )


def caption_fit(own: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """Losses with the own caption (B,) and with each other one (B,) -> their mean difference,
    relative to their mean (B,). Positive where the own caption gives the lower loss.
    """
    other = torch.stack(list(others)).mean(0)
    return (other - own) / ((other + own) / 2)
