"""Encoded images and captions, kept with the dataset for later trainings on it.

They are in the dataset's folder (dataset.encoded_files), where they may be deleted at any time. A
file's name is a hash of all that its content depends on: image, size, settings, the model's files,
device and precision. What has not been used for longest is deleted beyond `LIMIT` bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lora_trainer.dataset.encoded_files import SUFFIX, encoded_files, encoded_folder
from lora_trainer.training import checksummed

VERSION = 1
"""Increase when encoding changes: what was kept before is then not found any more."""
LIMIT = 2 * 2**30
"""Bytes. Of a dataset that needs more than half of it, nothing is kept."""


class EncodedCache:
    """The kept tensors of a dataset. Nothing here raises: a folder that cannot be read or written,
    or a full disk, only means that images are encoded again.
    """

    def __init__(self, dataset: Path, made_by: str) -> None:
        """made_by: what else the content depends on, as part of each key."""
        self._dataset = dataset
        self.made_by = f"{VERSION}\0{made_by}"
        self._writes = True

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors for a key, marked as used; None if they are missing or damaged."""
        path = self._file(key)
        try:
            tensors = checksummed.read_tensors(path)
        except checksummed.Damaged:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        if not self._writes:
            return
        try:
            checksummed.write_tensors(self._file(key), tensors)
        except OSError:
            # once is enough: it will not be otherwise for the next image
            self._writes = False

    def trim(self, limit: int = LIMIT) -> None:
        """Delete what was used longest ago until `limit` bytes are left."""
        found = sorted(self._files(), reverse=True)
        total = 0
        for _, size, path in found:
            total += size
            if total > limit:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each was used, its size, its path."""
        for entry in encoded_files(self._dataset):
            with contextlib.suppress(OSError):
                details = entry.stat()
                yield details.st_mtime, details.st_size, Path(entry.path)

    def _file(self, key: str) -> Path:
        return encoded_folder(self._dataset) / f"{key}{SUFFIX}"
