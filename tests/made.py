"""Things tests train on, made on the spot: small pictures with captions, and tiny checkpoints in the WebUI's format."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image, ImageDraw

from lora_trainer.checkpoint.write import write_checkpoint
from tests.tiny import tiny_parts

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "white", "yellow")


def draw_images(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
    """`count` pictures of one disc each, captioned in metadata.csv as the seeds do: no header."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour, ground = COLOURS[number % 8], COLOURS[(number * 3 + 1) % 8]
        image = Image.new("RGB", size, ground)
        edge = 8 + number % 5
        ImageDraw.Draw(image).ellipse((edge, edge, size[0] - edge, size[1] - edge), fill=colour)
        image.save(folder / f"img{number:02d}.png")
        rows.append(f'img{number:02d}.png,"a {colour} disc on {ground}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@cache
def tiny_checkpoint(family: str, prediction_type: str = "epsilon") -> Path:
    """A tiny checkpoint file of random weights, made once a test session."""
    path = Path(mkdtemp(prefix="tiny-checkpoint-")) / f"tiny-{family}.safetensors"
    # its pictures are 64 pixels wide, and it says so
    write_checkpoint(tiny_parts(family, prediction_type=prediction_type), path, metadata={"modelspec.resolution": "64x64"})
    return path
