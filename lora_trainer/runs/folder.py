"""The paths of a run folder; creating a run in it; whether its worker lives. Standard library
only.
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

Job = Literal["train", "caption", "ask", "pairs"]
JOBS: Mapping[str, Job] = {
    "config.yaml": "train",
    "caption.yaml": "caption",
    "ask.yaml": "ask",
    "pairs.yaml": "pairs",
}
"""Name of a settings file -> the kind of job."""
SETTINGS_OF: Mapping[Job, str] = {job: name for name, job in JOBS.items()}
BEGIN_TIMEOUT = 1.0
"""Seconds to wait for another process that creates a run in the same folder."""


class Taken(RunError):
    """The folder for a new run exists already."""


class _Inside:
    """A path inside a run folder, by name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. See the package's docstring for what each file is."""

    path: Path

    config = _Inside("config.yaml")
    caption_config = _Inside("caption.yaml")
    events = _Inside("events.jsonl")
    requests = _Inside("requests")
    worker = _Inside("worker.json")
    lock = _Inside("worker.lock")
    death = _Inside("ended.json")
    host = _Inside("host.json")
    log = _Inside("worker.log")
    checkpoints = _Inside("checkpoints")
    state = _Inside("state")
    previews = _Inside("previews")
    logs = _Inside("logs")
    cache = _Inside("cache")
    adapter = _Inside("adapter")
    merged = _Inside("merged")

    @property
    def settings(self) -> Path:
        """The settings file, which determines the task: config.yaml, caption.yaml, or another
        task's.
        """
        known = (self.path / name for name in JOBS)
        return next(
            (path for path in (*known, *sorted(self.path.glob("*.yaml"))) if path.exists()),
            self.config,
        )

    @property
    def job(self) -> Job:
        """The kind of job, from its settings file."""
        return JOBS.get(self.settings.name, "train")

    @property
    def has_learned(self) -> bool:
        """Whether training has left a LoRA file or a resume point."""
        return (
            any(self.path.glob("*.safetensors"))
            or any(self.checkpoints.glob("*.safetensors"))
            or any(self.state.glob("*.pt"))
        )

    @property
    def is_alive(self) -> bool:
        """Whether a worker holds the folder's lock."""
        return files.is_locked(self.lock)

    @property
    def began(self) -> float:
        """When its last worker started, in seconds since 1970; 0 if there was none."""
        return files.read_json(self.worker, lambda values: float(values["started"]), 0.0)

    def companion_log(self, number: int) -> Path:
        """The log of process `number`, from 2, of a run on several devices."""
        return self.path / f"worker-{number}.log"

    def saved_file(self, name: str, step: int) -> Path:
        return self.checkpoints / f"{name}-step{step:08d}.safetensors"

    def relative(self, path: Path) -> str:
        """`path` as in events: relative to the run folder if inside it, with forward slashes."""
        try:
            return path.relative_to(self.path).as_posix()
        except ValueError:
            return str(path)

    def read_state(self) -> RunState:
        """The state from the events, and from a recorded death."""
        return self.with_death(fold(read_events(self.events)[0]))

    def with_death(self, state: RunState) -> RunState:
        """`state`, failed if a worker's death was recorded after its last event."""
        try:
            death = from_line(self.death.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return state
        if isinstance(death, Failed) and death.time >= state.changed:
            return fold([death], state)
        return state

    def write_death(self, failure: Failed) -> None:
        """Record a failure that the worker could not report; events.jsonl is the worker's only."""
        files.write_bytes(
            self.death, to_line(failure).encode("utf-8", errors="backslashreplace") + b"\n"
        )

    def read_events(self) -> list[Event]:
        return read_events(self.events)[0]


def begin(path: Path, config_yaml: str, *, new: bool = False) -> RunFolder:
    """Make `path` a run folder with its config.yaml. Raises RunError if it holds a trained or
    running run.

    A run that failed before its first save is replaced. new: `path` must not exist; of several
    concurrent callers one succeeds.
    """
    if new:
        _make_new(path)
    with claimed(path):
        return _begin(path, config_yaml)


@contextlib.contextmanager
def begun(path: Path, config_yaml: str) -> Iterator[RunFolder]:
    """`begin`, keeping other processes from starting there until the block ends, when the worker
    has the folder's lock.
    """
    with claimed(path):
        yield _begin(path, config_yaml)


@contextlib.contextmanager
def claimed(
    path: Path, problem: Callable[[Path, OSError], RunError] | None = None
) -> Iterator[None]:
    """Create the folder and hold its begin.lock. Raises RunError if another process does; `problem`
    makes the error for a folder that cannot be written.
    """
    _make_folder(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path / "begin.lock", patience=BEGIN_TIMEOUT))
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


