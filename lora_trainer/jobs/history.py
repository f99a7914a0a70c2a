"""The runs of the data folder as the tab shows them, unreadable ones with their problem.

    History(runs).listing()  -> Entries, newest first       .entry(id) -> one of them
            .alive()         -> ids of the runs whose worker lives
            .curve(id)       -> the loss curve, from any byte of events.jsonl on

What was read is kept in memory; events.jsonl is only appended to, so only new lines are read. One
History is shared by the tab's threads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import LoraTrainerError, RunError
from lora_trainer.runs.events import Event, Started, from_line
from lora_trainer.runs.folder import JOBS, Job, RunFolder
from lora_trainer.runs.requests import RequestKind, waiting_requests
from lora_trainer.runs.state import RunState, fold
from lora_trainer.settings import asking, captioning, pairing, training
from lora_trainer.settings.schema import Groups, current_keys, read_mapping

log = logging.getLogger(__name__)
PROGRESS = b'{"event":"progress"'
"""The first bytes of a Progress line; only the last of consecutive ones matters for the state."""
LOSS = b',"loss":'
KEPT_CURVES = 8


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One run folder at one moment."""

    id: str
    folder: RunFolder
    job: Job = "train"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values of its settings file, not validated."""
    state: RunState = RunState()
    alive: bool = False
    heard: bool = True
    """Whether the living worker has written an event; until then `state` is an earlier worker's."""
    asked: tuple[RequestKind, ...] = ()
    """Requests that the worker has not taken yet."""
    made: float = 0.0
    """When its settings file was written, in seconds since 1970."""
    resume_step: int | None = None
    """Where a run without a worker can resume."""
    problem: LoraTrainerError | None = None
    """Why it cannot be read."""


class History:
    """All runs of one folder."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._reading = threading.RLock()
        self._logs: dict[str, EventLog] = {}
        self._settings: dict[str, tuple[tuple[int, int], Mapping[str, Any] | LoraTrainerError]] = {}
        self._curves: dict[str, Curve] = {}

    def listing(self) -> list[HistoryEntry]:
        """Every run, newest first, without empty folders."""
        with self._reading:
            entries = [self._entry(path) for path in self._folders() if not _is_empty(path)]
            # without those that another thread has moved to the trash meanwhile
            entries = [
                entry for entry in entries if not entry.problem or entry.folder.path.exists()
            ]
            names = {entry.id for entry in entries}
            for cache in (self._logs, self._settings, self._curves):
                for gone in cache.keys() - names:
                    del cache[gone]
        return sorted(
            entries, key=lambda entry: (entry.state.started or entry.made, entry.id), reverse=True
        )

    def entry(self, run_id: str) -> HistoryEntry:
        """One run. Raises RunError if it does not exist."""
        path = self.runs / run_id
        if not path.is_dir():
            raise RunError(
                "there is no run {name}",
                hint="It may have been deleted. Reload the page.",
                name=run_id,
            )
        with self._reading:
            return self._entry(path)

    def alive(self) -> tuple[str, ...]:
        """Ids of the runs whose worker lives, whichever process started it. Reads no files."""
        return tuple(path.name for path in self._folders() if RunFolder(path).is_alive)

    def curve(self, run_id: str) -> Curve:
        """The run's loss curve, up to date."""
        with self._reading:
            curve = self._curves.pop(run_id, None) or Curve(RunFolder(self.runs / run_id).events)
            # move to the end: the least recently used is dropped first
            self._curves[run_id] = curve
            while len(self._curves) > KEPT_CURVES:
                del self._curves[next(iter(self._curves))]
            curve.read_on()
            return curve

    def _folders(self) -> Iterator[Path]:
        try:
            with os.scandir(self.runs) as found:
                folders = [
                    Path(item.path)
                    for item in found
                    if not item.name.startswith(".") and _is_folder(item)
                ]
        except OSError:
            return
        yield from folders

    def _entry(self, path: Path) -> HistoryEntry:
        try:
            return self._read(path)
        except LoraTrainerError as error:
            return _broken(path, error)
        except Exception as error:
            # the files may contain anything; the other runs must still be listed
            log.debug("%s cannot be read", path, exc_info=True)
            reason = f"{type(error).__name__}: {error}"[:300]
            if isinstance(error, OSError):
                reason = error.strerror or str(error)
            problem = RunError(
                "this run cannot be read: {reason}", hint="Look in its folder.", reason=reason
            )
            return _broken(path, problem)

    def _read(self, path: Path) -> HistoryEntry:
        folder = RunFolder(path)
        settings, job, made = self._read_settings(path)
        log = self._logs.setdefault(path.name, EventLog(folder.events))
        state = folder.with_death(log.read_on())
        alive = folder.is_alive
        return HistoryEntry(
            id=path.name,
            folder=folder,
            job=job,
            settings=settings,
            state=state,
            alive=alive,
            heard=not alive or (state.status != "new" and folder.began <= state.changed),
            asked=waiting_requests(folder.requests) if alive else (),
            made=made,
            resume_step=None if alive else newest_resume_point(folder),
        )

    def _read_settings(self, path: Path) -> tuple[Mapping[str, Any], Job, float]:
        for name, job in JOBS.items():
            try:
                details = (path / name).stat()
            except FileNotFoundError:
                continue
            stamp = (details.st_mtime_ns, details.st_size)
            known = self._settings.get(path.name)
            if known is None or known[0] != stamp:
                known = self._settings[path.name] = (stamp, _parsed(path / name))
            if isinstance(known[1], LoraTrainerError):
                raise known[1]
            return known[1], job, details.st_mtime
        raise RunError(
            "{name} has no config.yaml: it is not a run, or it is damaged",
            hint="Look into the folder. If you need nothing in it, delete it here.",
            name=path.name,
        )


