"""Training adapters: LoRAs with which a model that was distilled to few steps is trained.

Training undoes a distillation little by little: after it the model needs many steps again. A
training adapter undoes it at once. It is part of the base while a LoRA is trained and is left out
afterwards, so that the LoRA learns what the images show, and works on the distilled model as it is.

    kind_for(family, is_distilled) -> TrainingAdapterKind | None
    find_adapter(checkpoint, family, kind, folders) -> LoraChanges | None    by its name and layers
    open_adapter(path) -> LoraChanges

Published ones are ordinary LoRA files without alpha, whose scale then is 1, as in ostris'
ai-toolkit, with which they were made: all linear layers of Z-Image Turbo's thirty main blocks under
`diffusion_model.`, rank 32 (v1) or 64 (v2), bfloat16; FLUX.1 schnell's under diffusers' names.
Without torch; also used by the tab.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_trainer.checkpoint.part_files import folders_beside
from lora_trainer.checkpoint.parts import TrainingAdapterKind
from lora_trainer.errors import LoraFileError, Message
from lora_trainer.families.base import Family
from lora_trainer.lora.changes import LoraChanges, open_changes

FOLDERS = frozenset(("lora", "loras", "training_adapters"))
"""Names, in lower case, of folders beside the checkpoint's and above it that are looked into."""
DEPTH = 2
"""Folders below each of those."""


def open_adapter(path: Path) -> LoraChanges:
    """A training adapter's layers. Raises LoraFileError if it is none, or missing."""
    if not path.exists():
        raise LoraFileError(
            "there is no training adapter {path}",
            hint="Put the file there again, or set training_adapter to auto or off.",
            path=path,
        )
    return open_changes(path, unstated_scale=1.0)


def kind_for(family: Family, *, is_distilled: bool) -> TrainingAdapterKind | None:
    """The training adapter that a model needs; None: it needs none, or there is none."""
    distilled = family.distilled if is_distilled else None
    return distilled.adapter if distilled is not None else None


def find_adapter(
    checkpoint: Path, family: Family, kind: TrainingAdapterKind, folders: Sequence[Path] = ()
) -> LoraChanges | None:
    """The training adapter of this kind: beside the checkpoint, in these folders, or in LoRA
    folders around it. Raises LoraFileError for one that cannot be used.
    """
    for file in _files(checkpoint, kind, folders):
        changes = open_adapter(file)
        if not changes.families or family.id in changes.families:
            return changes
    return None


def missing(checkpoint: Path, kind: TrainingAdapterKind) -> tuple[Message, Message]:
    """The warning that a model is trained without its training adapter, and a hint."""
    return (
        Message(
            "{path} is distilled to few steps, and training alone undoes that: images with the LoRA"
            " become blurry",
            {"path": checkpoint.name},
        ),
        Message(
            "Put its training adapter {file} ({size}, {source}) beside it or into the WebUI's LoRA"
            " folder: it is then used, and the LoRA works at few steps. Or train on {instead}.",
            {
                "file": kind.file,
                "size": kind.size,
                "source": kind.source,
                "instead": kind.instead,
            },
        ),
    )


def _files(checkpoint: Path, kind: TrainingAdapterKind, folders: Sequence[Path]) -> Iterator[Path]:
    """Files by the adapter's name, best first in each place."""
    yield from _named(checkpoint.parent, kind, 1)
    for folder in (*folders, *folders_beside(checkpoint, FOLDERS)):
        yield from _named(folder, kind, DEPTH)


def _named(folder: Path, kind: TrainingAdapterKind, depth: int) -> list[Path]:
    """The usual file first, then the others from the last version to the first."""
    found = list(_walk(folder, kind, depth))
    found.sort(key=lambda file: file.name.casefold(), reverse=True)
    return sorted(found, key=lambda file: file.name != Path(kind.file).name)


def _walk(folder: Path, kind: TrainingAdapterKind, depth: int) -> Iterator[Path]:
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".safetensors"):
                    # a published file may be named by its folder alone
                    if kind.name.search(f"{folder.name}/{entry.name}".lower()) and entry.is_file():
                        yield Path(entry.path)
                elif depth and entry.is_dir():
                    inner.append(Path(entry.path))
    except OSError:
        return
    for one in inner:
        yield from _walk(one, kind, depth - 1)
