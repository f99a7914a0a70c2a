"""Checkpoints of random weights in the architecture of published ones.

`published/NAME.json.gz` lists the tensor names and shapes of each file of a model, from the
published headers (tests/benchmark/published_models.py writes it). Tokenizers in separate files are
generated too; their vocabulary is single bytes or letters.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_trainer import files
from lora_trainer.checkpoint.header import BYTES_EACH
from lora_trainer.errors import ConfigError

PUBLISHED = Path(__file__).parent / "published"
DTYPE = "F16"
BLOCK = 1 << 22
"""Number of random values, drawn once; every weight is a slice of them."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class PublishedModel:
    """A published model. name: short, such as sd15."""

    name: str

    @cached_property
    def _stated(self) -> Mapping[str, Any]:
        packed = (PUBLISHED / f"{self.name}.json.gz").read_bytes()
        return files.parse_json(gzip.decompress(packed))  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        """Its usual name."""
        return str(self._stated["title"])

    @property
    def resolution(self) -> int:
        """Side in pixels of its training images."""
        return int(self._stated["resolution"])

    @property
    def packages(self) -> str:
        """The additional set of training libraries that it needs (checkpoint.packages), or ""."""
        return str(self._stated.get("packages", ""))

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Shape]]:
        """File -> tensor -> shape. A file's key is the setting that takes it (base_model, vae),
        with an index if that takes several: text_encoders.0.
        """
        return {
            setting: {name: tuple(shape) for name, shape in shapes.items()}
            for setting, shapes in self._stated["tensors"].items()
        }

    @property
    def byte_count(self) -> int:
        """Total size of its tensors."""
        return BYTES_EACH[DTYPE] * sum(
            math.prod(shape) for shapes in self.tensors.values() for shape in shapes.values()
        )

    def write(self, folder: Path, seed: int = 0) -> dict[str, Any]:
        """Write the files with random weights, unless they exist. Returns setting -> file, list of
        files, or folder of tokenizers.

        Weights are normally distributed with the variance 1 / fan-in, which preserves the scale of
        activations; norm weights are ones, biases zeros.
        """
        block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32)
        written: dict[str, Any] = {}
        for file, shapes in self.tensors.items():
            path = folder / f"{self.name}-{file}.safetensors"
            if not path.exists():
                files.replace_file(path, functools.partial(_write, shapes=shapes, block=block))
            setting, _, number = file.partition(".")
            if number:
                written.setdefault(setting, []).append(path)
            else:
                written[setting] = path
        if kinds := self._stated.get("tokenizers", ()):
            from lora_trainer.bench.tokenizers import write_tokenizers

            written["tokenizers"] = write_tokenizers(folder / "tokenizers", kinds)
        return written


def published() -> dict[str, PublishedModel]:
    """All models by name."""
    names = sorted(path.name.removesuffix(".json.gz") for path in PUBLISHED.glob("*.json.gz"))
    return {name: PublishedModel(name) for name in names}


def named(name: str) -> PublishedModel:
    """The model with this name. Raises ConfigError for an unknown name."""
    known = published()
    if name not in known:
        raise ConfigError(
            "bench has no model {name}",
            hint="Use one of: {known}.",
            name=name,
            known=", ".join(known),
        )
    return known[name]


def packages_of(names: Sequence[str]) -> str:
    """The additional set of training libraries that these models need, or "". Raises ConfigError
    for an unknown name, and if they need different sets.
    """
    sets = {named(name).packages for name in names}
    if len(sets) > 1:
        raise ConfigError(
            "{names} need different versions of the training libraries",
            hint="Run bench separately for each of them.",
            names=", ".join(names),
        )
    return next(iter(sets), "")


def _write(path: Path, shapes: Mapping[str, Shape], block: Any) -> None:
    with path.open("wb") as file:
        header = _header(shapes)
        file.write(len(header).to_bytes(8, "little") + header)
        start = 0
        for name, shape in shapes.items():
            for piece in _weights(name, shape, block, start):
                _put(file, piece)
            start = (start + math.prod(shape)) % BLOCK


def _header(shapes: Mapping[str, Shape]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * BYTES_EACH[DTYPE]
        entries[name] = {"dtype": DTYPE, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return json.dumps(entries).encode()


def _weights(name: str, shape: Shape, block: Any, start: int) -> Iterator[Any]:
    """The values of a tensor, in pieces."""
    count = math.prod(shape)
    if len(shape) < 2:
        yield np.full(count, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
        return
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    while count:
        piece = block[start : start + count]
        yield piece * deviation
        count, start = count - len(piece), (start + len(piece)) % BLOCK


def _put(file: BinaryIO, numbers: Any) -> None:
    file.write(numbers.astype(np.float16).tobytes())
