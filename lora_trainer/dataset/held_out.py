"""Images held out of training, to validate on.

    divide(dataset, split, seed)            -> Divided(dataset to train on, HeldOut, note)
    of_folder(settings, seed, trained, ...) -> Divided, with the images of another folder

Which images are held out follows from the seed and the images alone. Standard library only, as the
tab counts with it too.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lora_trainer.dataset.scan import Dataset, Example
from lora_trainer.errors import Message

FEWEST_IMAGES = 20
"""With `validation_split: auto`, smaller datasets are trained on as a whole."""
MOST_MEASURED = 8
"""Images that are measured at each check; with `auto`, no more than these are held out."""
USUAL_SPLIT = 0.1


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images to validate on. `examples`: those that are measured, at most MOST_MEASURED; `count`:
    all that are not trained on, or that lie in validation_dir.
    """

    examples: tuple[Example, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Divided:
    """What is trained on, and what is held out. `note`, with its hint: why less is held out than
    was asked for.
    """

    trained: Dataset
    held_out: HeldOut
    note: Message | None = None
    hint: Message = Message("")


def held_out_count(image_count: int, split: float | None) -> int:
    """How many of the images are held out for this validation_split; None is auto."""
    if split is None:
        usual = max(2, round(image_count * USUAL_SPLIT))
        return min(usual, MOST_MEASURED) if image_count >= FEWEST_IMAGES else 0
    return min(round(image_count * split), image_count - 1)


def divide(dataset: Dataset, split: float | None, seed: int) -> Divided:
    """The dataset without a share of its images, and these."""
    count = held_out_count(len(dataset.examples), split)
    if not count and not split:
        return Divided(trained=dataset, held_out=HeldOut())
    if not count:
        note = Message(
            (
                "validation_split is {split}, which is less than one of {count} images: none is "
                "used for validation"
            ),
            {"split": split, "count": len(dataset.examples)},
        )
        hint = Message("Use a larger share or more images, or leave it at auto.")
        return Divided(trained=dataset, held_out=HeldOut(), note=note, hint=hint)
    chosen = choose(dataset.examples, count, seed)
    trained = tuple(one for index, one in enumerate(dataset.examples) if index not in chosen)
    return Divided(
        trained=dataclasses.replace(dataset, examples=trained),
        held_out=HeldOut(
            examples=tuple(dataset.examples[index] for index in chosen[:MOST_MEASURED]),
            count=len(chosen),
        ),
    )


def of_folder(dataset: Dataset, validation: Sequence[Example], seed: int) -> Divided:
    """The whole dataset, and the images of a folder of their own that are not trained on too."""
    trained = {example.digest for example in dataset.examples}
    others = [example for example in validation if example.digest not in trained]
    count = len(validation) - len(others)
    note = Message(
        (
            "{count} of {total} images in validation_dir are trained on too, and are not used for "
            "validation"
        ),
        {"count": count, "total": len(validation)},
    )
    chosen = choose(others, min(len(others), MOST_MEASURED), seed)
    return Divided(
        trained=dataset,
        held_out=HeldOut(examples=tuple(others[index] for index in chosen), count=len(others)),
        note=note if count else None,
        hint=Message("Put other images there.") if count else Message(""),
    )


class Choosable(Protocol):
    """An example of a dataset."""

    @property
    def digest(self) -> str:
        """A hash of its content."""

    @property
    def folder(self) -> str:
        """Where it lies."""


def choose(examples: Sequence[Choosable], count: int, seed: int) -> list[int]:
    """Indices of at most `count` examples in random order, spread over the folders by their sizes.
    Of a folder's images at most half are taken, as long as others are left; of images with copies,
    none.
    """
    copies = Counter(example.digest for example in examples)
    folders: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if copies[example.digest] == 1:
            folders.setdefault(example.folder, []).append(index)
    total = sum(map(len, folders.values()))
    shuffle = random.Random(f"{seed} validation").shuffle
    for indices in folders.values():
        shuffle(indices)
    taken = dict.fromkeys(folders, 0)

    def urgency(folder: str) -> tuple[bool, float]:
        size = len(folders[folder])
        return taken[folder] < size // 2, count * size / total - taken[folder]

    chosen: list[int] = []
    for _ in range(min(count, total)):
        left = [folder for folder, indices in folders.items() if taken[folder] < len(indices)]
        folder = max(left, key=urgency)
        chosen.append(folders[folder][taken[folder]])
        taken[folder] += 1
    return chosen
