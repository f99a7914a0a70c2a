"""Image file -> the tensor for the VAE, and SDXL's size condition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from PIL import Image

from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.images import fit, read_image
from lora_trainer.dataset.scan import Example


@dataclass(frozen=True)
class Pixels:
    """pixels: (3, H, W) float32 in [-1, 1], of the bucket's size. size_condition: (height, width)
    each of original size, crop offset and target size.
    """

    pixels: torch.Tensor
    size_condition: tuple[int, int, int, int, int, int]


def load_pixels(example: Example, bucket: Bucket, background: str) -> Pixels:
    """Read, resize and crop an example's image. Raises DatasetError if unreadable."""
    read = read_image(example.path, background, covering=(bucket.width, bucket.height))
    fitted = fit(read, bucket, whole=(example.width, example.height))
    width, height = fitted.original_size
    top, left = fitted.crop_top_left
    return Pixels(to_tensor(fitted.image), (height, width, top, left, bucket.height, bucket.width))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    values = numpy.array(image.convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1).contiguous() / 127.5 - 1


def to_image(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> RGB image."""
    return Image.fromarray(
        (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )
