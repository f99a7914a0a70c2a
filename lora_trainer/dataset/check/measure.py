"""Measures an image file for the check, decoding it once; many files in parallel.

    measure(path)        -> Measures; raises DatasetError for an unreadable file
    measure_all(paths)   -> {path: Measures or DatasetError}, using a Store of earlier measurements

Measurements do not depend on the settings; check.image_findings compares with them. Pillow and
numpy only, for the WebUI's process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_trainer.dataset.check.borders import Box, inner_box
from lora_trainer.dataset.check.fingerprint import CELLS, KEPT, fingerprint, palette
from lora_trainer.dataset.check.sharpness import edge_width
from lora_trainer.dataset.check.store import Store
from lora_trainer.dataset.check.watermarks import Watermark, find_mark
from lora_trainer.dataset.images import digest, image_size, read_image
from lora_trainer.errors import DatasetError
from lora_trainer.files import UNREADABLE

ANALYSED_SIDE = 768
"""Larger images are reduced to this number of pixels squared."""
TONE_SIDE = 128
"""Side of the image from which brightness is measured, without noise."""
CLIPPED, BRIGHT = 250, (215, 244)
"""Level from which a channel is clipped, and the grey levels of what is bright but not white."""
SHADE = 6
"""Colours within this many levels count as one shade."""
_THREADS = 8
_NUMBERS = tuple(
    "analysed_side darkest middle brightest contrast clipped bright_shades white plain".split()
)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measurements of an image, inside its borders. Sizes are of the upright image."""

    digest: str
    width: int
    height: int
    inner: Box
    """The box inside uniform borders."""
    edge_width: float | None
    """Sigma of the sharpest edges, in pixels of an image of `analysed_side` squared; None: no edges
    (check.sharpness).
    """
    analysed_side: float
    darkest: float
    """1st percentile of the grey levels, of 255."""
    middle: float
    """Median grey level."""
    brightest: float
    """99th percentile of the brightest channel."""
    contrast: float
    """Difference of 99th and 1st percentile, in the channel where it is largest."""
    clipped: float
    """Share in which a channel is clipped, 0 to 1."""
    bright_shades: float
    """Number of shades that are bright but not white: many in a blown-out photograph, few in a
    drawing on white paper.
    """
    white: float
    """Share in which all channels are clipped, 0 to 1."""
    plain: float
    """Share within a twentieth of the contrast of the median, 0 to 1: a drawing's paper, a
    product's backdrop.
    """
    mark: tuple[float, float, float, float] | None
    """(left, top, right, bottom) of a line of lettering, in pixels (check.marks)."""
    fingerprint: str
    """check.fingerprint, in hexadecimal."""
    palette: str
    """Colours of sixteen cells, in hexadecimal."""


def measure(path: Path, content_digest: str | None = None) -> Measures:
    """Decode and measure an image file. Raises DatasetError."""
    size = image_size(path)
    scale = max(1.0, (size[0] * size[1]) ** 0.5 / ANALYSED_SIDE)
    reduced = _reduced(path, size, scale)
    pixels = np.asarray(reduced)
    box = inner_box(pixels)
    image = reduced.crop(box) if box != (0, 0, *reduced.size) else reduced
    grey = image.convert("L")
    return Measures(
        digest=content_digest or digest(path),
        width=size[0],
        height=size[1],
        inner=_enlarged(box, scale, size),
        edge_width=edge_width(np.asarray(grey, np.float32)),
        analysed_side=(grey.width * grey.height) ** 0.5,
        mark=_mark_box(find_mark(grey), box, scale),
        fingerprint=fingerprint(grey).hex(),
        palette=palette(image).hex(),
        **_tones(image),
    )


