"""What a task tells and what it is asked: events into the run folder, a heartbeat, and requests."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from types import FrameType

import psutil

from lora_trainer import files
from lora_trainer.errors import Message
from lora_trainer.runs.events import Event, EventWriter, Failed, Phase, Progress, Warned
from lora_trainer.runs.folder import Heartbeat, RunFolder
from lora_trainer.runs.requests import RunRequest, take_requests

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 5.0
HOST_SECONDS = 2.0


def in_words(event: Event) -> str:
    """An event as a line of the log: its kind, and what it says beyond the usual, as in "saved:
    step 100, file ink.safetensors".
    """
    if isinstance(event, (Warned, Failed)):
        return f"{event.kind}: {event.message} {event.hint}".strip()
    usual = {item.name: item.default for item in dataclasses.fields(event)}
    said = {name: getattr(event, name) for name in usual if name != "time"}
    words = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in said.items() if value != usual[name]
    )
    return f"{event.kind}: {words}" if words else event.kind


class Report:
    """What a job says, and hears, while it works. Cheap enough to be used in every step."""

    def __init__(self, folder: RunFolder, heartbeat: Heartbeat) -> None:
        self.folder = folder
        self._events = EventWriter(folder.events)
        self._heartbeat = heartbeat
        self._interrupted = False
        self._host_seen = 0.0
        self._waiting: list[RunRequest] = []

    def say(self, event: Event) -> None:
        self._events.write(event)
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        if not isinstance(event, Progress):
            log.info("%s", in_words(event))

    def phase(self, name: str, total: int = 0) -> None:
        self.say(Phase(phase=name, total=total))

    def part_done(self, count: int) -> None:
        """So many parts of the present phase are done."""
        self.say(Progress(step=count))

    def warn(self, message: Message, hint: Message | None = None) -> None:
        self.say(Warned.of(message, hint))

    def stop_asked(self) -> bool:
        """Whether `stop` was asked for; Ctrl-C and the system's polite end count as `stop`. It is
        never taken back.
        """
        self._listen()
        return self._interrupted or any(request.kind == "stop" for request in self._waiting)

    def pause_asked(self) -> bool:
        """Whether a pause was asked for and not taken back since. A pause that was taken back is
        forgotten; all else stays.
        """
        self._listen()
        if [request.kind for request in self._waiting if request.kind in ("pause", "resume")][
            -1:
        ] == ["pause"]:
            return True
        self._waiting = [
            request for request in self._waiting if request.kind not in ("pause", "resume")
        ]
        return False

    def first_waiting(self) -> RunRequest | None:
        """The oldest request that nobody took yet, of those that the questions above found."""
        return self._waiting[0] if self._waiting else None

    def take(self, request: RunRequest) -> None:
        """`request` is being dealt with."""
        self._waiting.remove(request)

    def _listen(self) -> None:
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        self._look_for_host()
        self._waiting += take_requests(self.folder.requests)

    def _look_for_host(self) -> None:
        """The end of the process that this run was tied to, if it was (host.json), asks for a stop
        like Ctrl-C does.
        """
        now = time.monotonic()
        if not self._interrupted and now - self._host_seen >= HOST_SECONDS:
            self._host_seen = now
            self._interrupted = is_orphan(self.folder)
            if self._interrupted:
                log.info("the WebUI that started this is gone: stopping")

    def listen_for_interrupts(self) -> None:
        """Ctrl-C and SIGTERM ask for a stop that keeps what was learned. Only a process of our own
        may do this.
        """

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        # SIGHUP: the terminal was closed; under nohup it is ignored, and stays so
        for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and not (
                name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
            ):
                signal.signal(number, interrupt)

    def close(self) -> None:
        self._events.close()


def is_orphan(folder: RunFolder) -> bool:
    """Whether the run is to end with a process (host.json) that has ended."""
    pid, started = files.read_json(
        folder.host, lambda host: (int(host["pid"]), float(host["started"])), (0, 0.0)
    )
    if pid <= 0:
        return False
    # a number beyond any process is an OverflowError
    with contextlib.suppress(psutil.AccessDenied, OverflowError, ValueError):
        try:
            # another process may have its number by now; the clock that psutil reads is whole
            # seconds on some systems
            return (
                abs(psutil.Process(pid).create_time() - started) > 2.0
                or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True
    return False
