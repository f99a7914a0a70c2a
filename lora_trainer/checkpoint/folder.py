"""Reads a diffusers folder: each component's configuration and the headers of its safetensors
files. Without torch.

    model_index.json
    unet/config.json
    unet/diffusion_pytorch_model.safetensors   (or .fp16.safetensors, or several with an index)
    scheduler/scheduler_config.json   vae/   text_encoder/   text_encoder_2/
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_trainer import families, files
from lora_trainer.checkpoint.detect import ANOTHER, Detected, detect_file
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.licence import read_licence
from lora_trainer.errors import CheckpointError

INCOMPLETE = "The diffusers folder is incomplete: download it again."


@dataclass(frozen=True, kw_only=True)
class FolderComponent:
    """One model of a diffusers folder."""

    config: dict[str, Any]
    headers: tuple[Header, ...]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A trainable diffusers folder."""

    detected: Detected
    unet: FolderComponent
    text_encoders: tuple[FolderComponent, ...]
    vae: FolderComponent | None


def detect_any(path: Path) -> Detected:
    """Detect the checkpoint at `path`, a file or a diffusers folder. Raises CheckpointError if it
    cannot be trained on.
    """
    return read_folder(path).detected if Path(path).is_dir() else detect_file(path)


def read_folder(path: Path) -> Folder:
    """Read the configurations and headers of a diffusers folder. Raises CheckpointError if it
    cannot be trained on.
    """
    path = Path(path)
    if not (path / "model_index.json").is_file():
        raise _not_diffusers(path)
    for family in families.every():
        found = family.recognise_folder(path)
        if found is not None:
            detected = replace(found.detected, licence=read_licence(path, {}))
            return replace(found, detected=detected)
    kind = str(read_json(path / "model_index.json").get("_class_name", "an unknown pipeline"))
    raise CheckpointError(
        "{path} is a {kind}, which is not supported", hint=ANOTHER, path=path, kind=kind
    )


def read_component(folder: Path) -> FolderComponent:
    """The configuration and weights' headers of one model's folder."""
    if not (folder / "config.json").is_file():
        raise CheckpointError("{path} has no config.json", hint=INCOMPLETE, path=folder)
    return FolderComponent(
        config=read_json(folder / "config.json"),
        headers=tuple(read_header(file) for file in _weight_files(folder)),
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files of the main weights, else of the fp16 variant."""
    for stem in ("diffusion_pytorch_model", "model"):
        for variant in ("", ".fp16"):
            single = folder / f"{stem}{variant}.safetensors"
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if single.is_file():
                return [single]
            if index.is_file():
                return [folder / name for name in _parts_of(index)]
    if any(folder.glob("*.bin")):
        hint = "Use a version with .safetensors files."
        raise CheckpointError(
            "{path} holds its weights as pickles (.bin), which can run any program when opened",
            hint=hint,
            path=folder,
        )
    raise CheckpointError("{path} holds no .safetensors weights", hint=INCOMPLETE, path=folder)


def _parts_of(index: Path) -> list[str]:
    """The names of a sharded model's files; names outside the folder are refused."""
    listed = read_json(index).get("weight_map")
    names = (
        set(listed.values())
        if isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
        else set[str]()
    )
    if not names or any(Path(name).name != name or "\\" in name for name in names):
        raise CheckpointError("{path} does not name the model's files", hint=INCOMPLETE, path=index)
    return sorted(names)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of the folder. Raises CheckpointError."""
    # diffusers writes -Infinity into scheduler configurations
    with contextlib.suppress(OSError, ValueError):
        content = files.load_json(path, infinite=True)
        if isinstance(content, dict):
            return content
    raise CheckpointError("{path} cannot be read", hint=INCOMPLETE, path=path)


def _not_diffusers(path: Path) -> CheckpointError:
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return CheckpointError(
            "{path} is a folder", hint="Name the file inside it: {file}", path=path, file=found[0]
        )
    return CheckpointError(
        "{path} is a folder without model_index.json",
        hint="Name a .safetensors file, a diffusers folder, or a language model's (config.json).",
        path=path,
    )
