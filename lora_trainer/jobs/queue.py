"""The runs that wait, in order, on disk: queue.json of the data folder. What a click has already
begun is remembered here too.

    Queue(path).add("ink")             the scheduler takes the first one as soon as nothing trains
    with queue.once(token) as click    one run for one click, however often its request arrives and
                                       in whichever process

Every change is made under a lock file and written whole, so that two WebUIs on one data folder, two
browsers, or a crash at any moment lose nothing and start nothing twice. Entries are ids of run
folders that have their config.yaml. Used by scheduler.py and the tab.
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
PATIENCE = 10.0
"""Seconds for which another process's change is waited for; one takes milliseconds."""
START_PATIENCE = 60.0
"""Seconds for which another start is waited for: it reads a checkpoint's header and a dataset's
folder.
"""

log = logging.getLogger(__name__)


@dataclass
class Click:
    """A click on Start. `run_id`: the run it has made; empty while there is none."""

    run_id: str


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """What queue.json holds."""

    waiting: tuple[str, ...] = ()
    """Ids of the runs that wait, the next one first."""
    starting: str | None = None
    """The run whose worker is being started: out of the line, and not yet heard of."""
    taken: float = 0.0
    """When `starting` was taken out of the line, in seconds since 1970."""
    clicks: Mapping[str, str] = field(default_factory=dict)
    """Token of a click -> id of the run that it made, oldest first."""

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.waiting or run_id == self.starting


class Queue:
    """The line of waiting runs. Safe in many threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = ""

    def read(self) -> QueueState:
        """The line as it is now. Empty where there is none, or none that can be read."""
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
            # once: it is read every second, until something is put into it
            if str(error) != self._told:
                self._told = str(error)
                log.exception("%s cannot be read: the queue starts anew", self.path)
            return QueueState()

    @contextmanager
    def holding(self) -> Iterator[QueueState]:
        """The line, which nobody else changes until the block ends."""
        try:
            with files.lock(self.path.with_name("queue.lock"), patience=PATIENCE):
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
        """Put a run at the end of the line, or at its front. One that is in it already keeps its
        place.
        """

        def change(line: QueueState) -> QueueState:
            clicks = (
                dict([*line.clicks.items(), (token, run_id)][-REMEMBERED_CLICKS:])
                if token
                else line.clicks
            )
            if run_id in line:
                return dataclasses.replace(line, clicks=clicks)
            waiting = (run_id, *line.waiting) if first else (*line.waiting, run_id)
            return dataclasses.replace(line, waiting=waiting, clicks=clicks)

        self._change(change)

    @contextmanager
    def once(self, token: str, *, first: bool = False) -> Iterator[Click]:
        """The click `token`: while its run_id is empty, whoever holds it makes the run and says
        which; that one is queued when the block ends, and known to every later call.
        """
        try:
            with files.lock(self.path.with_name("start.lock"), patience=START_PATIENCE):
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
        """Put a waiting run at `position` (0 is next); beyond the ends means the end. Raises
        RunError when it does not wait.
        """

        def change(line: QueueState) -> QueueState:
            others = [run for run in _with(line, run_id).waiting if run != run_id]
            others.insert(max(0, position), run_id)
            return dataclasses.replace(line, waiting=tuple(others))

        self._change(change)

    def remove(self, run_id: str) -> None:
        """Take a waiting run out of the line. Raises RunError when it does not wait: it may have
        begun.
        """
        self._change(
            lambda line: dataclasses.replace(
                _with(line, run_id), waiting=tuple(run for run in line.waiting if run != run_id)
            )
        )

    def drop(self, run_id: str) -> None:
        """Take a run out of the line wherever it is in it; it runs, or is gone."""
        self._change(
            lambda line: dataclasses.replace(
                line,
                waiting=tuple(run for run in line.waiting if run != run_id),
                starting=None if line.starting == run_id else line.starting,
            )
        )

    def take(self, now: float) -> str | None:
        """The next run: it leaves the line and is `starting` until it is dropped or put back. None
        while nothing waits.
        """

        def change(line: QueueState) -> QueueState:
            if line.starting or not line.waiting:
                return line
            return dataclasses.replace(
                line, waiting=line.waiting[1:], starting=line.waiting[0], taken=now
            )

        # a look without the lock, which is what most ticks come to
        return self._change(change).starting if self.read().waiting else self.read().starting

    def put_back(self) -> None:
        """The run that was being started waits again, as the next one."""
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
            "{name} does not wait in the queue", hint="It may have begun meanwhile.", name=run_id
        )
    return line
