"""Buckets: every image near its own shape, every image as often as asked, none dropped."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from lora_trainer.dataset.buckets import (
    Bucket,
    assign,
    bucket_findings,
    bucket_for,
    cropped_share,
    enlargement,
    epoch_batches,
    steps_per_epoch,
)
from lora_trainer.dataset.scan import Example
from lora_trainer.settings.training import DatasetSettings


def settings(**values: object) -> DatasetSettings:
    return DatasetSettings(train_data_dir=Path("data"), **values)  # type: ignore[arg-type]


def example(width: int, height: int) -> Example:
    path = Path("data/a.png")
    return Example(
        path=path,
        name="a.png",
        caption="a fox",
        width=width,
        height=height,
        digest="0",
        repeats=1,
        folder="data",
    )


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((512, 512), 512, Bucket(512, 512)),
        ((4000, 3000), 512, Bucket(576, 448)),
        ((3000, 4000), 512, Bucket(448, 576)),
        ((1920, 1080), 512, Bucket(640, 384)),
        ((1024, 1024), 1024, Bucket(1024, 1024)),
        ((1920, 1080), 1024, Bucket(1344, 768)),
        ((768, 1024), 768, Bucket(640, 896)),
        ((1000, 10000), 512, Bucket(256, 1024)),
        ((10000, 1000), 512, Bucket(1024, 256)),
        ((64, 64), 64, Bucket(64, 64)),
    ],
)
def test_an_image_gets_the_bucket_of_its_shape(size, resolution, bucket):
    assert bucket_for(*size, settings(), resolution) == bucket


def test_a_small_image_gets_a_smaller_bucket_rather_than_being_enlarged_too_far():
    assert bucket_for(200, 200, settings(max_upscale=2.0), 512) == Bucket(384, 384)
    assert bucket_for(200, 200, settings(max_upscale=1.0), 512) == Bucket(192, 192)
    assert bucket_for(300, 200, settings(max_upscale=1.5), 512) == Bucket(384, 256)


def test_an_image_smaller_than_every_bucket_gets_the_smallest():
    assert bucket_for(20, 20, settings(), 512) == Bucket(64, 64)


def test_the_users_sides_are_kept():
    for width in range(100, 2000, 130):
        bucket = bucket_for(
            width, 700, settings(min_bucket_side=320, max_bucket_side=640, max_upscale=16.0), 512
        )
        assert all(320 <= side <= 640 for side in (bucket.width, bucket.height))


def test_without_buckets_every_image_is_a_square():
    assert bucket_for(1920, 1080, settings(enable_bucket=False), 512) == Bucket(512, 512)
    assert bucket_for(1920, 200, settings(enable_bucket=False, max_upscale=2.0), 512) == Bucket(
        384, 384
    )


@pytest.mark.parametrize("resolution", [64, 72, 256, 500 // 8 * 8, 512, 768, 1024])
@pytest.mark.parametrize("step", [8, 64, 96, 256])
@pytest.mark.parametrize("upscale", [1.0, 2.0, 16.0])
def test_every_shape_has_a_bucket_within_the_bounds(resolution, step, upscale):
    given = settings(bucket_step=step, max_upscale=upscale)
    effective_step = min(step, resolution // 8 * 8)
    for width, height in [
        (1, 1),
        (1, 5000),
        (5000, 1),
        (64, 64),
        (333, 777),
        (1000, 100),
        (512, 513),
        (6000, 4000),
        (90, 30),
    ]:
        bucket = bucket_for(width, height, given, resolution)
        assert bucket.width % effective_step == 0 and bucket.height % effective_step == 0
        assert bucket.width * bucket.height <= resolution * resolution
        assert min(bucket.width, bucket.height) >= effective_step
        assert max(bucket.width, bucket.height) <= max(2 * resolution, effective_step)
        too_small = min(width, height) * upscale < 2 * effective_step
        assert too_small or enlargement(width, height, bucket) <= upscale


def test_large_images_lose_little_of_themselves():
    """With the usual 64 pixel steps, between 1:2 and 2:1."""
    for resolution, limit in ((512, 0.16), (1024, 0.08)):
        shares = [
            cropped_share(width, 2000, bucket_for(width, 2000, settings(), resolution))
            for width in range(1000, 4001, 10)
        ]
        assert max(shares) < limit


def test_every_example_is_in_exactly_one_bucket():
    draw = random.Random(3)
    examples = [example(draw.randint(30, 3000), draw.randint(30, 3000)) for _ in range(500)]
    buckets = assign(examples, settings(), 512)
    assert sorted(index for indices in buckets.values() for index in indices) == list(range(500))
    assert list(buckets) == sorted(buckets)


# --- epochs ---------------------------------------------------------------------------------------


def random_buckets(draw: random.Random, count: int) -> dict[Bucket, list[int]]:
    buckets: dict[Bucket, list[int]] = {}
    for index in range(count):
        buckets.setdefault(
            draw.choice([Bucket(512, 512), Bucket(448, 576), Bucket(576, 448), Bucket(256, 1024)]),
            [],
        ).append(index)
    return buckets


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_dropped_and_nothing_is_seen_too_often(seed):
    draw = random.Random(seed)
    count, batch_size, accumulation = draw.randint(1, 60), draw.randint(1, 9), draw.randint(1, 5)
    repeats = [draw.randint(1, 12) for _ in range(count)]
    buckets = random_buckets(draw, count)
    batches = epoch_batches(buckets, repeats, batch_size, seed, epoch=0)
    assert Counter(index for batch in batches for index in batch) == Counter(
        dict(enumerate(repeats))
    )
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(any(set(batch) <= set(own) for own in buckets.values()) for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= len(buckets)
    assert steps_per_epoch(buckets, repeats, batch_size) == len(batches)
    assert steps_per_epoch(buckets, repeats, batch_size, accumulation) == math.ceil(
        len(batches) / accumulation
    )


def test_an_epochs_order_follows_from_seed_and_epoch_alone():
    buckets = random_buckets(random.Random(1), 30)
    turned = dict(reversed(buckets.items()))
    random.seed(5)
    first = epoch_batches(buckets, [2] * 30, 4, seed=7, epoch=3)
    assert epoch_batches(turned, [2] * 30, 4, seed=7, epoch=3) == first
    assert epoch_batches(buckets, [2] * 30, 4, seed=7, epoch=4) != first
    assert epoch_batches(buckets, [2] * 30, 4, seed=8, epoch=3) != first


def test_the_order_is_the_same_on_every_machine():
    """A resumed run relies on it; a change here breaks every run that is under way."""
    batches = epoch_batches(
        {Bucket(64, 64): [0, 1, 2, 3, 4], Bucket(64, 128): [5, 6]}, [1] * 7, 2, seed=0, epoch=0
    )
    assert batches == [(2,), (1, 0), (3, 4), (5, 6)]


# --- what the user is told ------------------------------------------------------------------------


def told(width: int, height: int, **values: object) -> list[str]:
    examples, given = [example(width, height)], settings(**values)
    findings = bucket_findings(examples, assign(examples, given, 512), given, 512)
    assert all(
        finding.severity == "warning" and str(finding.hint) and finding.path == Path("data/a.png")
        for finding in findings
    )
    return [str(finding) for finding in findings]


def test_small_images_are_named():
    assert told(200, 200) == ["a.png is only 200 x 200 pixels and is trained at 384 x 384"]
    assert told(20, 20) == ["a.png is only 20 x 20 pixels and is enlarged 3.2 times, to 64 x 64"]
    assert told(300, 300) == []


def test_images_that_lose_much_are_named():
    assert told(1000, 10000) == [
        "a.png is 1000 x 10000 pixels: 60 % of it is cropped away for 256 x 1024"
    ]
    assert told(1920, 1080, enable_bucket=False) == [
        "a.png is 1920 x 1080 pixels: 44 % of it is cropped away for 512 x 512"
    ]
    assert told(1920, 1080) == []
