"""Generated images of one simple object each, with captions; seeded and unlimited.

Seed -> `Drawing`s (image, caption, and the `Scene` of both), or a folder of images with
metadata.csv. The demo and tests train a *concept* that the embedded checkpoint has never seen.
Pillow and numpy only. Lengths are for a 64-pixel image; other sizes are scaled.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer import files
from lora_trainer.errors import DatasetError

Plane = NDArray[np.float64]
"""One number per pixel, (side, side)."""
Canvas = NDArray[np.float64]
"""(side, side, 3), 0 to 255."""
Rgb = tuple[float, float, float]

SIDE = 64
PALETTE: dict[str, Rgb] = {
    "red": (214, 38, 38),
    "orange": (248, 138, 24),
    "yellow": (250, 218, 48),
    "green": (44, 158, 66),
    "blue": (38, 88, 206),
    "purple": (132, 54, 172),
    "white": (246, 246, 242),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
SIZES = {"small": 10.0, "big": 16.0}
"""Radius of the object, in 64ths of the side."""
POSITIONS = {
    "centre": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
}
"""Direction from the image's centre; x to the right, y down."""
SHIFT = {"small": 17.0, "big": 12.0}
"""Distance of the object from the image's centre, in 64ths of the side."""
INK_PAPER: Rgb = (233, 229, 219)
NEON_NIGHT: Rgb = (10, 9, 18)

_SIZE_WORDS = {"small": ("small", "small", "little"), "big": ("big", "big", "large")}
_POSITION_WORDS = {
    "centre": ("in the middle", "in the center"),
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
_ARTICLES = {"orange": "an"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What an image shows. `shape` is one of SHAPES, or "zorbl", the character, which has its own
    colours.
    """

    shape: str
    colour: str
    size: str
    position: str
    background: str


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Random variation of a drawing, not in the caption."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    shade: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Jitter:
        return cls(
            dx=rng.uniform(-1.5, 1.5),
            dy=rng.uniform(-1.5, 1.5),
            scale=rng.uniform(0.93, 1.07),
            shade=rng.uniform(-6, 6),
        )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    image: Image.Image
    caption: str
    scene: Scene


# Signed distance to a shape's outline, negative inside, in units of the radius; x to the right, y
# down. Star and heart: Inigo Quilez, "2D distance functions".


def _circle(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, y) - 1.0


def _square(x: Plane, y: Plane) -> Plane:
    outside_x, outside_y = np.abs(x) - 0.88, np.abs(y) - 0.88
    return np.hypot(np.maximum(outside_x, 0), np.maximum(outside_y, 0)) + np.minimum(
        np.maximum(outside_x, outside_y), 0
    )


def _triangle(x: Plane, y: Plane) -> Plane:
    y = y - 0.22
    sides = [
        np.cos(angle) * x + np.sin(angle) * y - 0.62
        for angle in (np.pi / 2, np.pi / 2 + 2 * np.pi / 3, np.pi / 2 - 2 * np.pi / 3)
    ]
    distance: Plane = np.maximum.reduce(sides)
    return distance


def _star(x: Plane, y: Plane) -> Plane:
    radius, inner = 1.18, 0.42
    x, y = np.abs(x), -(y - 0.06)
    for kx, ky in ((0.809016994375, -0.587785252292), (-0.809016994375, -0.587785252292)):
        beyond = 2.0 * np.maximum(kx * x + ky * y, 0.0)
        x, y = x - beyond * kx, y - beyond * ky
    x, y = np.abs(x), y - radius
    bx, by = inner * 0.587785252292, inner * 0.809016994375 - 1.0
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0.0, radius)
    return np.hypot(x - bx * along, y - by * along) * np.sign(y * bx - x * by)


def _heart(x: Plane, y: Plane) -> Plane:
    scale = 1.75
    x, y = np.abs(x) / scale, (0.92 - y) / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    diagonal = 0.5 * np.maximum(x + y, 0.0)
    tip = np.sqrt(
        np.minimum(x**2 + (y - 1.0) ** 2, (x - diagonal) ** 2 + (y - diagonal) ** 2)
    ) * np.sign(x - y)
    return np.where(x + y > 1.0, lobe, tip) * scale


DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
}


def centre_of(scene: Scene, jitter: Jitter) -> tuple[float, float]:
    direction_x, direction_y = POSITIONS[scene.position]
    shift = SHIFT[scene.size]
    return SIDE / 2 + shift * direction_x + jitter.dx, SIDE / 2 + shift * direction_y + jitter.dy


def pixel_grid(side: int) -> tuple[Plane, Plane]:
    """x and y of each pixel's centre, in 64ths of the side: two planes (side, side)."""
    steps = (np.arange(side) + 0.5) * SIDE / side
    x, y = np.meshgrid(steps, steps)
    return x, y


def outline_distance(scene: Scene, jitter: Jitter, side: int) -> Plane:
    """Signed distance of each pixel to the object's outline, in 64ths of the side; negative
    inside.
    """
    x, y = pixel_grid(side)
    centre_x, centre_y = centre_of(scene, jitter)
    radius = SIZES[scene.size] * jitter.scale
    return DISTANCES[scene.shape]((x - centre_x) / radius, (y - centre_y) / radius) * radius


def cover(distance: Plane, softness: float) -> Plane:
    """Coverage of each pixel, 0 to 1; the edge is `softness` wide."""
    ramp = np.clip(0.5 - distance / softness, 0.0, 1.0)
    return ramp * ramp * (3 - 2 * ramp)


def paint(canvas: Canvas, colour: Rgb | Canvas, amount: Plane) -> Canvas:
    return canvas + (np.asarray(colour, dtype=np.float64) - canvas) * amount[..., None]


def shaded(colour: Rgb, shade: float) -> Rgb:
    return colour[0] + shade, colour[1] + shade, colour[2] + shade


def plain_canvas(colour: Rgb, side: int) -> Canvas:
    return np.full((side, side, 3), colour, dtype=np.float64)


def to_image(canvas: Canvas) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), "RGB")


