"""The folders of language models on this machine: in the WebUI's models folder, and opened by path.

    models.folders() -> [ModelFolder]     also incomplete ones, which are refused with a reason
    models.open(folder) -> the folders    adds a model's folder, or one with several models in it

    <data folder>/language_models.json    the typed folders: {"folders": [path, ...]}

Typed folders are for local users only, as with datasets: while the WebUI is reachable from other
machines, they are neither listed nor found. Called by checkpoints.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import CheckpointError
from lora_trainer.hosts.base import Host, HostError
from lora_trainer.language.detect import find_folders, is_language_model, read_folder
from lora_trainer.webui.common.typed_folder import typed_folder

SKIPPED = ("stable-diffusion", "lora", "vae")
"""Subfolders of the WebUI's models folder that are not searched: they hold many other files."""


@dataclass(frozen=True)
class ModelFolder:
    title: str
    path: Path


class LanguageModels:
    """Thread-safe."""

    def __init__(self, host: Host, file: Path) -> None:
        self._host = host
        self._file = file
        self._lock = threading.Lock()

    def folders(self) -> list[ModelFolder]:
        """In order of titles; a folder that is named twice is listed once."""
        found = {files.place(one.path): one for one in (*self._typed(), *self._of_host())}
        return sorted(found.values(), key=lambda one: one.title.casefold())

    def open(self, folder: str) -> list[ModelFolder]:
        """The models of a typed folder, which is remembered. Raises CheckpointError if there is
        none. For local users only.
        """
        path = typed_folder(folder, CheckpointError)
        models = _models_in(path)
        if not models:
            # raises an error that says what it is instead
            read_folder(path)
        if len(models) == 1:
            read_folder(models[0].path)
        with self._lock:
            kept = [
                known for known in self._read() if files.place(Path(known)) != files.place(path)
            ]
            content = json.dumps({"folders": [*kept, str(path)]}, ensure_ascii=True, indent=1)
            files.write_text(self._file, content + "\n")
        return models

    def opened(self) -> list[Path]:
        """The typed folders."""
        return [Path(folder) for folder in self._read()]

    def _typed(self) -> Iterator[ModelFolder]:
        if not self._host.is_remote():
            for folder in self.opened():
                yield from _models_in(folder)

    def _of_host(self) -> Iterator[ModelFolder]:
        try:
            models = self._host.paths().models
            places = sorted(place for place in models.iterdir() if place.is_dir())
        except (HostError, OSError):
            return
        for place in places:
            if place.name.casefold() not in SKIPPED and not place.name.startswith("."):
                for path in [place] if is_language_model(place) else find_folders(place, 2):
                    yield ModelFolder(path.relative_to(models).as_posix(), path)

    def _read(self) -> list[str]:
        nothing: list[str] = []
        return files.read_json(
            self._file,
            lambda told: [str(folder) for folder in told["folders"]],
            nothing,
            names=True,
        )


def _models_in(folder: Path) -> list[ModelFolder]:
    if is_language_model(folder):
        return [ModelFolder(folder.name, folder)]
    return [
        ModelFolder(f"{folder.name}/{path.relative_to(folder).as_posix()}", path)
        for path in find_folders(folder)
    ]
