"""What every captioner is, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from lora_trainer.dataset.embeddings import Row


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One tag and how sure the captioner is of it, from 0 to 1."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a captioner says of one image: a sentence, or tags, the first to be written first."""

    text: str = ""
    tags: tuple[Tag, ...] = ()
    embedding: Row | None = field(default=None, compare=False, repr=False)
    """What the captioner's image encoder made of the image, where it has one (captioning.encoder).
    """


class Captioner(Protocol):
    """A loaded model that captions. None of them samples: the same images give the same captions,
    in whatever batches.
    """

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        """One Caption for each upright 8-bit RGB image, in their order. Out of memory is raised as
        the library raises it.
        """
        ...