def measure_all(
    paths: Sequence[Path],
    store: Store | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Path, Measures | DatasetError]:
    """Measure the files in parallel. `progress` receives (files measured, total); its exceptions
    end it.

    Measurements in `store` are reused, new ones added (the caller saves it).
    """
    store = store if store is not None else Store(None)
    measured: dict[Path, Measures | DatasetError] = {}
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for done, (path, result) in enumerate(
            zip(paths, pool.map(lambda path: _attempt(path, store), paths), strict=True), 1
        ):
            measured[path] = result
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return measured


def _attempt(path: Path, store: Store) -> Measures | DatasetError:
    try:
        content = store.digest(path)
        known = _remembered(store.known(content), content)
        if known is not None:
            return known
        result = measure(path, content)
    except DatasetError as problem:
        return problem
    store.put(result)
    return result


def _remembered(known: Mapping[str, Any] | None, content: str) -> Measures | None:
    """Measures from a Store, or None if invalid: the file may be damaged or forged."""
    if known is None:
        return None
    try:
        made = Measures(
            **{
                **known,
                "inner": tuple(known["inner"]),
                "mark": tuple(known["mark"]) if known["mark"] else None,
            }
        )
        numbers = [
            *made.inner,
            *(made.mark or ()),
            *(getattr(made, name) for name in _NUMBERS),
            made.edge_width or 0.0,
        ]
        sound = (
            made.digest == content
            and made.width > 0
            and made.height > 0
            and len(made.inner) == 4
            and len(made.mark or range(4)) == 4
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(type(number) is int for number in (made.width, made.height, *made.inner))
            and (len(bytes.fromhex(made.fingerprint)), len(bytes.fromhex(made.palette)))
            == (KEPT * KEPT, CELLS * CELLS * 3)
        )
    except UNREADABLE:
        return None
    return made if sound else None


def _reduced(path: Path, size: tuple[int, int], scale: float) -> Image.Image:
    """The image, reduced by `scale`."""
    small = max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
    image = read_image(path, covering=small)
    return image if scale == 1 else image.resize(small, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _enlarged(box: Box, scale: float, size: tuple[int, int]) -> Box:
    """A box of the reduced image in pixels of the full `size`, rounded so that no border line
    remains.
    """
    left, top, right, bottom = box
    width, height = size[0] / scale, size[1] / scale
    return (
        int(np.ceil(left * scale)),
        int(np.ceil(top * scale)),
        size[0] if right >= round(width) else int(right * scale),
        size[1] if bottom >= round(height) else int(bottom * scale),
    )


def _mark_box(
    mark: Watermark | None, box: Box, scale: float
) -> tuple[float, float, float, float] | None:
    if mark is None:
        return None
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    corners = (
        left + mark.left * width,
        top + mark.top * height,
        left + mark.right * width,
        top + mark.bottom * height,
    )
    return tuple(round(value * scale, 1) for value in corners)  # type: ignore[return-value]


def _tones(image: Image.Image) -> dict[str, float]:
    small = np.asarray(
        image.resize((TONE_SIDE, TONE_SIDE), Image.Resampling.BOX), np.float32
    ).reshape(-1, 3)
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = np.percentile(small, [1, 99], axis=0)
    lightest, least = small.max(axis=1), small.min(axis=1)
    bright = ((lightest >= CLIPPED) & (least < BRIGHT[1])) | (
        (grey >= BRIGHT[0]) & (grey < BRIGHT[1])
    )
    shades = np.unique((small[bright] // SHADE).astype(np.int64) @ np.array([1, 64, 4096]))
    values = {
        "darkest": np.percentile(grey, 1),
        "middle": np.percentile(grey, 50),
        "brightest": np.percentile(lightest, 99),
        "contrast": (high - low).max(),
        "clipped": (lightest >= CLIPPED).mean(),
        "bright_shades": len(shades),
        "white": (least >= CLIPPED).mean(),
        "plain": (np.abs(grey - np.percentile(grey, 50)) <= max(1, (high - low).max() / 20)).mean(),
    }
    return {name: round(float(value), 4) for name, value in values.items()}
