"""A task's output and input: events, heartbeat, requests."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

import psutil

from lora_trainer import files
from lora_trainer.dataset.findings import Finding, sums
from lora_trainer.errors import Message
from lora_trainer.runs.events import Event, EventWriter, Failed, Phase, Progress, Warned
from lora_trainer.runs.folder import Heartbeat, RunFolder
from lora_trainer.runs.requests import RunRequest, take_requests

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 5.0
HOST_SECONDS = 2.0
INTERRUPTS = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
NAMED_PER_KIND = 3
"""Files named in a warning about several."""


def in_words(event: Event) -> str:
    """An event as a log line: its kind and the fields that differ from their defaults, as in
    "saved: step 100, file ink.safetensors".
    """
    if isinstance(event, (Warned, Failed)):
        return f"{event.kind}: {event.message} {event.hint}".strip()
    usual = {item.name: item.default for item in dataclasses.fields(event)}
    values = {name: getattr(event, name) for name in usual if name != "time"}
    words = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if value != usual[name]
    )
    return f"{event.kind}: {words}" if words else event.kind


class Report:
    """Writes a job's events and reads requests to it. Cheap enough for every step."""

    def __init__(self, folder: RunFolder, heartbeat: Heartbeat) -> None:
        self.folder = folder
        self._events = EventWriter(folder.events)
        self._heartbeat = heartbeat
        self._interrupted = False
        self._host_seen = 0.0
        self._waiting: list[RunRequest] = []

    def write(self, event: Event) -> None:
        self._events.write(event)
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        if not isinstance(event, Progress):
            log.info("%s", in_words(event))

    def phase(self, name: str, total: int = 0) -> None:
        self.write(Phase(phase=name, total=total))

    def part_done(self, count: int) -> None:
        """`count` parts of the current phase are done."""
        self.write(Progress(step=count))

    def warn(self, message: Message | str, *, hint: Message | str = "", **values: Any) -> None:
        """Report a warning: Messages, or templates of the `values`."""
        if isinstance(message, str):
            message = Message(message, values)
        self.write(Warned.of(message, Message(hint, values) if isinstance(hint, str) else hint))

    def warn_of(self, findings: Iterable[Finding]) -> None:
        """One warning for each kind of finding, with the first few names."""
        for one in sums(findings):
            self.warn(one.named(NAMED_PER_KIND), hint=one.hint)

    def stop_asked(self) -> bool:
        """Whether a stop was requested, by request or signal. Final."""
        self._listen()
        return self._interrupted or any(request.kind == "stop" for request in self._waiting)

    def pause_asked(self) -> RunRequest | None:
        """The newest request to pause or to resume; one to resume is taken, with those before."""
        self._listen()
        pauses = [request for request in self._waiting if request.kind in ("pause", "resume")]
        if pauses and pauses[-1].kind == "resume":
            self._waiting = [request for request in self._waiting if request not in pauses]
        return pauses[-1] if pauses else None

    def first_waiting(self) -> RunRequest | None:
        """The oldest pending request, of those read so far."""
        return self._waiting[0] if self._waiting else None

    def take(self, request: RunRequest) -> None:
        """Remove a request that is being handled."""
        self._waiting.remove(request)

    def _listen(self) -> None:
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        self._look_for_host()
        self._waiting += take_requests(self.folder.requests)

    def _look_for_host(self) -> None:
        """Request a stop if the process this run is tied to (host.json) has ended."""
        now = time.monotonic()
        if not self._interrupted and now - self._host_seen >= HOST_SECONDS:
            self._host_seen = now
            self._interrupted = is_orphan(self.folder)
            if self._interrupted:
                log.info("the WebUI that started this is gone: stopping")

    def listen_for_interrupts(self) -> None:
        """Treat SIGINT, SIGTERM and similar as a request to stop. Main thread of a worker process
        only.
        """

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        # SIGHUP: the terminal was closed; nohup ignores it, keep that
        for name in INTERRUPTS:
            number = getattr(signal, name, None)
            if number is not None and not (
                name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
            ):
                signal.signal(number, interrupt)

    def close(self) -> None:
        self._events.close()


class Silence(Report):
    """For a process that is not the first of several: what it reports goes to its log, and requests
    are the first one's.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._warnings: list[Warned] = []
        self._interrupted = False
        self._waiting = []

    def write(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._warnings.append(event)
        if not isinstance(event, Progress):
            log.info("%s", in_words(event))

    def taken(self) -> list[Warned]:
        """The warnings since the last time, for the first process to report."""
        taken, self._warnings = self._warnings, []
        return taken

    def _listen(self) -> None:
        pass

    def listen_for_interrupts(self) -> None:
        """The first process decides when all stop."""
        for name in INTERRUPTS:
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        pass


def is_orphan(folder: RunFolder) -> bool:
    """Whether the process this run is tied to (host.json) has ended."""
    pid, started = files.read_json(
        folder.host, lambda host: (int(host["pid"]), float(host["started"])), (0, 0.0)
    )
    if pid <= 0:
        return False
    # a pid out of range raises OverflowError
    with contextlib.suppress(psutil.AccessDenied, OverflowError, ValueError):
        try:
            # the pid may be reused; start times have whole seconds on some systems
            return (
                abs(psutil.Process(pid).create_time() - started) > 2.0
                or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True
    return False
