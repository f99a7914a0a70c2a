"""The encoded images and captions that are kept with a dataset (training.encoded_cache): their
folder, their size, and how to delete them. Without torch, for the tab.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lora_trainer.dataset.caption_provenance import FOLDER

SUFFIX = ".safetensors"


def encoded_folder(dataset: Path) -> Path:
    """Where they are kept. It may be deleted at any time."""
    return dataset / FOLDER / "encoded"


def encoded_files(dataset: Path) -> Iterator[os.DirEntry[str]]:
    """Their files. None if the folder cannot be read, or is a link, which may lead elsewhere."""
    folder = encoded_folder(dataset)
    if folder.is_symlink() or folder.parent.is_symlink():
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (one for one in entries if one.name.endswith(SUFFIX))


def encoded_size(dataset: Path) -> int:
    """Bytes of all of them."""
    size = 0
    for entry in encoded_files(dataset):
        with contextlib.suppress(OSError):
            size += entry.stat(follow_symlinks=False).st_size
    return size


def delete_encoded(dataset: Path) -> int:
    """Delete them. Returns the bytes that are left, of files that another program has open. A
    training that uses them at this moment encodes what is missing again.
    """
    for entry in list(encoded_files(dataset)):
        with contextlib.suppress(OSError):
            os.unlink(entry.path)  # noqa: PTH108  # a DirEntry's
    return encoded_size(dataset)
