"""A run's folder: where each file lies, who may begin in it, and whether its worker lives. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.runs.events import Event, read_events
from lora_trainer.runs.state import RunState, fold


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. See the package's docstring for what each file is."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def requests(self) -> Path:
        return self.path / "requests"

    @property
    def worker(self) -> Path:
        return self.path / "worker.json"

    @property
    def lock(self) -> Path:
        return self.path / "worker.lock"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def has_learned(self) -> bool:
        """Whether anything here came out of training: a LoRA file or a resume point."""
        return any(self.path.glob("*.safetensors")) or any(self.checkpoints.glob("*.safetensors")) or any(self.state.glob("*.pt"))

    @property
    def is_alive(self) -> bool:
        """Whether a worker is at work here. True only while the process that holds the lock lives."""
        return files.is_locked(self.lock)

    def saved_file(self, name: str, step: int) -> Path:
        return self.checkpoints / f"{name}-step{step:08d}.safetensors"

    def relative(self, path: Path) -> str:
        """A path as events name it: relative to the run folder where it lies in it, with forward slashes."""
        try:
            return path.relative_to(self.path).as_posix()
        except ValueError:
            return str(path)

    def read_state(self) -> RunState:
        """Where the run stands, from its events."""
        return fold(read_events(self.events)[0])

    def read_events(self) -> list[Event]:
        return read_events(self.events)[0]


def begin(path: Path, config_yaml: str) -> RunFolder:
    """Make `path` a run folder with its config.yaml. Raises RunError if a run is there already that has learned something, or is at it.

    A run that failed before its first save (a wrong path, a missing caption) has nothing to lose: the corrected one takes its folder.
    """
    folder = RunFolder(path)
    refuse_if_alive(folder)
    if folder.has_learned:
        free = free_name(path)
        raise RunError(
            "{path} already holds a run",
            hint='Continue it with `python -m lora_trainer resume "{path}"`, or set output_dir to {free}.',
            path=path,
            free=free,
        )
    if path.exists() and not path.is_dir():
        raise RunError("output_dir {path} is a file", hint="Choose a folder.", path=path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        files.write_text(folder.config, config_yaml)
    except OSError as error:
        raise RunError(
            "output_dir {path} cannot be written: {reason}",
            hint="Choose another folder, or free some disk space.",
            path=path,
            reason=error.strerror or error,
        ) from error
    return folder


def refuse_if_alive(folder: RunFolder) -> None:
    """Raises RunError when a worker is at work in the folder."""
    if folder.is_alive:
        raise RunError(
            "a worker is already training in {path}",
            hint='`python -m lora_trainer status "{path}"` says where it stands; `tell "{path}" stop` ends it, `tell "{path}" resume` ends a pause.',
            path=folder.path,
        )


def existing(path: Path) -> RunFolder:
    """The run in `path`. Raises RunError when there is none."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise RunError("{path} is not a run folder", hint="A run folder has a config.yaml; it is the output_dir of a training.", path=path)
    return folder


def free_name(path: Path) -> Path:
    """`path`, or path-2, path-3 ...: the first that does not exist."""
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


@contextlib.contextmanager
def occupy(folder: RunFolder, versions: Mapping[str, str]) -> Iterator[Heartbeat]:
    """Be the folder's one worker: hold its lock and keep worker.json. Raises RunError when another worker lives."""
    try:
        # whoever asks whether a worker lives holds the lock for an instant
        with files.lock(folder.lock, patience=2.0):
            heartbeat = Heartbeat(folder.worker, versions)
            heartbeat.beat()
            yield heartbeat
    except files.Locked:
        refuse_if_alive(folder)
        raise


class Heartbeat:
    """worker.json: who works here and when it was last heard of."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self._path = path
        self._last = 0.0
        self._values: dict[str, Any] = {"pid": os.getpid(), "started": time.time(), "versions": dict(versions)}

    def beat(self, every: float = 0.0) -> None:
        """Note that the worker lives, unless that was done less than `every` seconds ago."""
        now = time.time()
        if now - self._last >= every:
            self._last = now
            # a heartbeat that cannot be written (on Windows, a reader may hold the file) is no reason to lose a run; the lock says who lives
            with contextlib.suppress(OSError):
                files.write_text(self._path, json.dumps({**self._values, "heartbeat": now}, indent=1))
