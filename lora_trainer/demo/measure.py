"""Looks at a picture of the drawn world and says what it shows: colour statistics and shape
matching, no network.

In: a picture, of whatever origin. Out: a `SceneReading` (shape, colour, size, position,
background), and single numbers that say how much of a concept's style or character a picture has.
The demo's report and the tests judge generated pictures with it; that it reads drawn pictures right
is tested. Pillow and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lora_trainer.demo import world
from lora_trainer.demo.world import Canvas, Jitter, Plane, Scene

ATTRIBUTES = ("shape", "colour", "size", "position", "background")
VISIBLE = 9.0
"""CIELAB distance from the background below which there is nothing to be seen."""
TUBE = 2.0
"""How far a glowing line reaches beyond the outline it follows, in pixels."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True, kw_only=True)
class SceneReading:
    """What a picture seems to show; the thing's attributes are empty where nothing stands out from
    the background.
    """

    shape: str = ""
    colour: str = ""
    size: str = ""
    position: str = ""
    background: str
    fit: float = 0.0
    """How well the best shape covers the thing seen, 0 to 1."""


def pixels(image: Image.Image) -> Canvas:
    """(64, 64, 3), 0 to 255, whatever the picture's size."""
    image = image.convert("RGB")
    if image.size != (world.SIDE, world.SIDE):
        image = image.resize((world.SIDE, world.SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB (..., 3) of 0 to 255 -> CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    part = np.clip(rgb, 0, 255) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack(
        [
            116 * root[..., 1] - 16,
            500 * (root[..., 0] - root[..., 1]),
            200 * (root[..., 1] - root[..., 2]),
        ],
        axis=-1,
    )


def nearest_colour(rgb: NDArray[np.float64]) -> str:
    """The palette's word for a colour."""
    distances = np.linalg.norm(lab(np.array(list(world.PALETTE.values()))) - lab(rgb), axis=1)
    return list(world.PALETTE)[int(distances.argmin())]


def background_colour(canvas: Canvas) -> NDArray[np.float64]:
    """The median colour along the picture's edge; things touch it only here and there."""
    rim = np.concatenate(
        [
            canvas[:2].reshape(-1, 3),
            canvas[-2:].reshape(-1, 3),
            canvas[2:-2, :2].reshape(-1, 3),
            canvas[2:-2, -2:].reshape(-1, 3),
        ]
    )
    median: NDArray[np.float64] = np.median(rim, axis=0)
    return median


def covered(canvas: Canvas) -> Plane:
    """How much each pixel belongs to the thing rather than to the background, 0 to 1: where it
    stands on the way between the two colours.
    """
    background = background_colour(canvas)
    distance = np.linalg.norm(lab(canvas) - lab(background), axis=-1)
    far = float(np.percentile(distance, 97))
    if far < VISIBLE:
        return np.zeros_like(distance)
    # the thing's own colour, not the edge's: a small star is 3 % of the picture
    full = float(np.median(distance[distance >= 0.7 * far]))
    mask: Plane = np.clip((distance / full - 0.12) / 0.76, 0.0, 1.0)
    return mask


def _grey(levels: NDArray[Any]) -> Image.Image:
    # a copy: Pillow quietly does not fill an image that shares numpy's memory
    return Image.fromarray(levels.astype(np.uint8), "L").copy()


def filled(mask: Plane) -> Plane:
    """A thing's mask with everything inside its outline made part of it: what cannot be reached
    from the picture's edge.
    """
    plane = _grey(np.where(np.pad(mask, 1) > 0.4, 255, 0))
    ImageDraw.floodfill(plane, (0, 0), 128)
    inside = np.asarray(plane)[1:-1, 1:-1] == 0
    return np.where(inside, 1.0, mask)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A shape of radius 1 around (0, 0): its area, and the middle of its area."""

    area: float
    middle: tuple[float, float]


@cache
def _form(shape: str) -> _Form:
    steps = (np.arange(400) + 0.5) / 100 - 2
    x, y = np.meshgrid(steps, steps)
    inside = world.DISTANCES[shape](x, y) < 0
    return _Form(
        area=float(inside.sum()) / 1e4, middle=(float(x[inside].mean()), float(y[inside].mean()))
    )


def _matched(mask: Plane, shape: str) -> tuple[float, float, float, float]:
    """A shape laid over the mask with the same area and middle: how well it covers it (0 to 1), its
    radius and its centre.
    """
    x, y = world.pixel_grid(world.SIDE)
    total = mask.sum()
    form = _form(shape)
    radius = math.sqrt(total / form.area)
    centre_x = float((x * mask).sum() / total) - radius * form.middle[0]
    centre_y = float((y * mask).sum() / total) - radius * form.middle[1]
    laid = world.cover(
        world.DISTANCES[shape]((x - centre_x) / radius, (y - centre_y) / radius) * radius, 2.5
    )
    return (
        float(np.minimum(mask, laid).sum() / np.maximum(mask, laid).sum()),
        radius,
        centre_x,
        centre_y,
    )


def read(image: Image.Image, outlined: bool = False) -> SceneReading:
    """What the picture shows. outlined: the thing is drawn as a line, as in neon; its inside counts
    as part of it.
    """
    canvas = pixels(image)
    background = nearest_colour(background_colour(canvas))
    mask = covered(canvas)
    if mask.sum() < 20:
        return SceneReading(background=background)
    strong = canvas[mask > 0.85] if outlined else canvas[mask >= 0.98]
    mask = _largest(filled(mask)) if outlined else _largest(mask)
    best = max((_matched(mask, shape), shape) for shape in world.SHAPES)
    (fit, radius, centre_x, centre_y), shape = best
    radius -= TUBE if outlined else 0.0
    size = min(world.SIZES, key=lambda name: abs(world.SIZES[name] - radius))
    return SceneReading(
        shape=shape,
        colour=nearest_colour(np.median(strong, axis=0)) if len(strong) else "",
        size=size,
        position=_position(centre_x, centre_y, size),
        background=background,
        fit=fit,
    )


def _largest(mask: Plane) -> Plane:
    """The mask without specks apart from the largest thing."""
    plane = _grey(np.where(mask > 0.3, 1, 0))
    label, sizes = 2, {}
    while label < 250 and (np.asarray(plane) == 1).any():
        y, x = np.argwhere(np.asarray(plane) == 1)[0]
        ImageDraw.floodfill(plane, (int(x), int(y)), label)
        sizes[label] = int((np.asarray(plane) == label).sum())
        label += 1
    if not sizes:
        return mask
    largest = np.asarray(plane) == max(sizes, key=lambda found: sizes[found])
    specks = (np.asarray(plane) > 0) & ~largest
    return np.where(specks, 0.0, mask)


def _position(centre_x: float, centre_y: float, size: str) -> str:
    offset_x, offset_y = centre_x - world.SIDE / 2, centre_y - world.SIDE / 2
    if max(abs(offset_x), abs(offset_y)) < world.SHIFT[size] / 2:
        return "centre"
    if abs(offset_x) > abs(offset_y):
        return "left" if offset_x < 0 else "right"
    return "top" if offset_y < 0 else "bottom"


def obeyed(image: Image.Image, scene: Scene, outlined: bool = False) -> dict[str, bool]:
    """For each attribute, whether the picture shows what the scene asks for."""
    reading = read(image, outlined)
    return {name: getattr(reading, name) == getattr(scene, name) for name in ATTRIBUTES}


# How much of a style or a character a picture has


def saturation(image: Image.Image) -> float:
    """Mean difference of the strongest and the weakest of red, green and blue, 0 (grey) to 1."""
    canvas = pixels(image)
    return float((canvas.max(axis=-1) - canvas.min(axis=-1)).mean() / 255)


def edge_softness(image: Image.Image) -> float:
    """How many pixels the way from background to thing takes, where it is steepest: about 1.5 for a
    drawn edge, 6 and more for a running one.
    """
    mask = covered(pixels(image))
    steepness = np.hypot(*np.gradient(mask))
    strong = steepness[steepness > 0.02]
    return float(1 / np.percentile(strong, 90)) if len(strong) else 0.0


def grain(image: Image.Image) -> float:
    """How strongly the background bears the paper's lines: their height in levels of 255; about 0
    without, 9 as drawn.
    """
    canvas = pixels(image)
    brightness = canvas @ LUMINANCE
    free = covered(canvas) < 0.15
    if free.sum() < 100:
        return 0.0
    lines = world.paper_grain(world.SIDE)[free]
    lines = lines - lines.mean()
    seen = brightness[free] - brightness[free].mean()
    return float((seen @ lines) / (lines @ lines))


def darkness(image: Image.Image) -> float:
    """How dark the background is, 0 (white) to 1 (black)."""
    return 1 - float(background_colour(pixels(image)) @ LUMINANCE) / 255


def neon_glow(image: Image.Image) -> float:
    """How much brighter the line around the thing is than its inside, on how dark a background: 0
    (filled, or by day) to about 1.
    """
    canvas = pixels(image)
    night = max(0.0, 1 - float(background_colour(canvas) @ LUMINANCE) / 128)
    mask = covered(canvas)
    whole = filled(mask)
    if whole.sum() < 20:
        return 0.0
    _, radius, centre_x, centre_y, shape = max(
        (*_matched(_largest(whole), shape), shape) for shape in world.SHAPES
    )
    x, y = world.pixel_grid(world.SIDE)
    distance = world.DISTANCES[shape]((x - centre_x) / radius, (y - centre_y) / radius) * radius
    inside = distance < max(-5.0, 0.7 * float(distance.min()))
    light = canvas.max(axis=-1) / 255
    line = float(np.percentile(light[np.abs(distance) < 4], 80))
    return night * max(0.0, line - float(light[inside].mean())) if inside.any() else 0.0


def likeness(image: Image.Image) -> float:
    """How much the most zorbl-like spot of the picture resembles the zorbl: correlation of its
    colours, below 0.5 for other things, 1 for itself.
    """
    canvas = pixels(image)
    return max(_correlation(canvas[inside], colours) for inside, colours in _zorbls())


@cache
def _zorbls() -> tuple[tuple[NDArray[np.bool_], NDArray[np.float64]], ...]:
    """The zorbl at every size, place and small shift: where it covers the picture, and its colours
    there.
    """
    return tuple(_all_zorbls())


def _all_zorbls() -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    for size in world.SIZES:
        for position in world.POSITIONS:
            for dx in (-2.0, 0.0, 2.0):
                for dy in (-2.0, 0.0, 2.0):
                    scenes = [
                        Scene(
                            shape="zorbl", colour="", size=size, position=position, background=name
                        )
                        for name in ("black", "white")
                    ]
                    on_black, on_white = (
                        np.asarray(world.draw_zorbl(scene, Jitter(dx=dx, dy=dy)), dtype=np.float64)
                        for scene in scenes
                    )
                    inside = np.abs(on_black - on_white).max(axis=-1) < 20
                    yield inside, on_black[inside]


def _correlation(seen: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Pearson's, over all pixels and each colour channel apart, averaged; 0 where a channel does
    not vary.
    """
    seen, wanted = seen - seen.mean(axis=0), wanted - wanted.mean(axis=0)
    scale = np.sqrt((seen**2).sum(axis=0) * (wanted**2).sum(axis=0))
    return float(
        np.where(scale > 1, (seen * wanted).sum(axis=0) / np.maximum(scale, 1), 0.0).mean()
    )