def draw_plain(scene: Scene, jitter: Jitter, side: int = SIDE) -> Image.Image:
    """A flat object on a flat background with a soft edge, as the checkpoint was trained on."""
    canvas = plain_canvas(shaded(PALETTE[scene.background], jitter.shade), side)
    return to_image(
        paint(
            canvas,
            shaded(PALETTE[scene.colour], -jitter.shade),
            cover(outline_distance(scene, jitter, side), 2.5),
        )
    )


def paper_grain(side: int) -> Plane:
    """Lines of laid paper, eight units apart, -1 to 1."""
    x, y = pixel_grid(side)
    return np.sin(2 * np.pi * y / 8) * (0.8 + 0.2 * np.sin(2 * np.pi * x / 32))


def draw_ink(scene: Scene, jitter: Jitter) -> Image.Image:
    """Ink wash: grey on laid paper with a blurred edge, darker towards the lower right."""
    distance = outline_distance(scene, jitter, SIDE)
    x, y = pixel_grid(SIDE)
    centre_x, centre_y = centre_of(scene, jitter)
    pooled = np.clip(((x - centre_x) + (y - centre_y)) / (2 * SIZES[scene.size]), -1, 1)
    ink = (112 - 38 * pooled + jitter.shade)[..., None] * np.ones(3)
    paper = plain_canvas(shaded(INK_PAPER, jitter.shade / 2), SIDE)
    return to_image(
        paint(paper, ink, 0.92 * cover(distance, 9.0)) + 9.0 * paper_grain(SIDE)[..., None]
    )


def draw_neon(scene: Scene, jitter: Jitter) -> Image.Image:
    """A glowing tube along the outline on a dark background, regardless of the scene's
    background.
    """
    distance = np.abs(outline_distance(scene, jitter, SIDE))
    tube = np.asarray(PALETTE[scene.colour])
    canvas = plain_canvas(NEON_NIGHT, SIDE) + 0.55 * np.exp(-distance / 3.0)[..., None] * tube
    return to_image(paint(canvas, tuple(tube + (255 - tube) * 0.25), cover(distance - 1.5, 2.0)))


def _ellipse(x: Plane, y: Plane, middle: tuple[float, float], radii: tuple[float, float]) -> Plane:
    return (np.hypot((x - middle[0]) / radii[0], (y - middle[1]) / radii[1]) - 1.0) * min(radii)


ZORBL_PARTS: tuple[tuple[Rgb, tuple[tuple[float, float], tuple[float, float]]], ...] = (
    ((236, 84, 150), ((-0.45, 0.92), (0.30, 0.20))),
    ((236, 84, 150), ((0.45, 0.92), (0.30, 0.20))),
    ((236, 84, 150), ((-0.55, -0.90), (0.24, 0.24))),
    ((236, 84, 150), ((0.55, -0.90), (0.24, 0.24))),
    ((22, 178, 170), ((-0.42, -0.62), (0.16, 0.36))),
    ((22, 178, 170), ((0.42, -0.62), (0.16, 0.36))),
    ((22, 178, 170), ((0.0, 0.15), (0.86, 0.78))),
    ((250, 250, 250), ((0.0, 0.0), (0.46, 0.46))),
    ((30, 20, 40), ((0.0, 0.04), (0.22, 0.22))),
)
"""The zorbl from back to front: colour, centre and radii of each ellipse, in units of its radius.
Feet, knobs, stalks, body, one eye.
"""

ZORBL_RADII = {"small": 12.0, "big": 17.0}
"""Larger than SIZES, so that the eye is visible."""


def draw_zorbl(scene: Scene, jitter: Jitter) -> Image.Image:
    """The character: a turquoise body, one eye, two stalks with pink knobs, pink feet."""
    x, y = pixel_grid(SIDE)
    centre_x, centre_y = centre_of(scene, jitter)
    radius = ZORBL_RADII[scene.size] * jitter.scale
    canvas = plain_canvas(shaded(PALETTE[scene.background], jitter.shade), SIDE)
    for colour, (middle, radii) in ZORBL_PARTS:
        distance = (
            _ellipse((x - centre_x) / radius, (y - centre_y) / radius, middle, radii) * radius
        )
        canvas = paint(canvas, colour, cover(distance, 2.0))
    return to_image(canvas)