def begin_job(path: Path, job: Job, settings_yaml: str, *, new: bool = False) -> RunFolder:
    """Make `path` the run folder of a job that is no training. Raises RunError if a worker runs
    there, or if it is a training's.

    A job reuses the folder of an earlier one and continues it: its result is elsewhere. new: as for
    `begin`.
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
            files.write_text(path / SETTINGS_OF[job], settings_yaml)
        except OSError as error:
            raise _no_room_in_dataset(path, error) from error
        return folder


def begin_captioning(path: Path, caption_yaml: str, *, new: bool = False) -> RunFolder:
    """`begin_job` for a caption job."""
    return begin_job(path, "caption", caption_yaml, new=new)


def _no_room_in_dataset(path: Path, error: OSError) -> RunError:
    """This folder is inside the dataset's, not chosen by the user."""
    hint = "Check the free space and the folder's permissions."
    return RunError.cannot_write(path, error, hint)


def refuse_if_alive(folder: RunFolder) -> None:
    """Raise RunError when a worker runs in the folder."""
    if folder.is_alive:
        hint = (
            '`python -m lora_trainer status "{path}"` shows its state; `tell "{path}" stop` '
            'ends it, `tell "{path}" resume` ends a pause.'
        )
        if folder.job == "caption":
            raise RunError("a captioner is already running in {path}", hint=hint, path=folder.path)
        hint = (
            '`python -m lora_trainer status "{path}"` shows its state; `tell "{path}" stop` '
            'ends it, `tell "{path}" resume` ends a pause. Another training needs an output_dir'
            " of its own."
        )
        raise RunError("a worker is already training in {path}", hint=hint, path=folder.path)


def existing(path: Path) -> RunFolder:
    """The run in `path`. Raises RunError if there is none."""
    folder = RunFolder(path)
    if not folder.settings.exists():
        raise RunError(
            "{path} is not a run folder",
            hint="A run folder has a config.yaml; it is the output_dir of a training.",
            path=path,
        )
    return folder


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist."""
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def free_folder(path: Path) -> Path:
    """`path` if it is an empty folder, else the first of path-2, path-3 ... that does not exist."""
    is_empty = path.is_dir() and not any(path.iterdir())
    return path if is_empty else free_name(path)


@contextlib.contextmanager
def occupy(folder: RunFolder, versions: Mapping[str, str]) -> Iterator[Heartbeat]:
    """Hold the folder's lock as its worker, and keep worker.json. Raises RunError if another worker
    does.
    """
    try:
        # `is_locked` holds the lock for an instant
        with files.lock(folder.lock, patience=2.0):
            heartbeat = Heartbeat(folder.worker, versions)
            heartbeat.beat()
            remove_leftovers(folder)
            yield heartbeat
    except files.Locked:
        refuse_if_alive(folder)
        raise


def remove_leftovers(folder: RunFolder) -> None:
    """Delete a killed worker's temporary files. The caller holds the folder's lock."""
    files.remove_abandoned(folder.path)
    for inside in (folder.checkpoints, folder.state, folder.previews, folder.cache):
        files.remove_abandoned(inside, alone=True)


class Heartbeat:
    """worker.json: the worker's process, and when it was last active."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self._path = path
        self._last = 0.0
        self._values: dict[str, Any] = {
            "pid": os.getpid(),
            "started": time.time(),
            "versions": dict(versions),
        }

    def note(self, versions: Mapping[str, str]) -> None:
        """The versions that are imported from now on."""
        if self._values["versions"] != versions:
            self._values["versions"] = dict(versions)
            self.beat()

    def beat(self, every: float = 0.0) -> None:
        """Write the time, unless that was done less than `every` seconds ago."""
        now = time.time()
        if now - self._last >= every:
            self._last = now
            # on Windows a reader may have the file open; the lock, not the heartbeat, decides
            # whether the worker lives
            with contextlib.suppress(OSError):
                files.write_text(
                    self._path, json.dumps({**self._values, "heartbeat": now}, indent=1)
                )
