"""Operations on runs: create, list, watch, request, continue, reorder, delete. One method per
route.

They create run folders, write requests and change the queue; the scheduler starts the workers.
Everything shown is read from disk (run_view.py), so that all browsers and all WebUIs with this data
folder show the same. Created by app.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

from lora_trainer import files, verdict
from lora_trainer.errors import ConfigError, RunError
from lora_trainer.hosts.gpu_lease import GpuLease, LeaseView
from lora_trainer.jobs import resume, trash
from lora_trainer.jobs.history import History, HistoryEntry, thinned
from lora_trainer.jobs.queue import Click, Queue, QueueState
from lora_trainer.jobs.scheduler import Scheduler, SchedulerOptions, Start, start_apart
from lora_trainer.jobs.start import last_lines
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import Job, RunFolder
from lora_trainer.runs.requests import RequestKind, send_request
from lora_trainer.settings import captioning, training
from lora_trainer.settings.captioning import CaptionSettings
from lora_trainer.settings.training import RunConfig
from lora_trainer.webui import texts
from lora_trainer.webui.common import form
from lora_trainer.webui.common.data_folder import DataFolder, NotFound, name_problem
from lora_trainer.webui.http.routing import Trashed
from lora_trainer.webui.training import run_view
from lora_trainer.webui.training.run_view import (
    AnswerView,
    PreviewView,
    RunProgress,
    RunView,
    ValidationView,
    VerdictView,
)

log = logging.getLogger(__name__)
MOST_POINTS = 600
MOST_NAMES = 20
LOG_LINES = 60
LOG_BYTES = 16_384
LONG_LOG_BYTES = 200_000
LONGEST_TOKEN = 200
ALIVE_SECONDS = 2.0
"""Seconds for which the list of living workers is cached, if another WebUI runs the scheduler."""
PREVIEWS = (".png", ".webp", ".jpg", ".jpeg")


class RunList(TypedDict):
    runs: list[RunView]
    revision: str


class LiveView(TypedDict):
    """A run with new loss values. `whole`: the points are complete and replace earlier ones."""

    run: RunView
    offset: int
    whole: bool
    points: list[list[float | None]]
    validations: list[ValidationView]
    previews: list[PreviewView]
    answers: list[AnswerView]
    log: list[str]
    handover: LeaseView
    verdict: VerdictView | None
    report: str | None
    """The URL of its report, if there is one."""


class Pulse(TypedDict):
    """What is active. `revision` changes when the list of runs may have changed."""

    active: list[RunProgress]
    queued: int
    handover: LeaseView
    revision: str


class TrashLoad(TypedDict):
    """The number of deleted runs and datasets, and their size in bytes."""

    count: int
    size: int


@dataclass(frozen=True)
class JobSettings:
    """The settings file of a job other than training and captioning."""

    job: Job
    content: str


class Runs:
    """The runs of a data folder."""

    def __init__(
        self,
        *,
        data: DataFolder,
        gpu_lease: GpuLease,
        delivered: Callable[[], object],
        captions_again: Callable[[RunFolder], object] | None = None,
        options: Callable[[], SchedulerOptions] = SchedulerOptions,
        start: Start = start_apart,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """delivered: called to show a new LoRA in the host. captions_again: called before a caption
        run is resumed.
        """
        self.data = data
        self.gpu_lease = gpu_lease
        self.queue = Queue(data.queue)
        self.history = History(data.folder("runs"))
        self.scheduler = Scheduler(
            history=self.history,
            queue=self.queue,
            # other versions of the extension use the same lock
            lock=data.root / "keeper.lock",
            trash=data.folder("trash"),
            gpu_lease=gpu_lease,
            delivered=delivered,
            options=options,
            start=start,
            clock=clock,
        )
        self._captions_again = captions_again
        self._clock = clock
        self._asked: dict[str, tuple[RequestKind, float]] = {}
        self._alive: tuple[float, tuple[str, ...]] = (0.0, ())
        self._looking = threading.Lock()
        self._captionings: dict[Path, tuple[tuple[int, int], str | None]] = {}

    # --- creating ---------------------------------------------------------------------------------

    def create(self, asked: RunConfig, token: str, when: str, language: str) -> RunView:
        """Create a training in a folder named after its output_dir, or the next free name. Each
        token creates one run.
        """
        with self.click(token, when) as click:
            if not click.run_id:
                click.run_id = self.make(asked.output.output_dir.name, asked).path.name
        return self.one(click.run_id, language)

    def started_by(self, token: str) -> str:
        """The id of the run created with this token, or ""."""
        return self.queue.read().clicks.get(token, "")

    @contextlib.contextmanager
    def click(self, token: str, when: str) -> Iterator[Click]:
        """A context manager for creating a run, which is then queued: first if possible
        (when="now"), or last. Each token creates one run. Raises RunError.
        """
        if not 8 <= len(token) <= LONGEST_TOKEN:
            raise RunError(
                "the request's token is {count} characters long",
                hint="Reload the page.",
                count=len(token),
            )
        with self.queue.once(token, first=when == "now") as click:
            yield click
        self._end_asking(click.run_id)
        self.scheduler.wake()

    def _end_asking(self, run_id: str) -> None:
        """Stop a language model that waits for questions, so that the run can start."""
        for entry in self._active_entries(self.queue.read()):
            if entry.job == "ask" and entry.id != run_id and entry.alive:
                send_request(entry.folder.requests, "stop")

    def make(self, name: str, asked: RunConfig | CaptionSettings | JobSettings) -> RunFolder:
        """Create the folder of a new run: `name`, or the first free of name-2, name-3 ... Raises
        RunError.
        """
        for _ in range(MOST_NAMES):
            path = folders.free_name(self.history.runs / name)
            with contextlib.suppress(folders.Taken):
                if isinstance(asked, JobSettings):
                    return folders.begin_job(path, asked.job, asked.content, new=True)
                if isinstance(asked, CaptionSettings):
                    return folders.begin_captioning(path, captioning.to_yaml(asked), new=True)
                return folders.begin(
                    path, training.to_yaml(asked.replace(output_dir=path)), new=True
                )
        raise RunError(
            "no free name for this run was found", hint="Delete some runs that are not needed."
        )

    def go_on(
        self, run_id: str, changes: Mapping[str, Any], language: str, when: str = "now"
    ) -> RunView:
        """Queue an ended run again, to continue from its resume point. changes: form fields such as
        max_train_steps.
        """
        foreign = [key for key in changes if key not in form.KEYS]
        if foreign:
            raise ConfigError("{keys} cannot be changed here", keys=", ".join(foreign))
        if run_id in self.scheduler.active():
            # it may have ended within the last second
            self.scheduler.tick()
        entry = self._entry(run_id)
        if entry.problem is not None:
            raise entry.problem
        if not entry.alive and run_id not in self.queue.read():
            resume.prepare(entry.folder, changes)
            if entry.job == "caption" and self._captions_again is not None:
                self._captions_again(entry.folder)
            self.queue.add(run_id, first=when == "now")
            self._end_asking(run_id)
            self.scheduler.wake()
        return self.one(run_id, language)

    # --- watching ---------------------------------------------------------------------------------

    def listing(self, language: str) -> RunList:
        """All runs, newest first."""
        line = self.queue.read()
        shown = [self._shown(_reachable(entry), line, language) for entry in self.history.listing()]
        return {"runs": shown, "revision": self.revision(line)}

    def one(self, run_id: str, language: str) -> RunView:
        """One run of the list."""
        return self._shown(self._entry(run_id), self.queue.read(), language)

    def newest_captioning(self, dataset: Path) -> str | None:
        """The id of a dataset's newest caption run. Called every second, so all runs are searched
        only after a change.
        """
        stamps = (files.stamp(self.history.runs), files.stamp(self.queue.path))
        known = self._captionings.get(dataset)
        if known is None or known[0] != stamps:
            ids = (
                entry.id
                for entry in self.history.listing()
                if entry.job == "caption" and entry.settings.get("input") == str(dataset)
            )
            known = self._captionings[dataset] = (stamps, next(ids, None))
        return known[1]

    def live(self, run_id: str, offset: int, with_log: bool, language: str) -> LiveView:
        """Everything since byte `offset` of the run's events. `whole`: the points are complete and
        replace earlier ones.
        """
        entry = self._entry(run_id)
        curve = self.history.curve(run_id)
        points, whole = curve.since(offset)
        return {
            "run": self._shown(entry, self.queue.read(), language),
            "offset": curve.offset,
            "whole": whole,
            "points": run_view.points(thinned(points, MOST_POINTS)),
            "validations": [run_view.validation(event) for event in entry.state.validations],
            "previews": [run_view.preview(entry, event) for event in entry.state.previews],
            "answers": [run_view.answer(event) for event in entry.state.answers],
            "log": last_lines(entry.folder.log, LOG_BYTES)[-LOG_LINES:] if with_log else [],
            "handover": self._handover(language),
            "verdict": _verdict(entry, language),
            "report": run_view.report_address(entry) if _report(entry) else None,
        }

    def pulse(self, language: str) -> Pulse:
        """What is active: a small answer, requested every second or two."""
        line = self.queue.read()
        active = [self._shown(entry, line, language) for entry in self._active_entries(line)]
        return {
            "active": [_progress(run) for run in active],
            "queued": len(line.waiting),
            "handover": self._handover(language),
            "revision": self.revision(line, [(run["id"], run["status"]) for run in active]),
        }

    def revision(self, line: QueueState, active: list[tuple[str, str]] | None = None) -> str:
        """Changes whenever the list of runs may have changed."""
        if active is None:
            active = [
                (entry.id, run_view.status_of(entry, line, self._asked_of(entry)))
                for entry in self._active_entries(line)
            ]
        moments = [files.stamp(path) for path in (self.history.runs, self.data.folder("trash"))]
        seen = repr((active, line.waiting, line.starting, moments))
        return f"{zlib.crc32(seen.encode('utf-8', errors='replace')):08x}"

    def _active_entries(self, line: QueueState) -> Iterator[HistoryEntry]:
        ids = dict.fromkeys([*self._alive_ids(), *([line.starting] if line.starting else [])])
        for run_id in ids:
            if (self.history.runs / run_id).is_dir():
                yield self.history.entry(run_id)

    def _alive_ids(self) -> tuple[str, ...]:
        if self.scheduler.on_duty:
            return self.scheduler.active()
        with self._looking:
            looked, found = self._alive
            if self._clock() - looked >= ALIVE_SECONDS:
                found = self.history.alive()
                self._alive = (self._clock(), found)
            return found

    def _shown(self, entry: HistoryEntry, line: QueueState, language: str) -> RunView:
        try:
            return self._presented(entry, line, language)
        except Exception as error:
            # the files may be damaged: one broken run must not break the list
            log.debug("%s cannot be shown", entry.folder.path, exc_info=True)
            reason = f"{type(error).__name__}: {error}"[:300]
            problem = entry.problem or RunError(
                "this run cannot be read: {reason}", hint="Look in its folder.", reason=reason
            )
            bare = HistoryEntry(
                id=entry.id,
                folder=entry.folder,
                alive=entry.alive,
                made=entry.made,
                problem=problem,
            )
            return self._presented(bare, line, language)

    def _presented(self, entry: HistoryEntry, line: QueueState, language: str) -> RunView:
        waits = (
            self.scheduler.on_duty
            and entry.id == line.starting
            and entry.id not in self.scheduler.active()
            and self.gpu_lease.waits()
        )
        return run_view.run(
            entry,
            line,
            lambda message: texts.render(message, language),
            asked=self._asked_of(entry),
            waits_for_host=waits,
        )

    def _handover(self, language: str) -> LeaseView:
        return self.gpu_lease.status().to_mapping(lambda message: texts.render(message, language))

    # --- requests ---------------------------------------------------------------------------------

    def ask(self, run_id: str, what: str, language: str) -> RunView:
        """Send a request to a run. Raises RunError if it does not accept it now."""
        entry = self._entry(run_id)
        if what not in get_args(RequestKind) or what == "ask":
            raise RunError("{what} is not a request", what=what)
        line = self.queue.read()
        status = run_view.status_of(entry, line, self._asked_of(entry))
        if status not in run_view.ACTIVE and not entry.alive:
            raise RunError(
                "this run is not running at the moment", hint="Press Continue to resume it."
            )
        if what in ("save", "preview") and not dict(run_view.abilities(entry, status))[what]:
            raise RunError(
                "there is nothing to save or preview yet", hint="Wait for the first steps."
            )
        self._send(entry, line, what)  # type: ignore[arg-type]
        return self._shown(self._entry(run_id), self.queue.read(), language)

    def _send(self, entry: HistoryEntry, line: QueueState, what: RequestKind) -> None:
        if (
            what == "stop"
            and entry.id == line.starting
            and not entry.alive
            and self.scheduler.on_duty
            and self.scheduler.withdraw(entry.id)
        ):
            return
        if what == "pause" or what == "resume":
            self.gpu_lease.ask(entry.folder, what)
        else:
            send_request(entry.folder.requests, what)
        if what in ("stop", "pause"):
            self._asked[entry.id] = (what, self._clock())
        elif what == "resume":
            self._asked.pop(entry.id, None)

    def _asked_of(self, entry: HistoryEntry) -> RequestKind | None:
        """The request that was sent to the worker but has not taken effect yet, if any."""
        kind, when = self._asked.get(entry.id, (None, 0.0))
        if kind is None:
            return None
        done = (entry.state.ended and entry.state.changed >= when) or (
            kind == "pause" and entry.state.status == "paused"
        )
        process_expected = entry.alive or entry.id in self.scheduler.active()
        if done or not process_expected:
            self._asked.pop(entry.id, None)
            return None
        return kind

    # --- order and deletion -----------------------------------------------------------------------

    def move(self, run_id: str, position: int, language: str) -> RunList:
        """Move a queued run to another position."""
        self._entry(run_id)
        self.queue.move(run_id, position)
        return self.listing(language)

    def unqueue(self, run_id: str, language: str) -> RunView:
        """Remove a run from the queue; it stays in the list."""
        self._entry(run_id)
        self.queue.remove(run_id)
        return self.one(run_id, language)

    def delete(self, run_id: str) -> Trashed:
        """Move a run's folder to the trash. Raises RunError for an active or queued one. A
        delivered LoRA is kept.
        """
        entry = self._entry(run_id)
        if run_id in self.scheduler.active():
            self.scheduler.tick()
        with self.queue.holding() as line:
            if entry.folder.is_alive or run_id in line or run_id in self.scheduler.active():
                raise RunError(
                    "{name} is running or queued",
                    hint="Stop it first, or remove it from the queue.",
                    name=run_id,
                )
            moved = trash.discard(
                entry.folder.path, self.data.folder("trash"), kind="run", now=self._clock()
            )
        return {"trash": moved.id}

    def trash_load(self) -> TrashLoad:
        """The contents of the trash, runs and datasets."""
        return _load(trash.measure(self.data.folder("trash")))

    def empty_trash(self) -> TrashLoad:
        """Delete the trash's contents. Returns what remains. Raises RunError if nothing could be
        deleted.
        """
        folder = self.data.folder("trash")
        before, left = trash.measure(folder), trash.empty(folder)
        if left.count and left == before:
            raise RunError(
                "the trash cannot be emptied",
                hint="Close the programs that show its files, then try again.",
            )
        return _load(left)

    def restore(self, trash_id: str, language: str) -> RunView:
        """Restore a run from the trash."""
        for found in trash.contents(self.data.folder("trash"), "run"):
            if found.id == trash_id:
                return self.one(trash.restore(found, self.history.runs).name, language)
        raise NotFound(
            "there is no {name} here",
            hint="It may have been restored already. Reload the page.",
            name=trash_id[:80],
        )

    # --- files ------------------------------------------------------------------------------------

    def preview(self, run_id: str, name: str) -> Path:
        """A preview, or the card's image. Raises NotFound for other names."""
        entry = self._entry(run_id)
        path = _card(entry) if name == run_view.DELIVERED else _preview(entry, name)
        if path is None:
            raise NotFound(
                "there is no image {name}", hint="It may have been deleted.", name=name[:80]
            )
        return path

    def report(self, run_id: str) -> Path:
        """The run's report.html. Raises NotFound."""
        path = _report(self._entry(run_id))
        if path is None:
            raise NotFound(
                "this run has no report", hint="It is written when a training ends or is stopped."
            )
        return path

    def log(self, run_id: str) -> str:
        """The end of the worker's log."""
        return "\n".join(last_lines(self._entry(run_id).folder.log, LONG_LOG_BYTES)) + "\n"

    def settings(self, run_id: str) -> str:
        """The text of the run's settings file, such as config.yaml or caption.yaml."""
        entry = self._entry(run_id)
        return _text(entry.folder.path / folders.SETTINGS_OF[entry.job])

    def pending_names(self) -> list[str]:
        """The LoRA names of active and queued trainings, in order."""
        line = self.queue.read()
        ids = dict.fromkeys(
            [*self._alive_ids(), *([line.starting] if line.starting else []), *line.waiting]
        )
        entries = [
            self.history.entry(run_id) for run_id in ids if (self.history.runs / run_id).is_dir()
        ]
        return [
            run_view.name_of(entry)
            for entry in entries
            if entry.job == "train" and entry.problem is None and not entry.state.delivered
        ]

    def entry(self, run_id: str) -> HistoryEntry:
        """The history entry of a run. Raises NotFound."""
        return self._entry(run_id)

    def folder(self, run_id: str) -> Path:
        return self._entry(run_id).folder.path

    def _entry(self, run_id: str) -> HistoryEntry:
        self.data.child("runs", run_id)
        return self.history.entry(run_id)


