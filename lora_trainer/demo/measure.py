"""Evaluates a generated image: colour statistics and shape matching, without a network.

Image -> `SceneReading` (shape, colour, size, position, background), and numbers that measure a
concept's style or character. Used by the demo's report and tests. Pillow and numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lora_trainer.demo import world
from lora_trainer.demo.world import Canvas, Jitter, Plane, Scene

ATTRIBUTES = ("shape", "colour", "size", "position", "background")
VISIBLE = 9.0
"""CIELAB distance from the background below which nothing is visible."""
TUBE = 2.0
"""Half width of a neon line, in pixels."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True, kw_only=True)
class SceneReading:
    """What an image shows; the object's attributes are empty if nothing stands out from the
    background.
    """

    shape: str = ""
    colour: str = ""
    size: str = ""
    position: str = ""
    background: str
    fit: float = 0.0
    """Overlap of the best shape with the object, 0 to 1."""


def pixels(image: Image.Image) -> Canvas:
    """(64, 64, 3), 0 to 255, resized if needed."""
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
    """The name of the nearest colour in the palette."""
    distances = np.linalg.norm(lab(np.array(list(world.PALETTE.values()))) - lab(rgb), axis=1)
    return list(world.PALETTE)[int(distances.argmin())]


def background_colour(canvas: Canvas) -> NDArray[np.float64]:
    """The median colour along the image's edge."""
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
    """How much each pixel belongs to the object, 0 to 1, from its colour's position between
    background and object.
    """
    background = background_colour(canvas)
    distance = np.linalg.norm(lab(canvas) - lab(background), axis=-1)
    far = float(np.percentile(distance, 97))
    if far < VISIBLE:
        return np.zeros_like(distance)
    # the object's colour, not its edge's: a small star is 3 % of the image
    full = float(np.median(distance[distance >= 0.7 * far]))
    mask: Plane = np.clip((distance / full - 0.12) / 0.76, 0.0, 1.0)
    return mask


def _grey(levels: NDArray[Any]) -> Image.Image:
    # a copy: Pillow does not fill an image that shares numpy's memory
    return Image.fromarray(levels.astype(np.uint8), "L").copy()


def filled(mask: Plane) -> Plane:
    """The mask with everything inside its outline filled."""
    plane = _grey(np.where(np.pad(mask, 1) > 0.4, 255, 0))
    ImageDraw.floodfill(plane, (0, 0), 128)
    inside = np.asarray(plane)[1:-1, 1:-1] == 0
    return np.where(inside, 1.0, mask)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A shape of radius 1 around (0, 0): its area and centroid."""

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
    """A shape fitted to the mask's area and centroid: overlap (0 to 1), radius and centre."""
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
    """What the image shows. outlined: the object is a line, as in neon; its inside is filled."""
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
    """The mask of the largest object only."""
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
    """For each attribute, whether the image agrees with the scene."""
    reading = read(image, outlined)
    return {name: getattr(reading, name) == getattr(scene, name) for name in ATTRIBUTES}


# Measures of a style or character


def saturation(image: Image.Image) -> float:
    """Mean of max(R, G, B) - min(R, G, B), 0 (grey) to 1."""
    canvas = pixels(image)
    return float((canvas.max(axis=-1) - canvas.min(axis=-1)).mean() / 255)


def edge_softness(image: Image.Image) -> float:
    """Width in pixels of the transition from background to object: about 1.5 as drawn, 6 and more
    if blurred.
    """
    mask = covered(pixels(image))
    steepness = np.hypot(*np.gradient(mask))
    strong = steepness[steepness > 0.02]
    return float(1 / np.percentile(strong, 90)) if len(strong) else 0.0


def grain(image: Image.Image) -> float:
    """Amplitude of the paper's lines in the background, in levels of 255: about 0 without, 9 as
    drawn.
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
    """Darkness of the background, 0 (white) to 1 (black)."""
    return 1 - float(background_colour(pixels(image)) @ LUMINANCE) / 255


def neon_glow(image: Image.Image) -> float:
    """How much brighter the outline is than the inside, weighted by the background's darkness: 0 to
    about 1.
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
    """Highest correlation with the zorbl at any position: below 0.5 for other objects, 1 for
    itself.
    """
    canvas = pixels(image)
    return max(_correlation(canvas[inside], colours) for inside, colours in _zorbls())


@cache
def _zorbls() -> tuple[tuple[NDArray[np.bool_], NDArray[np.float64]], ...]:
    """The zorbl at every size and position with small shifts: the pixels it covers, and their
    colours.
    """
    found, shifts = [], (-2.0, 0.0, 2.0)
    for size, position, dx, dy in product(world.SIZES, world.POSITIONS, shifts, shifts):
        scenes = (
            Scene(shape="zorbl", colour="", size=size, position=position, background=name)
            for name in ("black", "white")
        )
        on_black, on_white = (
            np.asarray(world.draw_zorbl(scene, Jitter(dx=dx, dy=dy)), dtype=np.float64)
            for scene in scenes
        )
        inside = np.abs(on_black - on_white).max(axis=-1) < 20
        found.append((inside, on_black[inside]))
    return tuple(found)


def _correlation(seen: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Pearson's correlation over all pixels, averaged over colour channels; 0 for a constant
    channel.
    """
    seen, wanted = seen - seen.mean(axis=0), wanted - wanted.mean(axis=0)
    scale = np.sqrt((seen**2).sum(axis=0) * (wanted**2).sum(axis=0))
    return float(
        np.where(scale > 1, (seen * wanted).sum(axis=0) / np.maximum(scale, 1), 0.0).mean()
    )
