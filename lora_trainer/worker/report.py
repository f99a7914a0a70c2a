"""The worker's voice: events into the run folder, a heartbeat, and the requests that come back."""

from __future__ import annotations

import logging
import signal
from types import FrameType

from lora_trainer.errors import Message
from lora_trainer.runs.events import Event, EventWriter, Phase, Progress, Warned
from lora_trainer.runs.folder import Heartbeat, RunFolder
from lora_trainer.runs.requests import Request, take_requests

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 5.0


class Report:
    """What a job says, and hears, while it works. Cheap enough to be used in every step."""

    def __init__(self, folder: RunFolder, heartbeat: Heartbeat) -> None:
        self.folder = folder
        self._events = EventWriter(folder.events)
        self._heartbeat = heartbeat
        self._interrupted = False
        self._waiting: list[Request] = []

    def say(self, event: Event) -> None:
        self._events.write(event)
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        if not isinstance(event, Progress):
            log.info("%s", event)

    def phase(self, name: str, total: int = 0) -> None:
        self.say(Phase(phase=name, total=total))

    def part_done(self, count: int) -> None:
        """So many parts of the present phase are done."""
        self.say(Progress(step=count))

    def warn(self, message: Message, hint: Message | None = None) -> None:
        self.say(Warned.of(message, hint))

    def requests(self) -> list[Request]:
        """What was asked since the last call; Ctrl-C and the system's polite end count as `stop`."""
        self._heartbeat.beat(HEARTBEAT_SECONDS)
        asked, self._waiting = [*self._waiting, *take_requests(self.folder.requests)], []
        return [*asked, Request("stop")] if self._interrupted else asked

    def stop_asked(self) -> bool:
        """Whether `stop` is among what was asked. It stays there: `requests` will give it too."""
        self._waiting += take_requests(self.folder.requests)
        return self._interrupted or any(request.kind == "stop" for request in self._waiting)

    def listen_for_interrupts(self) -> None:
        """Ctrl-C and SIGTERM ask for a stop that keeps what was learned. Only a process of our own may do this."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        # SIGHUP: the terminal was closed; under nohup it is ignored, and stays so
        for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, interrupt)

    def close(self) -> None:
        self._events.close()
