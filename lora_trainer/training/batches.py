"""Encoded examples -> the batches of each step.

Latents are cached as moments (mean and standard deviation), so that each step samples from the
VAE's distribution; text states are cached for every caption, unless captions change from step to
step or the text encoder is trained. The same (seed, step, part) always gives the same batch.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.captions import training_caption, variants
from lora_trainer.dataset.scan import Example
from lora_trainer.errors import NotFinite, TrainingError
from lora_trainer.families.base import Family, NoiseProcess, TextStates
from lora_trainer.families.components.vae import draw_latents
from lora_trainer.settings.training import CheckpointSettings, DatasetSettings, caches_on_disk
from lora_trainer.training import checksummed
from lora_trainer.training.encoded_cache import LIMIT, EncodedCache
from lora_trainer.training.images import load_pixels
from lora_trainer.training.processes import ALONE, Processes
from lora_trainer.training.randomness import number_generator, tensor_generator


@dataclass(frozen=True)
class Batch:
    """One batch on the CPU: latents (B, C, h, w); noise, same shape; timesteps (B,), from the
    family's noise process; captions; size_conditions (B, 6).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    captions: tuple[str, ...]
    size_conditions: torch.Tensor

    def pin_memory(self) -> Batch:
        """The same in page-locked memory."""
        return Batch(
            latents=self.latents.pin_memory(),
            noise=self.noise.pin_memory(),
            timesteps=self.timesteps.pin_memory(),
            captions=self.captions,
            size_conditions=self.size_conditions.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Something encoded that is to be kept: under which key, of which names and shapes (None: any),
    and how it is made.
    """

    key: str
    shapes: Mapping[str, tuple[int, ...] | None]
    make: Callable[[], dict[str, torch.Tensor]]


MODEL_FILES = (".safetensors", ".json")
"""What a model's output depends on in a diffusers folder."""


class TensorStore:
    """Tensors by key, in memory or on disk. Keys are hashes of what the content depends on, so
    entries on disk are reused when a run is resumed; damaged ones count as missing. `shared`: what
    earlier runs have kept, which is looked at first, and added to.
    """

    def __init__(self, folder: Path | None, shared: EncodedCache | None = None) -> None:
        self._folder = folder
        self._shared = shared
        self._kept: dict[str, dict[str, torch.Tensor]] = {}

    def fill(
        self,
        wanted: Sequence[Wanted],
        processes: Processes = ALONE,
        before: Callable[[], object] = lambda: None,
    ) -> Iterator[int]:
        """Make and keep what is not there yet; yields the number that is there. Of several
        processes each makes a share, and all get everything: over their connection, and through
        the files where they have the same folder. before: called once, in every process, if
        anything is to be made.
        """
        lacking: set[int] = set()
        for place, one in enumerate(wanted):
            if self.holds(one.key, one.shapes):
                yield place + 1 - len(lacking)
            else:
                lacking.add(place)
        needed = sorted(set().union(*processes.gather(lacking)))
        if needed:
            before()
        done = len(wanted) - len(needed)
        for start in range(0, len(needed), processes.count):
            turn = needed[start : start + processes.count]
            mine = turn[processes.rank] if processes.rank < len(turn) else None
            made = None
            if mine is not None and mine in lacking:
                made = wanted[mine].make()
                self.put(wanted[mine].key, made)
            elif mine is not None:
                made = self.get(wanted[mine].key)
            for place, tensors in zip(turn, processes.gather(made), strict=False):
                one = wanted[place]
                if place != mine and tensors is not None and not self.holds(one.key, one.shapes):
                    self.put(one.key, tensors)
            done += len(turn)
            yield done

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        self._put(key, tensors)
        if self._shared is not None:
            self._shared.put(self._shared_key(key), tensors)

    def _put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        if self._folder is None:
            self._kept[key] = tensors
        else:
            checksummed.write_tensors(self._file(key), tensors)

    def get(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors for a key. Raises TrainingError if they are missing or damaged."""
        if self._folder is None:
            return self._kept[key]
        try:
            return checksummed.read_tensors(self._file(key))
        except checksummed.Damaged as damage:
            hint = (
                "Continue the run with `resume`: it is encoded again. If this happens again, check"
                " the disk."
            )
            raise TrainingError(
                "{file}, which holds an encoded image or caption, is damaged",
                hint=hint,
                file=self._file(key),
            ) from damage

    def holds(self, key: str, shapes: Mapping[str, tuple[int, ...] | None]) -> bool:
        """Whether finite tensors of these names and shapes exist for the key; None means any
        shape.
        """
        if self._folder is None:
            return key in self._kept or self._take_shared(key, shapes)
        try:
            tensors = checksummed.read_tensors(self._file(key))
        except checksummed.Damaged:
            return self._take_shared(key, shapes)
        return _is_as_wanted(tensors, shapes) or self._take_shared(key, shapes)

    def _take_shared(self, key: str, shapes: Mapping[str, tuple[int, ...] | None]) -> bool:
        """Take what an earlier run has kept, if it is there and sound."""
        if self._shared is None:
            return False
        tensors = self._shared.get(self._shared_key(key))
        if tensors is None or not _is_as_wanted(tensors, shapes):
            return False
        self._put(key, tensors)
        return True

    def _shared_key(self, key: str) -> str:
        assert self._shared is not None
        return _key(key, self._shared.made_by)

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.safetensors"


def _is_as_wanted(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...] | None]
) -> bool:
    shaped = tensors.keys() == shapes.keys() and all(
        shape in (None, tuple(tensors[name].shape)) for name, shape in shapes.items()
    )
    return shaped and checksummed.is_finite(tensors)


def stores_for(
    setting: str, byte_count: int, folder: Path, shared: EncodedCache | None = None
) -> tuple[TensorStore, TensorStore]:
    """The stores of latents and of captions for this cache_latents and total size."""
    if byte_count > LIMIT / 2:
        shared = None
    on_disk = caches_on_disk(setting, byte_count)
    if on_disk:
        return (TensorStore(folder / "images", shared), TensorStore(folder / "captions", shared))
    return (TensorStore(None, shared), TensorStore(None, shared))


class EncodedImages:
    """The encoded images, by index."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._keys: dict[int, str] = {}

    def encode(
        self,
        parts: Parts,
        examples: Sequence[Example],
        buckets: Mapping[Bucket, Sequence[int]],
        settings: DatasetSettings,
        vae_file: Path,
        load_vae: Callable[[], object] = lambda: None,
        processes: Processes = ALONE,
        dtype: torch.dtype = torch.float32,
        before: Callable[[], object] = lambda: None,
    ) -> Iterator[int]:
        """Encode the images that are not cached yet; yields the number done. `parts` needs its vae,
        loaded from `vae_file` in `dtype`; `load_vae` is called before each image that needs it,
        `before` once if there are any.

        Raises NotFinite if the VAE's output is not finite.
        """
        vae_key = file_key(vae_file) + ("" if dtype == torch.float32 else f"\n{dtype}")

        def made(example: Example, bucket: Bucket) -> dict[str, torch.Tensor]:
            load_vae()
            tensors = _encoded(parts, example, bucket, settings)
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise NotFinite(
                    "the VAE in {path} encodes {name} to NaN or infinite numbers",
                    hint="Set vae to another VAE file for this kind of checkpoint.",
                    path=vae_file,
                    name=example.name,
                )
            return tensors

        wanted = []
        for bucket, indices in buckets.items():
            shapes = _shapes(parts.family, bucket, settings)
            for index in indices:
                self._keys[index] = key = _key(
                    examples[index].digest,
                    f"{bucket.width}x{bucket.height}",
                    settings.background,
                    settings.flip_augmentation,
                    vae_key,
                )
                make = functools.partial(made, examples[index], bucket)
                wanted.append(Wanted(key=key, shapes=shapes, make=make))
        return self._store.fill(wanted, processes, before)

    def get(self, index: int, *, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments (2 x channels, h, w), optionally of the mirrored image, and size condition (6,);
        float32.
        """
        tensors = self._store.get(self._keys[index])
        return tensors["mirrored" if mirrored else "moments"], tensors["size_condition"]


def _shapes(
    family: Family, bucket: Bucket, settings: DatasetSettings
) -> dict[str, tuple[int, ...] | None]:
    """The shapes of `_encoded`."""
    side = family.pixels_per_latent
    moments = (2 * family.latent_channels, bucket.height // side, bucket.width // side)
    return {
        "moments": moments,
        "size_condition": (6,),
        **({"mirrored": moments} if settings.flip_augmentation else {}),
    }


def _encoded(
    parts: Parts, example: Example, bucket: Bucket, settings: DatasetSettings
) -> dict[str, torch.Tensor]:
    loaded = load_pixels(example, bucket, settings.background)
    encode = parts.family.encode_images
    tensors = {
        "moments": encode(parts.vae, loaded.pixels[None])[0],
        "size_condition": torch.tensor(loaded.size_condition, dtype=torch.float32),
    }
    if settings.flip_augmentation:
        tensors["mirrored"] = encode(parts.vae, loaded.pixels.flip(-1)[None])[0]
    return tensors


def file_key(path: Path) -> str:
    """Identifies the content of a file, or of all files of a diffusers folder, without reading it,
    for cache keys.
    """
    if path.is_dir():
        inside = (one for one in path.rglob("*") if one.suffix in MODEL_FILES and one.is_file())
        return "\n".join([str(path), *map(file_key, sorted(inside))])
    details = path.stat()
    return f"{path}:{details.st_size}:{details.st_mtime_ns}"


def _key(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=20).hexdigest()


class CaptionEncoder:
    """Captions -> text states: cached if captions are constant, otherwise (`live`) encoded in each
    step.
    """

    def __init__(
        self,
        parts: Parts,
        settings: CheckpointSettings,
        store: TensorStore,
        encoder_key: str,
        *,
        live: bool,
    ) -> None:
        """`encoder_key` identifies the text encoders' weights."""
        self._parts = parts
        self._settings = settings
        self._store = store
        self._encoder_key = encoder_key
        self.live = live

    def keep(
        self,
        captions: Iterable[str],
        dtype: torch.dtype,
        load: Callable[[], object] = lambda: None,
        processes: Processes = ALONE,
        before: Callable[[], object] = lambda: None,
    ) -> Iterator[int]:
        """Encode and cache captions in `dtype`; of an Example's caption, every variant. Includes
        the empty caption, for padding; yields the number done. `load` is called before each one
        that needs the text encoders, `before` once if there are any.
        """
        shapes = dict.fromkeys(self._parts.family.text_tensors)
        texts = dict.fromkeys(["", *(one for text in captions for one in variants(text))])

        def made(caption: str) -> dict[str, torch.Tensor]:
            load()
            return self._finite_states(caption, dtype)

        wanted = [
            Wanted(key=self._key(text), shapes=shapes, make=functools.partial(made, text))
            for text in texts
        ]
        return self._store.fill(wanted, processes, before)

    @torch.no_grad()
    def _finite_states(self, caption: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        states = self._encode([caption])
        if not bool(states.hidden.isfinite().all()):
            raise NotFinite(
                'the text encoder encodes the caption "{caption}" to NaN or infinite numbers',
                hint=(
                    "Set mixed_precision to bf16 or no. If that does not help, the checkpoint is"
                    " broken: choose another."
                ),
                caption=caption,
            )
        return {name: tensor.cpu().to(dtype) for name, tensor in states.tensors().items()}

    def states(self, captions: Sequence[str]) -> TextStates:
        """One row per caption. With `live`, gradients reach the text encoders."""
        if self.live:
            return self._encode(captions)
        rows = [self._kept(caption) for caption in captions]
        return self._parts.family.join(rows, self._kept(""))

    def _kept(self, caption: str) -> TextStates:
        return TextStates(**self._store.get(self._key(caption)))

    def _key(self, caption: str) -> str:
        return _key(
            caption, self._settings.clip_skip, self._settings.max_token_length, self._encoder_key
        )

    def _encode(self, captions: Sequence[str]) -> TextStates:
        return self._parts.family.encode_captions(
            self._parts,
            captions,
            clip_skip=self._settings.clip_skip,
            max_token_length=self._settings.max_token_length,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The encoded dataset, and all random draws for a batch."""

    examples: Sequence[Example]
    images: EncodedImages
    settings: DatasetSettings
    seed: int
    noise_offset: float
    noise_process: NoiseProcess

    def batch(
        self, indices: Sequence[int], step: int, part: int, rows: Sequence[int] | None = None
    ) -> Batch:
        """The batch of these examples: the `part`-th of gradient accumulation in `step`. rows:
        those of it that are wanted, as they are in the whole batch.
        """
        chosen = range(len(indices)) if rows is None else rows
        numbers = number_generator(self.seed, "caption", step, part)
        generator = tensor_generator(self.seed, "noise", step, part)
        mirror = [self.settings.flip_augmentation and numbers.random() < 0.5 for _ in indices]
        encoded = [self.images.get(indices[row], mirrored=mirror[row]) for row in chosen]
        moments = torch.stack([moments for moments, _ in encoded])
        shape = (len(indices), moments.shape[1] // 2, *moments.shape[2:])
        wanted = torch.tensor(list(chosen))
        latents = draw_latents(moments, torch.randn(shape, generator=generator)[wanted])
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
        captions = [self._caption(self.examples[index].caption, numbers) for index in indices]
        return Batch(
            latents=latents,
            noise=noise[wanted],
            timesteps=self.noise_process.draw(shape, generator)[wanted],
            captions=tuple(captions[row] for row in chosen),
            size_conditions=torch.stack([sizes for _, sizes in encoded]),
        )

    def _caption(self, caption: str, numbers: random.Random) -> str:
        settings = self.settings
        return training_caption(
            caption,
            shuffle=settings.shuffle_caption,
            keep_tokens=settings.keep_tokens,
            dropout=settings.caption_dropout,
            random=numbers,
        )
