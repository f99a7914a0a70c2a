"""Aspect-ratio buckets: images of many shapes -> seeded batches of one size each, in which nothing
is dropped.

    assign         Examples                -> {Bucket: indices of the examples it holds}
    epoch_batches  those, a seed, an epoch -> the epoch's batches, in order
    bucket_findings                        -> what to tell the user: images too small, images
                                           cropped a lot

An image is trained near its own aspect ratio: resized to cover its bucket, then centre-cropped
(dataset.images.fit). Called by training. The idea is NovelAI's
(https://github.com/NovelAI/novelai-aspect-ratio-bucketing); here a bucket's last, smaller batch is
trained too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.settings.training import DatasetSettings

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Example

CROP_WORTH_TELLING = 0.3
"""Share of a picture that is cut away before the user is told."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One training size, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True, kw_only=True)
class BatchIndices:
    """What one step is trained on: the indices of some examples, all in one bucket."""

    bucket: Bucket
    indices: tuple[int, ...]


def assign(
    examples: Sequence[Example], settings: DatasetSettings, resolution: int
) -> dict[Bucket, list[int]]:
    """Each example's index into the bucket for its shape, in order; buckets by size.

    `resolution` in pixels: what settings.resolution is once the checkpoint has answered `auto`.
    """
    buckets: dict[Bucket, list[int]] = {}
    chosen: dict[tuple[int, int], Bucket] = {}
    for index, example in enumerate(examples):
        size = (example.width, example.height)
        # many images are of one size
        bucket = chosen.get(size)
        if bucket is None:
            bucket = chosen[size] = bucket_for(*size, settings, resolution)
        buckets.setdefault(bucket, []).append(index)
    return dict(sorted(buckets.items()))


def bucket_for(width: int, height: int, settings: DatasetSettings, resolution: int) -> Bucket:
    """The bucket nearest in aspect ratio to an image of width x height pixels.

    Its area is at most resolution x resolution. Where that would enlarge the image more than
    settings.max_upscale times, the bucket belongs to the next smaller resolution that does not; the
    smallest of all takes what is left.
    """
    for family in _families(settings, resolution):
        bucket = _nearest(width, height, family)
        if enlargement(width, height, bucket) <= settings.max_upscale:
            return bucket
    return bucket


def enlargement(width: int, height: int, bucket: Bucket) -> float:
    """How many times an image's sides grow to cover the bucket; below 1, it shrinks."""
    return max(bucket.width / width, bucket.height / height)


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """The part of an image's area, 0 to 1, that lies outside the bucket."""
    scale = enlargement(width, height, bucket)
    return 1 - (bucket.width * bucket.height) / (width * scale * height * scale)


def epoch_batches(
    buckets: Mapping[Bucket, Sequence[int]],
    repeats: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[BatchIndices]:
    """One epoch in order: index i occurs exactly repeats[i] times, in batches of at most
    `batch_size`, shuffled by (seed, epoch) alone.
    """
    shuffle = random.Random(
        f"{seed} {epoch}"
    ).shuffle  # text seeds are hashed alike on every platform and Python
    batches = []
    for bucket, indices in sorted(buckets.items()):
        pool = [index for index in indices for _ in range(repeats[index])]
        shuffle(pool)
        batches += [
            BatchIndices(bucket=bucket, indices=tuple(pool[start : start + batch_size]))
            for start in range(0, len(pool), batch_size)
        ]
    shuffle(batches)
    return batches


def steps_per_epoch(
    buckets: Mapping[Bucket, Sequence[int]],
    repeats: Sequence[int],
    batch_size: int,
    gradient_accumulation_steps: int = 1,
) -> int:
    """How many optimizer steps an epoch of `epoch_batches` takes; a last, smaller group of
    accumulated batches is a step too.
    """
    batch_count = sum(
        math.ceil(sum(repeats[index] for index in indices) / batch_size)
        for indices in buckets.values()
    )
    return math.ceil(batch_count / gradient_accumulation_steps)


def bucket_findings(
    examples: Sequence[Example],
    buckets: Mapping[Bucket, Sequence[int]],
    settings: DatasetSettings,
    resolution: int,
) -> tuple[Finding, ...]:
    """Warnings for images too small for the resolution, and for those of which much is cropped
    away.
    """
    told: dict[int, list[Finding]] = {}
    for bucket, indices in buckets.items():
        sound: set[tuple[int, int]] = set()
        for index in indices:
            size = (examples[index].width, examples[index].height)
            if size in sound:
                continue
            told[index] = list(_bucket_findings(examples[index], bucket, settings, resolution))
            if not told[index]:
                sound.add(size)
    return tuple(finding for index in sorted(told) for finding in told[index])


def _bucket_findings(
    example: Example, bucket: Bucket, settings: DatasetSettings, resolution: int
) -> Iterable[Finding]:
    size = {
        "name": example.name,
        "width": example.width,
        "height": example.height,
        "bucket": str(bucket),
    }
    factor = enlargement(example.width, example.height, bucket)
    if factor > settings.max_upscale:
        yield warning(
            "small-image",
            "{name} is only {width} x {height} pixels and is enlarged {factor} times, to {bucket}",
            hint="Use larger pictures; enlarged ones teach the model blur.",
            path=example.path,
            **size,
            factor=f"{factor:.1f}",
        )
    elif bucket != _nearest(example.width, example.height, _families(settings, resolution)[0]):
        yield warning(
            "small-image",
            "{name} is only {width} x {height} pixels and is trained at {bucket}",
            hint="Use larger pictures, or a lower resolution.",
            path=example.path,
            **size,
        )
    share = cropped_share(example.width, example.height, bucket)
    if share > CROP_WORTH_TELLING:
        hint = (
            "Crop it yourself to what matters."
            if settings.enable_bucket
            else "Crop it yourself to what matters, or set enable_bucket to true."
        )
        yield warning(
            "cropped-image",
            "{name} is {width} x {height} pixels: {percent} % of it is cropped away for {bucket}",
            hint=hint,
            path=example.path,
            **size,
            percent=round(100 * share),
        )


# --- the sizes there are --------------------------------------------------------------------------


@cache
def _families(settings: DatasetSettings, resolution: int) -> tuple[tuple[Bucket, ...], ...]:
    """The buckets of the resolution, then those of each smaller one, a step at a time."""
    # a step above the resolution would leave no bucket at all
    step = min(settings.bucket_step, resolution // 8 * 8)
    return tuple(_family(side, step, settings) for side in range(resolution, step - 1, -step))


def _family(resolution: int, step: int, settings: DatasetSettings) -> tuple[Bucket, ...]:
    """All buckets of one resolution: sides in steps, area at most resolution squared, the square
    among them.
    """
    if not settings.enable_bucket:
        return (Bucket(resolution, resolution),)
    longest = max(step, (settings.max_bucket_side or 2 * resolution) // step * step)
    shortest = min(longest, math.ceil((settings.min_bucket_side or resolution / 2) / step) * step)
    square = min(longest, max(shortest, resolution // step * step))
    found = {Bucket(square, square)}
    for width in range(shortest, longest + 1, step):
        height = min(longest, resolution * resolution // width // step * step)
        if height >= shortest:
            found |= {Bucket(width, height), Bucket(height, width)}
    return tuple(sorted(found))


def _nearest(width: int, height: int, family: Iterable[Bucket]) -> Bucket:
    """The bucket of the nearest aspect ratio; of equals, the larger."""
    ratio = math.log(width / height)
    return min(
        family,
        key=lambda bucket: (
            abs(math.log(bucket.width / bucket.height) - ratio),
            -bucket.width * bucket.height,
        ),
    )
