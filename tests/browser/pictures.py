"""Little images for the journeys: each number another one."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw


def picture(number: int, size: int = 96) -> bytes:
    """A PNG with one disc on a ground; colours and place follow from the number."""
    chance = random.Random(number)
    image = Image.new("RGB", (size, size), tuple(chance.randrange(120, 250) for _ in range(3)))
    left, top = chance.randrange(size // 2), chance.randrange(size // 2)
    ImageDraw.Draw(image).ellipse(
        (left, top, left + size // 2, top + size // 2),
        fill=tuple(chance.randrange(120) for _ in range(3)),
    )
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
