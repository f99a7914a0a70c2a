"""The queue of waiting runs, and the clicks that have already started one: queue.json of the data
folder.

    Queue(path).add("ink")             the scheduler starts the first one when nothing is training
    with queue.once(token) as click    one run per click, however often and in whichever process its
                                       request arrives

Every change is made under a lock file and written atomically, so that several WebUIs, browsers, or
a crash lose nothing and start nothing twice. Entries are ids of run folders with a config.yaml.
Used by scheduler.py and the tab.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import RunError

REMEMBERED_CLICKS = 500
LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process's change, which takes milliseconds."""
START_TIMEOUT = 60.0
"""Seconds to wait for another start, which reads a checkpoint's header and a dataset."""

log = logging.getLogger(__name__)


@dataclass
class Click:
    """A click on Start. `run_id`: the run it has made; empty while there is none."""

    run_id: str


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """The content of queue.json."""

    waiting: tuple[str, ...] = ()
    """Ids of the waiting runs, the next one first."""
    starting: str | None = None
    """The run whose worker is being started: no longer waiting, and without an event yet."""
    taken: float = 0.0
    """When `starting` was taken out of the line, in seconds since 1970."""
    clicks: Mapping[str, str] = field(default_factory=dict)
    """Token of a click -> id of the run that it created, oldest first."""

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.waiting or run_id == self.starting


class Queue:
    """The queue of waiting runs. Thread-safe and process-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logged = ""

    def read(self) -> QueueState:
        """The current content; empty if the file is missing or unreadable."""
        try:
            values = files.load_json(self.path, names=True)
            starting = values.get("starting")
            return QueueState(
                waiting=tuple(str(run) for run in values.get("waiting", ())),
                starting=str(starting) if starting else None,
                taken=float(values.get("taken", 0.0)),
                clicks={
                    str(token): str(run) for token, run in dict(values.get("clicks", {})).items()
                },
            )
        except FileNotFoundError:
            return QueueState()
        except files.UNREADABLE as error:
            # log once: the file is read every second
            if str(error) != self._logged:
                self._logged = str(error)
                log.exception("%s cannot be read: the queue starts anew", self.path)
            return QueueState()

    @contextmanager
    def holding(self) -> Iterator[QueueState]:
        """The content, locked against changes until the block ends."""
        try:
            with files.lock(self.path.with_name("queue.lock"), patience=LOCK_TIMEOUT):
                yield self.read()
        except files.Locked as error:
            raise RunError(
                "the queue is in use by another WebUI", hint="Try again in a moment."
            ) from error

    def _change(self, change: Callable[[QueueState], QueueState]) -> QueueState:
        with self.holding() as line:
            after = change(line)
            if after != line:
                values = {
                    "waiting": list(after.waiting),
                    "starting": after.starting,
                    "taken": after.taken,
                    "clicks": dict(after.clicks),
                }
                files.write_text(self.path, json.dumps(values, ensure_ascii=True, indent=1))
            return after

    def add(self, run_id: str, *, first: bool = False, token: str = "") -> None:
        """Append a run, or put it first. A queued one keeps its position."""

        def change(line: QueueState) -> QueueState:
            clicks = line.clicks
            if token:
                clicks = dict([*line.clicks.items(), (token, run_id)][-REMEMBERED_CLICKS:])
            if run_id in line:
                return dataclasses.replace(line, clicks=clicks)
            waiting = (run_id, *line.waiting) if first else (*line.waiting, run_id)
            return dataclasses.replace(line, waiting=waiting, clicks=clicks)

        self._change(change)

    @contextmanager
    def once(self, token: str, *, first: bool = False) -> Iterator[Click]:
        """The click `token`. If its run_id is empty, the caller makes the run and sets it; that run
        is queued when the block ends, and is the run_id in every later call.
        """
        try:
            with files.lock(self.path.with_name("start.lock"), patience=START_TIMEOUT):
                known = self.read().clicks.get(token, "")
                click = Click(known)
                yield click
                if click.run_id != known:
                    self.add(click.run_id, first=first, token=token)
        except files.Locked as error:
            raise RunError(
                "another training is being prepared at this moment", hint="Try again in a moment."
            ) from error

    def move(self, run_id: str, position: int) -> None:
        """Move a waiting run to `position`, 0 being next. Raises RunError if it does not wait."""

        def change(line: QueueState) -> QueueState:
            others = [run for run in _with(line, run_id).waiting if run != run_id]
            others.insert(max(0, position), run_id)
            return dataclasses.replace(line, waiting=tuple(others))

        self._change(change)

    def remove(self, run_id: str) -> None:
        """Remove a waiting run. Raises RunError if it does not wait: it may have started."""
        self._change(
            lambda line: dataclasses.replace(
                _with(line, run_id), waiting=tuple(run for run in line.waiting if run != run_id)
            )
        )

    def drop(self, run_id: str) -> None:
        """Remove a run that started elsewhere or was deleted, waiting or starting."""
        self._change(
            lambda line: dataclasses.replace(
                line,
                waiting=tuple(run for run in line.waiting if run != run_id),
                starting=None if line.starting == run_id else line.starting,
            )
        )

    def settle(self, run_id: str) -> None:
        """The starting run has started, or never will. One that waits again meanwhile, to be
        resumed, stays.
        """
        self._change(
            lambda line: dataclasses.replace(
                line, starting=None if line.starting == run_id else line.starting
            )
        )

    def take(self, now: float) -> str | None:
        """The next run, which becomes `starting` until settled, dropped or put back; None if none
        waits.
        """

        def change(line: QueueState) -> QueueState:
            if line.starting or not line.waiting:
                return line
            return dataclasses.replace(
                line, waiting=line.waiting[1:], starting=line.waiting[0], taken=now
            )

        line = self.read()  # usually nothing waits: no lock then
        return (self._change(change) if line.waiting else line).starting

    def put_back(self) -> None:
        """Return the starting run to the front of the queue."""
        self._change(
            lambda line: (
                dataclasses.replace(line, waiting=(line.starting, *line.waiting), starting=None)
                if line.starting
                else line
            )
        )


def _with(line: QueueState, run_id: str) -> QueueState:
    if run_id not in line.waiting:
        raise RunError(
            "{name} is not in the queue", hint="It may have started in the meantime.", name=run_id
        )
    return line
