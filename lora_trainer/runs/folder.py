"""A run's folder: where each file lies, who may begin in it, and whether its worker lives. Standard
library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.runs.events import Event, Failed, from_line, read_events, to_line
from lora_trainer.runs.state import RunState, fold

Job = Literal["train", "caption"]
BEGIN_PATIENCE = 1.0
"""Seconds for which another one's beginning in the same folder is waited for: a config.yaml is
written in an instant.
"""


class Taken(RunError):
    """A new run's folder exists already: someone else was quicker."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. See the package's docstring for what each file is."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def caption_config(self) -> Path:
        """What a caption job holds in config.yaml's place."""
        return self.path / "caption.yaml"

    @property
    def settings(self) -> Path:
        """The file that says what is done here, and by its name which task does it: config.yaml,
        caption.yaml, or another task's.
        """
        known = (self.config, self.caption_config)
        return next(
            (path for path in (*known, *sorted(self.path.glob("*.yaml"))) if path.exists()),
            self.config,
        )

    @property
    def job(self) -> Job:
        """What is done here, by the file that asks for it."""
        return "caption" if self.settings == self.caption_config else "train"

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
    def death(self) -> Path:
        """What others found out about the end of a worker that could not say it itself: one event
        in one line.
        """
        return self.path / "ended.json"

    @property
    def host(self) -> Path:
        """Names the process with which the worker ends, if there is one."""
        return self.path / "host.json"

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
        return (
            any(self.path.glob("*.safetensors"))
            or any(self.checkpoints.glob("*.safetensors"))
            or any(self.state.glob("*.pt"))
        )

    @property
    def is_alive(self) -> bool:
        """Whether a worker is at work here. True only while the process that holds the lock
        lives.
        """
        return files.is_locked(self.lock)

    def saved_file(self, name: str, step: int) -> Path:
        return self.checkpoints / f"{name}-step{step:08d}.safetensors"

    def relative(self, path: Path) -> str:
        """A path as events name it: relative to the run folder where it lies in it, with forward
        slashes.
        """
        try:
            return path.relative_to(self.path).as_posix()
        except ValueError:
            return str(path)

    def read_state(self) -> RunState:
        """Where the run stands, from its events, and from what was noted of its worker's death."""
        return self.with_death(fold(read_events(self.events)[0]))

    def with_death(self, state: RunState) -> RunState:
        """The state, ended by the noted death if nothing was heard of the run since."""
        try:
            death = from_line(self.death.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return state
        return (
            fold([death], state)
            if isinstance(death, Failed) and death.time >= state.changed
            else state
        )

    def write_death(self, failure: Failed) -> None:
        """Keep a failure that no worker could tell of; events.jsonl is the worker's alone."""
        files.write_bytes(
            self.death, to_line(failure).encode("utf-8", errors="backslashreplace") + b"\n"
        )

    def read_events(self) -> list[Event]:
        return read_events(self.events)[0]


def begin(path: Path, config_yaml: str, *, new: bool = False) -> RunFolder:
    """Make `path` a run folder with its config.yaml. Raises RunError if a run is there already that
    has learned something, or is at it.

    A run that failed before its first save (a wrong path, a missing caption) has nothing to lose:
    the corrected one takes its folder. new: take no folder that exists already, whatever is in it.
    Of any number of callers at one instant, one gets it.
    """
    if new:
        _make_new(path)
    with claimed(path):
        return _begin(path, config_yaml)


@contextlib.contextmanager
def begun(path: Path, config_yaml: str) -> Iterator[RunFolder]:
    """`begin`, and keep everyone else from beginning there until the block ends: the worker is then
    at work, and holds the folder itself.
    """
    with claimed(path):
        yield _begin(path, config_yaml)


@contextlib.contextmanager
def claimed(
    path: Path, problem: Callable[[Path, OSError], RunError] | None = None
) -> Iterator[None]:
    """Be the only one who begins something in the folder, which is made. Raises RunError when
    another process is at it, or the `problem` that the folder cannot be written.
    """
    _make_folder(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path / "begin.lock", patience=BEGIN_PATIENCE))
        except files.Locked:
            refuse_if_alive(RunFolder(path))
            raise RunError(
                "another training is being started in {path}",
                hint="Set output_dir to another folder.",
                path=path,
            ) from None
        except OSError as error:
            raise (problem or _cannot_be_written)(path, error) from error
        yield