class _AppendedFile:
    """Reads an append-only file line by line as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self.offset = 0
        """The byte up to which it was read."""

    def new_lines(self) -> tuple[list[bytes], bool]:
        """The complete lines since the last call; and whether they start from the beginning: the
        file is new, gone or replaced.
        """
        try:
            details = self._path.stat()
        except FileNotFoundError:
            self.offset = 0
            return [], True
        restarted = details.st_size < self.offset or details.st_ino != self._inode
        if restarted:
            self.offset, self._inode = 0, details.st_ino
        lines: list[bytes] = []
        if details.st_size > self.offset:
            lines, self.offset = _whole_lines(self._path, self.offset)
        return lines, restarted


class EventLog:
    """The fold of an events.jsonl, updated by what is appended."""

    def __init__(self, path: Path) -> None:
        self._file = _AppendedFile(path)
        self._state = RunState()

    def read_on(self) -> RunState:
        """The current state."""
        lines, restarted = self._file.new_lines()
        self._state = fold(_relevant_events(lines), RunState() if restarted else self._state)
        return self._state


class Curve:
    """Steps and losses of a run, as far as read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _AppendedFile(path)
        self._points: list[Point] = []

    @property
    def offset(self) -> int:
        """Bytes of events.jsonl read so far."""
        return self._file.offset

    def read_on(self) -> None:
        lines, restarted = self._file.new_lines()
        if restarted:
            self._points = []
        for line in lines:
            self._add(line)

    def _add(self, line: bytes) -> None:
        if line.startswith(PROGRESS):
            point = _point(line)
            if point is not None:
                self._points.append(point)
        elif line.startswith(b'{"event":"started"'):
            event = _event(line)
            if isinstance(event, Started):
                # later steps will be made again
                self._points = [
                    point for point in self._points if point[0] <= (event.resumed_from or 0)
                ]

    def since(self, offset: int) -> tuple[list[Point], bool]:
        """The points from byte `offset` of events.jsonl; and whether they replace all earlier
        points.

        They do for offset 0, for an offset beyond this file, and after a worker's restart.
        """
        if not 0 < offset <= self.offset:
            return list(self._points), True
        lines, _ = _whole_lines(self._path, offset, self.offset)
        if any(line.startswith(b'{"event":"started"') for line in lines):
            return list(self._points), True
        return [
            point
            for line in lines
            if line.startswith(PROGRESS) and (point := _point(line)) is not None
        ], False


Point = tuple[int, float, "float | None"]
"""Step, loss, smoothed loss."""


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most `most` points, evenly spaced, including the first and the last."""
    if len(points) <= most:
        return points
    stride = (len(points) - 1) / (most - 1)
    return [points[round(number * stride)] for number in range(most)]


def newest_resume_point(folder: RunFolder) -> int | None:
    """The step of the newest state file, which may be damaged."""
    try:
        names = [path.name for path in folder.state.iterdir()]
    except OSError:
        return None
    steps = [
        int(name[4:-3])
        for name in names
        if name.startswith("step") and name.endswith(".pt") and name[4:-3].isdigit()
    ]
    return max(steps, default=None)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a symlink loop
        return False


def _is_empty(path: Path) -> bool:
    """Whether the folder is empty, or a run is just being created in it."""
    try:
        return all(
            item.name == "begin.lock" or files.is_temporary(item.name) for item in path.iterdir()
        )
    except OSError:
        return False


def _broken(path: Path, problem: LoraTrainerError) -> HistoryEntry:
    folder = RunFolder(path)
    try:
        alive, made = folder.is_alive, path.stat().st_mtime
    except OSError:
        alive, made = False, 0.0
    return HistoryEntry(id=path.name, folder=folder, alive=alive, made=made, problem=problem)


def _parsed(path: Path) -> Mapping[str, Any] | LoraTrainerError:
    """The settings file's content, not validated, or its error."""
    try:
        values = read_mapping(path)
        return current_keys(_groups(path, values), values)
    except LoraTrainerError as error:
        return error


def _groups(path: Path, values: Mapping[str, Any]) -> Groups:
    match JOBS[path.name]:
        case "caption":
            return captioning.groups(values)
        case "ask":
            return asking.GROUPS
        case "pairs":
            return pairing.GROUPS
    return training.GROUPS


def _whole_lines(path: Path, offset: int, end: int | None = None) -> tuple[list[bytes], int]:
    """The complete lines from byte `offset`, and where they end."""
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(-1 if end is None else end - offset)
    finished = content.rfind(b"\n") + 1
    return content[:finished].split(b"\n"), offset + finished


def _relevant_events(lines: list[bytes]) -> Iterator[Event]:
    """The events of the lines, of consecutive Progress only the last: `fold` gives the same state
    in a tenth of the time. Steps (with a loss) and parts of a phase (without) are separate
    sequences.
    """
    last = b""
    for line in lines:
        if line.startswith(PROGRESS) and line.endswith(b"}"):
            if last and (LOSS in last) != (LOSS in line):
                yield from _events(last)
            last = line
            continue
        if last and line:
            yield from _events(last)
            last = b""
        yield from _events(line)
    yield from _events(last)


def _events(line: bytes) -> Iterator[Event]:
    event = _event(line) if line else None
    if event is not None:
        yield event


def _event(line: bytes) -> Event | None:
    return from_line(line.decode("utf-8", errors="replace"))


def _point(line: bytes) -> Point | None:
    # not from_line, which is three times slower
    try:
        values = files.parse_json(line)
        return int(values["step"]), float(values["loss"]), values.get("smoothed_loss")
    except files.UNREADABLE:
        return None
