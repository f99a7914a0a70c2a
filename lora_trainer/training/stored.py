"""Tensors on disk that are read back as they were written, or not at all: resume points, and images and captions that are encoded already.

Behind what torch or safetensors write stand a mark and a BLAKE2 hash of it. 100 MB of state take 0.13 s more to write, and as much to read; an
encoded image takes 1 ms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import torch as safetensors

from lora_trainer import files
from lora_trainer.training.device import is_out_of_memory

MARK = b"lora_trainer sum"
DIGEST_SIZE = 32
SEAL_SIZE = len(MARK) + DIGEST_SIZE
CHUNK = 1 << 20

Values = TypeVar("Values")


class Damaged(Exception):
    """The file is not what was written. Its text says what is wrong, as far as that is known."""


def write_state(target: Path, values: dict[str, Any]) -> None:
    """Replace `target` by tensors and plain values, whole or not at all."""

    def write(partial: Path) -> None:
        torch.save(values, partial)
        with partial.open("rb+") as stream:
            digest = _hash()
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
            stream.write(MARK + digest.digest())

    files.replace_file(target, write)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote; a file without a hash, of an earlier version, is taken as it is. Raises Damaged."""
    return _read(lambda: _checked_state(path))


def _checked_state(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        length = max(0, path.stat().st_size - SEAL_SIZE)
        digest, left = _hash(), length
        while left and (chunk := stream.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
        seal = stream.read()
    if seal.startswith(MARK) and seal[len(MARK) :] != digest.digest():
        raise Damaged("it is not as it was written")
    # weights_only: it holds tensors and numbers, and a file from elsewhere must not run code. What follows its archive torch passes over: tried with
    # 2.1, 2.13 and 2.14, each on what each had written
    values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise Damaged("it holds something else")
    return values


def write_tensors(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace `target` by tensors, whole or not at all."""
    content = safetensors.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    files.write_bytes(target, content + MARK + _hash(content).digest())


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote. Raises Damaged, also where there is no file."""

    def read() -> dict[str, torch.Tensor]:
        content = path.read_bytes()
        whole, seal = content[:-SEAL_SIZE], content[-SEAL_SIZE:]
        if seal != MARK + _hash(whole).digest():
            raise Damaged("it is not as it was written")
        tensors: dict[str, torch.Tensor] = safetensors.load(whole)
        return tensors

    return _read(read)


def _read(read: Callable[[], Values]) -> Values:
    try:
        return read()
    except Damaged:
        raise
    except Exception as error:  # a damaged file fails in many ways
        if is_out_of_memory(error):
            raise
        raise Damaged(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _hash(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE)


def is_finite(values: Any) -> bool:
    """Whether every tensor in nested lists and dictionaries holds only finite numbers."""
    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    if isinstance(values, dict):
        return all(map(is_finite, values.values()))
    return all(map(is_finite, values)) if isinstance(values, (list, tuple)) else True
