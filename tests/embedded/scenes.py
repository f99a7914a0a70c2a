"""Scenes of the world for the embedded checkpoint and its tests: unlimited drawings, prompts, and how
many images agree with their scene.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from PIL import Image

from lora_trainer.demo import measure, world
from lora_trainer.demo.world import Scene


def drawings(seed: int, side: int = world.SIDE) -> Iterator[world.Drawing]:
    """Unlimited drawings as the embedded checkpoint was trained on. Deterministic in `seed`."""
    rng = random.Random(seed)
    while True:
        scene = world.random_scene(rng)
        yield world.Drawing(
            image=world.draw_plain(scene, world.Jitter.draw(rng), side),
            caption=world.describe(scene, rng),
            scene=scene,
        )


def prompt_of(scene: Scene) -> str:
    """All attributes of a scene as a prompt."""
    return world.describe(scene, random.Random(0), leave_out=0.0)


def random_scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(f"obedience {seed}")
    return [world.random_scene(rng) for _ in range(count)]


def shares_obeyed(images: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
    """For each attribute, the share of images that agree with their scene; `all`: in every
    attribute.
    """
    judged = [measure.obeyed(image, scene) for image, scene in zip(images, scenes, strict=True)]
    shares = {
        name: sum(found[name] for found in judged) / len(judged) for name in measure.ATTRIBUTES
    }
    return shares | {"all": sum(all(found.values()) for found in judged) / len(judged)}


def contact_sheet(
    images: list[Image.Image], columns: int, zoom: int = 1, gap: int = 4
) -> Image.Image:
    """Images of one size in rows on white; `zoom` enlarges each."""
    width, height = images[0].width * zoom, images[0].height * zoom
    row_count = -(-len(images) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, row_count * (height + gap) + gap), "white"
    )
    for (row, column), image in zip(
        itertools.product(range(row_count), range(columns)), images, strict=False
    ):
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC) if zoom > 1 else image
        sheet.paste(enlarged, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