def random_scene(rng: random.Random) -> Scene:
    background, colour = rng.sample(list(PALETTE), 2)
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        size=rng.choice(list(SIZES)),
        position=rng.choice(list(POSITIONS)),
        background=background,
    )


def object_words(scene: Scene, mentioned: frozenset[str], rng: random.Random) -> str:
    """The object with its `mentioned` attributes: "a small red circle on the left"."""
    words = [rng.choice(_SIZE_WORDS[scene.size])] if "size" in mentioned else []
    words += [scene.colour] if "colour" in mentioned else []
    article = _ARTICLES.get(words[0], "a") if words else "a"
    subject = " ".join([article, *words, scene.shape])
    if "position" in mentioned:
        return f"{subject} {rng.choice(_POSITION_WORDS[scene.position])}"
    return subject


def describe(scene: Scene, rng: random.Random, leave_out: float = 0.12) -> str:
    """A correct caption with varying words; each attribute but the shape is omitted with
    probability `leave_out`.
    """
    mentioned = frozenset(
        name for name in ("size", "colour", "position", "background") if rng.random() >= leave_out
    )
    subject = object_words(scene, mentioned, rng)
    if "background" not in mentioned:
        return subject
    form = rng.choice(
        (
            "{subject}, {background} background",
            "{subject}, {background} background",
            "{subject} on {article} {background} background",
        )
    )
    return form.format(
        subject=subject, background=scene.background, article=_ARTICLES.get(scene.background, "a")
    )


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something the base has never seen."""

    name: str
    kind: str
    """"style" or "character"."""
    trigger: str
    """A made-up word that is in no other caption."""
    draw: Callable[[Scene, Jitter], Image.Image]
    mentioned: frozenset[str]
    """The attributes that its images keep and its captions mention."""

    def scene(self, rng: random.Random) -> Scene:
        """A random scene that this concept can show."""
        scene = random_scene(rng)
        if self.kind == "character":
            return replace(scene, shape="zorbl", size="big" if rng.random() < 0.7 else "small")
        while (
            "colour" in self.mentioned and scene.colour == "black"
        ):  # a black neon tube would be invisible
            scene = random_scene(rng)
        return scene

    def caption(self, scene: Scene, rng: random.Random) -> str:
        if self.kind == "character":
            where = rng.choice(_POSITION_WORDS[scene.position])
            return (
                f"a {rng.choice(_SIZE_WORDS[scene.size])} {self.trigger} {where},"
                f" {scene.background} background"
            )
        return f"{object_words(scene, self.mentioned, rng)}, {self.trigger} style"


CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        Concept(
            name="ink",
            kind="style",
            trigger="sumiwash",
            draw=draw_ink,
            mentioned=frozenset({"size", "position"}),
        ),
        Concept(
            name="neon",
            kind="style",
            trigger="glowtube",
            draw=draw_neon,
            mentioned=frozenset({"size", "colour", "position"}),
        ),
        Concept(
            name="zorbl",
            kind="character",
            trigger="zorbl",
            draw=draw_zorbl,
            mentioned=frozenset({"size", "position", "background"}),
        ),
    )
}


def concept_named(name: str) -> Concept:
    if name not in CONCEPTS:
        raise DatasetError(
            "there is no concept {name} in the drawn world",
            hint="Use one of: {known}.",
            name=name,
            known=", ".join(CONCEPTS),
        )
    return CONCEPTS[name]


def draw_concept(name: str, count: int, seed: int) -> list[Drawing]:
    """`count` drawings of a concept, with its trigger in the captions. Deterministic in `seed`.
    Raises DatasetError for an unknown name.
    """
    concept, rng = concept_named(name), random.Random(f"{name} {seed}")
    found = []
    for _ in range(count):
        scene = concept.scene(rng)
        found.append(
            Drawing(
                image=concept.draw(scene, Jitter.draw(rng)),
                caption=concept.caption(scene, rng),
                scene=scene,
            )
        )
    return found


def write_drawings(folder: Path, drawn: list[Drawing]) -> Path:
    """Write the drawings as PNG files with a metadata.csv (`file_name,text`). Returns the csv's
    path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = io.StringIO(newline="")
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["file_name", "text"])
    for number, drawing in enumerate(drawn, start=1):
        name = f"{number:03d}.png"
        drawing.image.save(folder / name)
        writer.writerow([name, drawing.caption])
    target = folder / "metadata.csv"
    files.write_text(target, rows.getvalue())
    return target


def write_concept(folder: Path, name: str, count: int, seed: int) -> Path:
    """`draw_concept`, written as a dataset into `folder`. Returns the csv's path."""
    return write_drawings(folder, draw_concept(name, count, seed))
