"""Examples, encoded once -> the batches of each step.

Latents are kept as moments (mean and deviation), so that each step draws its own sample as the VAE would; text states are kept for every caption that
can occur, unless captions change from step to step or the text encoder learns. train.py asks for a batch by its indices; the same (seed, step,
part) always gives the same batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lora_trainer import files
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.config import CheckpointSettings, DatasetSettings
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.captions import training_caption
from lora_trainer.dataset.scan import Example
from lora_trainer.training.encode import TextStates, draw_latents, encode_captions, encode_image, join_rows
from lora_trainer.training.images import load_pixels
from lora_trainer.training.randomness import number_generator, tensor_generator

MEMORY_LIMIT = 2 * 1024**3
"""Encoded images beyond this many bytes go to disk when cache_latents is auto."""


@dataclass(frozen=True)
class Batch:
    """One batch on the CPU: latents (B, 4, h, w); noise of the same shape; timesteps (B,); captions; size_conditions (B, 6); image names."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    captions: tuple[str, ...]
    size_conditions: torch.Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class EncodedImage:
    """moments: (8, h, w) float32, and those of the mirrored image if it is trained too; size_condition: see images.Pixels."""

    moments: torch.Tensor
    mirrored: torch.Tensor | None
    size_condition: torch.Tensor


class ImageStore:
    """Encoded images by index, in memory or, keyed by content, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[int, EncodedImage] = {}
        self._keys: dict[int, str] = {}

    def put(self, index: int, key: str, image: EncodedImage) -> None:
        if self._folder is None:
            self._kept[index] = image
            return
        tensors = {"moments": image.moments, "size_condition": image.size_condition}
        if image.mirrored is not None:
            tensors["mirrored"] = image.mirrored
        target = self._folder / f"{key}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(target, lambda partial: save_file(tensors, partial))
        self._keys[index] = key

    def find(self, index: int, key: str) -> bool:
        """Whether an image of this content was encoded before; then it is known by this index too."""
        if self._folder is None or not (self._folder / f"{key}.safetensors").exists():
            return False
        self._keys[index] = key
        return True

    def get(self, index: int) -> EncodedImage:
        if self._folder is None:
            return self._kept[index]
        tensors = load_file(self._folder / f"{self._keys[index]}.safetensors")
        return EncodedImage(tensors["moments"], tensors.get("mirrored"), tensors["size_condition"])


def store_for(setting: str, pixel_count: int, mirrored: bool, folder: Path) -> ImageStore:
    """cache_latents -> where encoded images are kept. Moments take half a byte a pixel, twice that with mirrored ones."""
    size = pixel_count * (2 if mirrored else 1) // 2
    on_disk = setting == "disk" or (setting == "auto" and size > MEMORY_LIMIT)
    return ImageStore(folder if on_disk else None)


def encode_images(
    vae: object,
    examples: Sequence[Example],
    buckets: Mapping[Bucket, Sequence[int]],
    settings: DatasetSettings,
    store: ImageStore,
    vae_key: str,
) -> Iterator[int]:
    """Fill the store, one image after the other; yields how many are done. `vae_key` names the VAE's weights in the disk cache."""
    done = 0
    for bucket, indices in buckets.items():
        for index in indices:
            example = examples[index]
            key = _key(example.digest, bucket, settings, vae_key)
            if not store.find(index, key):
                loaded = load_pixels(example, bucket, settings.background)
                moments = encode_image(vae, loaded.pixels[None])[0]
                mirrored = encode_image(vae, loaded.pixels.flip(-1)[None])[0] if settings.flip_augmentation else None
                store.put(index, key, EncodedImage(moments, mirrored, torch.tensor(loaded.size_condition, dtype=torch.float32)))
            done += 1
            yield done


def _key(content: str, bucket: Bucket, settings: DatasetSettings, vae_key: str) -> str:
    text = f"{content}:{bucket.width}x{bucket.height}:{settings.background}:{settings.flip_augmentation}:{vae_key}"
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


class Captions:
    """Captions -> text states: looked up where captions are constant, encoded anew where they change or the text encoder learns."""

    def __init__(self, parts: Parts, settings: CheckpointSettings, *, live: bool) -> None:
        self._parts = parts
        self._settings = settings
        self._known: dict[str, TextStates] = {}
        self.live = live

    def keep(self, captions: Iterable[str], dtype: torch.dtype) -> None:
        """Encode captions for later, on the CPU in `dtype`. The empty one is always among them: it fills up shorter captions."""
        with torch.no_grad():
            for caption in dict.fromkeys(["", *captions]):
                if caption not in self._known:
                    states = self._encode([caption])
                    self._known[caption] = TextStates(states.hidden.cpu().to(dtype), None if states.pooled is None else states.pooled.cpu().to(dtype))

    def states(self, captions: Sequence[str]) -> TextStates:
        """One row for each caption. With `live`, gradients reach the text encoders."""
        if self.live:
            return self._encode(captions)
        return join_rows([self._known[caption] for caption in captions], self._known[""].row(0))

    def _encode(self, captions: Sequence[str]) -> TextStates:
        return encode_captions(self._parts, captions, clip_skip=self._settings.clip_skip, max_token_length=self._settings.max_token_length)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The encoded dataset, and every random draw a batch needs."""

    examples: Sequence[Example]
    store: ImageStore
    settings: DatasetSettings
    seed: int
    noise_offset: float
    timestep_count: int

    def batch(self, indices: Sequence[int], step: int, part: int) -> Batch:
        """The batch of these examples in `step`, as its `part`-th piece of gradient accumulation."""
        numbers = number_generator(self.seed, "caption", step, part)
        generator = tensor_generator(self.seed, "noise", step, part)
        encoded = [self.store.get(index) for index in indices]
        mirror = [self.settings.flip_augmentation and numbers.random() < 0.5 for _ in indices]
        moments = torch.stack(
            [image.mirrored if flip and image.mirrored is not None else image.moments for image, flip in zip(encoded, mirror, strict=True)]
        )
        shape = (len(indices), 4, *moments.shape[2:])
        latents = draw_latents(moments, torch.randn(shape, generator=generator))
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn((len(indices), 4, 1, 1), generator=generator)
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=torch.randint(0, self.timestep_count, (len(indices),), generator=generator),
            captions=tuple(self._caption(self.examples[index].caption, numbers) for index in indices),
            size_conditions=torch.stack([image.size_condition for image in encoded]),
            names=tuple(self.examples[index].path.name for index in indices),
        )

    def _caption(self, caption: str, numbers: random.Random) -> str:
        settings = self.settings
        return training_caption(
            caption, shuffle=settings.shuffle_caption, keep_tokens=settings.keep_tokens, dropout=settings.caption_dropout, random=numbers
        )
