"""Training adapters: LoRAs that a model distilled to few steps is trained with.

Training gradually undoes the distillation, so that the model needs many steps again. A training
adapter undoes it at once. It is merged into the base while a LoRA is trained and left out
afterwards, so that the LoRA learns what the images show only, and works on the distilled model.

    kind_for(family, is_distilled) -> TrainingAdapterKind | None
    find_adapter(checkpoint, family, kind, folders) -> LoraChanges | None    by its name and layers
    open_adapter(path) -> LoraChanges

Published ones are ordinary LoRA files made with ostris' ai-toolkit, without alpha (scale 1): all
linear layers of Z-Image Turbo's thirty main blocks under `diffusion_model.`, rank 32 (v1) or 64
(v2), bfloat16; FLUX.1 schnell's under diffusers' names. Without torch; also used by the tab.
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
"""Names, in lower case, of the folders near the checkpoint that are searched."""
DEPTH = 2
"""Levels of subfolders that are searched in each of them."""


def open_adapter(path: Path) -> LoraChanges:
    """Open a training adapter. Raises LoraFileError if it is missing or not a LoRA."""
    if not path.exists():
        raise LoraFileError(
            "there is no training adapter {path}",
            hint="Put the file there again, or set training_adapter to auto or off.",
            path=path,
        )
    return open_changes(path, unstated_scale=1.0)


def kind_for(family: Family, *, is_distilled: bool) -> TrainingAdapterKind | None:
    """The training adapter that a model needs; None if it needs none, or none is known."""
    distilled = family.distilled if is_distilled else None
    return distilled.adapter if distilled is not None else None


def find_adapter(
    checkpoint: Path, family: Family, kind: TrainingAdapterKind, folders: Sequence[Path] = ()
) -> LoraChanges | None:
    """Search for a training adapter beside the checkpoint, in `folders`, and in LoRA folders near
    it. None if there is none. Raises LoraFileError for one that cannot be used.
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
            " folder: it will be used, and the LoRA will work at few steps. Or train on {instead}.",
            {
                "file": kind.file,
                "size": kind.size,
                "source": kind.source,
                "instead": kind.instead,
            },
        ),
    )


def _files(checkpoint: Path, kind: TrainingAdapterKind, folders: Sequence[Path]) -> Iterator[Path]:
    """Files with the adapter's name, best first in each folder."""
    yield from _named(checkpoint.parent, kind, 1)
    for folder in (*folders, *folders_beside(checkpoint, FOLDERS)):
        yield from _named(folder, kind, DEPTH)


def _named(folder: Path, kind: TrainingAdapterKind, depth: int) -> list[Path]:
    """The usual file first, then the others, newest version first."""
    found = list(_walk(folder, kind, depth))
    found.sort(key=lambda file: file.name.casefold(), reverse=True)
    return sorted(found, key=lambda file: file.name != Path(kind.file).name)


def _walk(folder: Path, kind: TrainingAdapterKind, depth: int) -> Iterator[Path]:
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".safetensors"):
                    # a published file may have the name in its folder's name only
                    if kind.name.search(f"{folder.name}/{entry.name}".lower()) and entry.is_file():
                        yield Path(entry.path)
                elif depth and entry.is_dir():
                    inner.append(Path(entry.path))
    except OSError:
        return
    for one in inner:
        yield from _walk(one, kind, depth - 1)