def _make_new(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError:
        raise Taken("{path} exists already", hint="Choose another name.", path=path) from None
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError("output_dir {path} is a file", hint="Choose a folder.", path=path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def _cannot_be_written(path: Path, error: OSError) -> RunError:
    return RunError(
        "output_dir {path} cannot be written: {reason}",
        hint="Choose another folder, or free some disk space.",
        path=path,
        reason=error.strerror or error,
    )


def _begin(path: Path, config_yaml: str) -> RunFolder:
    folder = RunFolder(path)
    refuse_if_alive(folder)
    if folder.has_learned:
        free = free_name(path)
        raise RunError(
            "{path} already holds a run",
            hint=(
                'Continue it with `python -m lora_trainer resume "{path}"`, or set output_dir to'
                " {free}."
            ),
            path=path,
            free=free,
        )
    try:
        files.write_text(folder.config, config_yaml)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    return folder


def begin_captioning(path: Path, caption_yaml: str, *, new: bool = False) -> RunFolder:
    """Make `path` the run folder of a caption job, with its caption.yaml. Raises RunError if a
    worker is at it, or if it is a training's.

    What was captioned is in the dataset; so a job takes the folder of an earlier one, and goes on
    where that one ended. new: as for `begin`.
    """
    if new:
        _make_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room_in_dataset(path, error) from error
    with claimed(path, _no_room_in_dataset):
        folder = RunFolder(path)
        refuse_if_alive(folder)
        if folder.config.exists():
            raise RunError(
                "{path} is the folder of a training", hint="Choose another folder.", path=path
            )
        try:
            files.write_text(folder.caption_config, caption_yaml)
        except OSError as error:
            raise _no_room_in_dataset(path, error) from error
        return folder


def _no_room_in_dataset(path: Path, error: OSError) -> RunError:
    """Nobody chose this folder: it lies in the one with the images."""
    hint = "Check the free space and the folder's permissions."
    return RunError(
        "{path} cannot be written: {reason}", hint=hint, path=path, reason=error.strerror or error
    )


def refuse_if_alive(folder: RunFolder) -> None:
    """Raises RunError when a worker is at work in the folder."""
    if folder.is_alive:
        hint = (
            '`python -m lora_trainer status "{path}"` says where it stands; `tell "{path}" stop`'
            ' ends it, `tell "{path}" resume` ends a pause.'
        )
        if folder.job == "caption":
            raise RunError("a captioner is already at work in {path}", hint=hint, path=folder.path)
        hint = (
            '`python -m lora_trainer status "{path}"` says where it stands; `tell "{path}" stop`'
            ' ends it, `tell "{path}" resume` ends a pause. Another training needs an output_dir of'
            " its own."
        )
        raise RunError("a worker is already training in {path}", hint=hint, path=folder.path)


def existing(path: Path) -> RunFolder:
    """The run in `path`. Raises RunError when there is none."""
    folder = RunFolder(path)
    if not folder.settings.exists():
        raise RunError(
            "{path} is not a run folder",
            hint="A run folder has a config.yaml; it is the output_dir of a training.",
            path=path,
        )
    return folder


def free_name(path: Path) -> Path:
    """`path`, or path-2, path-3 ...: the first that does not exist."""
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def free_folder(path: Path) -> Path:
    """The folder that a person named, if nothing is in it; else the first of path-2, path-3 ...
    that does not exist.
    """
    is_empty = path.is_dir() and not any(path.iterdir())
    return path if is_empty else free_name(path)


@contextlib.contextmanager
def occupy(folder: RunFolder, versions: Mapping[str, str]) -> Iterator[Heartbeat]:
    """Be the folder's one worker: hold its lock and keep worker.json. Raises RunError when another
    worker lives.
    """
    try:
        # whoever asks whether a worker lives holds the lock for an instant
        with files.lock(folder.lock, patience=2.0):
            heartbeat = Heartbeat(folder.worker, versions)
            heartbeat.beat()
            remove_leftovers(folder)
            yield heartbeat
    except files.Locked:
        refuse_if_alive(folder)
        raise


def remove_leftovers(folder: RunFolder) -> None:
    """Delete the half-written files that a killed worker left. Only for whoever holds the folder's
    lock: nobody else writes into these folders.
    """
    files.clear_left(folder.path)
    for inside in (folder.checkpoints, folder.state, folder.previews, folder.cache):
        files.clear_left(inside, alone=True)


class Heartbeat:
    """worker.json: who works here and when it was last heard of."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self._path = path
        self._last = 0.0
        self._values: dict[str, Any] = {
            "pid": os.getpid(),
            "started": time.time(),
            "versions": dict(versions),
        }

    def beat(self, every: float = 0.0) -> None:
        """Note that the worker lives, unless that was done less than `every` seconds ago."""
        now = time.time()
        if now - self._last >= every:
            self._last = now
            # a heartbeat that cannot be written (on Windows, a reader may hold the file) is no
            # reason to lose a run; the lock says who lives
            with contextlib.suppress(OSError):
                files.write_text(
                    self._path, json.dumps({**self._values, "heartbeat": now}, indent=1)
                )
