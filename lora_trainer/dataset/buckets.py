"""Aspect ratio buckets: images of many shapes -> seeded batches of one size each, without dropping
any.

    assign         Examples                   -> {Bucket: indices of its examples}
    epoch_batches  buckets, a seed, an epoch  -> the epoch's batches, in order
    bucket_findings                           -> warnings: images too small, or cropped a lot

An image is resized to cover its bucket, then centre-cropped (dataset.images.fit). The idea is
NovelAI's (https://github.com/NovelAI/novelai-aspect-ratio-bucketing); here a bucket's last, smaller
batch is trained too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lora_trainer.dataset.findings import Finding, warning
from lora_trainer.settings.training import DatasetSettings

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import Example

MAX_CROPPED_SHARE = 0.3
"""Cropped share of an image above which there is a warning."""


@dataclass(frozen=True, order=True)
class Bucket:
    """A training size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def assign(
    examples: Sequence[Example], settings: DatasetSettings, resolution: int
) -> dict[Bucket, list[int]]:
    """The indices of the examples in each bucket; buckets sorted by size. `resolution`:
    settings.resolution, or the checkpoint's for auto.
    """
    buckets: dict[Bucket, list[int]] = {}
    chosen: dict[tuple[int, int], Bucket] = {}
    for index, example in enumerate(examples):
        size = (example.width, example.height)
        # many images have the same size
        bucket = chosen.get(size)
        if bucket is None:
            bucket = chosen[size] = bucket_for(*size, settings, resolution)
        buckets.setdefault(bucket, []).append(index)
    return dict(sorted(buckets.items()))


def bucket_for(width: int, height: int, settings: DatasetSettings, resolution: int) -> Bucket:
    """The bucket with the nearest aspect ratio.

    Its area is at most resolution x resolution. If that enlarges the image more than
    settings.max_upscale times, a bucket of the next smaller resolution that does not; the smallest
    resolution takes the rest.
    """
    for bucket_set in _bucket_sets(settings, resolution):
        bucket = _nearest(width, height, bucket_set)
        if enlargement(width, height, bucket) <= settings.max_upscale:
            return bucket
    return bucket


def enlargement(width: int, height: int, bucket: Bucket) -> float:
    """By how much an image is scaled to cover the bucket; below 1, it shrinks."""
    return max(bucket.width / width, bucket.height / height)


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """The share of an image's area, 0 to 1, outside the bucket."""
    scale = enlargement(width, height, bucket)
    return 1 - (bucket.width * bucket.height) / (width * scale * height * scale)


def epoch_batches(
    buckets: Mapping[Any, Sequence[int]],
    repeats: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Sequence[int]]:
    """One epoch's batches, each of one bucket: index i occurs repeats[i] times, in batches of at
    most `batch_size`, shuffled by (seed, epoch) only.
    """
    # string seeds give the same sequence on every platform and Python version
    shuffle = random.Random(f"{seed} {epoch}").shuffle
    batches: list[Sequence[int]] = []
    for _, indices in sorted(buckets.items()):
        pool = [index for index in indices for _ in range(repeats[index])]
        shuffle(pool)
        batches += [
            tuple(pool[start : start + batch_size]) for start in range(0, len(pool), batch_size)
        ]
    shuffle(batches)
    return batches


def steps_per_epoch(
    buckets: Mapping[Any, Sequence[int]],
    repeats: Sequence[int],
    batch_size: int,
    gradient_accumulation_steps: int = 1,
) -> int:
    """Optimizer steps per epoch; a smaller last group of accumulated batches is a step too."""
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
    """Warnings for images that are too small, or cropped a lot."""
    findings: dict[int, list[Finding]] = {}
    for bucket, indices in buckets.items():
        unremarkable: set[tuple[int, int]] = set()
        for index in indices:
            size = (examples[index].width, examples[index].height)
            if size in unremarkable:
                continue
            findings[index] = list(_bucket_findings(examples[index], bucket, settings, resolution))
            if not findings[index]:
                unremarkable.add(size)
    return tuple(finding for index in sorted(findings) for finding in findings[index])


def _bucket_findings(
    example: Example, bucket: Bucket, settings: DatasetSettings, resolution: int
) -> Iterable[Finding]:
    size: dict[str, Any] = {
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
            hint="Use larger images; enlarged ones teach the model blur.",
            path=example.path,
            **size,
            factor=f"{factor:.1f}",
        )
    elif bucket != _nearest(example.width, example.height, _bucket_sets(settings, resolution)[0]):
        yield warning(
            "small-image",
            "{name} is only {width} x {height} pixels and is trained at {bucket}",
            hint="Use larger images, or a lower resolution.",
            path=example.path,
            **size,
        )
    share = cropped_share(example.width, example.height, bucket)
    if share > MAX_CROPPED_SHARE:
        hint = "Crop it yourself to what matters."
        if not settings.enable_bucket:
            hint = "Crop it yourself to what matters, or set enable_bucket to true."
        template = (
            "{name} is {width} x {height} pixels: {percent} % of it is cropped away for {bucket}"
        )
        percent = round(100 * share)
        yield warning(
            "cropped-image", template, hint=hint, path=example.path, **size, percent=percent
        )


# --- bucket sizes ---------------------------------------------------------------------------------


@cache
def _bucket_sets(settings: DatasetSettings, resolution: int) -> tuple[tuple[Bucket, ...], ...]:
    """The buckets of the resolution, then those of each smaller one, in steps."""
    # a step above the resolution would give no bucket
    step = min(settings.bucket_step, resolution // 8 * 8)
    return tuple(_bucket_set(side, step, settings) for side in range(resolution, step - 1, -step))


def _bucket_set(resolution: int, step: int, settings: DatasetSettings) -> tuple[Bucket, ...]:
    """All buckets of a resolution: sides in steps, area at most resolution squared, including the
    square.
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


def _nearest(width: int, height: int, bucket_set: Iterable[Bucket]) -> Bucket:
    """The bucket with the nearest aspect ratio; of equals, the larger."""
    ratio = math.log(width / height)
    return min(
        bucket_set,
        key=lambda bucket: (
            abs(math.log(bucket.width / bucket.height) - ratio),
            -bucket.width * bucket.height,
        ),
    )
