"""Images as small JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

QUALITY = 82


def data_uri(path: Path, side: int) -> str | None:
    """An image file as a data URI of a JPEG, at most `side` pixels wide and high. None if it is
    missing or cannot be read.
    """
    try:
        with Image.open(path) as image:
            # a JPEG is decoded at about the size that is needed
            image.draft("RGB", (side, side))
            small = ImageOps.exif_transpose(image)
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            flat = _without_alpha(small)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _without_alpha(image: Image.Image) -> Image.Image:
    """RGB, on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        whole = image.convert("RGBA")
        ground = Image.new("RGBA", whole.size, "white")
        return Image.alpha_composite(ground, whole).convert("RGB")
    return image.convert("RGB")