def _reachable(entry: HistoryEntry) -> HistoryEntry:
    """A folder whose name cannot be part of a URL is listed with an error."""
    problem = name_problem(entry.id, hint="Rename the folder.")
    return dataclasses.replace(entry, problem=problem) if problem else entry


def _card(entry: HistoryEntry) -> Path | None:
    if not entry.state.delivered:
        return None
    path = Path(entry.state.delivered).with_suffix(".png")
    return path if path.is_file() else None


def _preview(entry: HistoryEntry, name: str) -> Path | None:
    known = {run_view.last_part(event.file) for event in entry.state.previews}
    path = entry.folder.previews / name
    if (
        name not in known
        or name_problem(name)
        or path.suffix.lower() not in PREVIEWS
        or not path.is_file()
    ):
        return None
    # symlinks out of the run's folder are refused
    return path if path.resolve().parent == entry.folder.previews.resolve() else None


def _report(entry: HistoryEntry) -> Path | None:
    path = entry.folder.path / "report.html"
    return path if path.is_file() and not path.is_symlink() else None


def _verdict(entry: HistoryEntry, language: str) -> VerdictView | None:
    """The verdict on a training; None while it is running again, because it is then outdated."""
    if entry.alive or entry.job != "train":
        return None
    found = verdict.read(entry.folder)
    return None if found is None else run_view.verdict(found, language)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def _progress(run: RunView) -> RunProgress:
    return cast(RunProgress, {key: value for key, value in run.items() if key != "warnings"})


def _load(load: trash.TrashSize) -> TrashLoad:
    return {"count": load.count, "size": load.size}
