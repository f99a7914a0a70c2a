"""The curves of a run, for TensorBoard: logs/."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FLUSH_SECONDS = 10.0


class Scalars:
    """Writes one point of each curve a step. Curves are a convenience: without a writer, or room on
    the disk, training goes on without them.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._writer: Any = None
        self._flushed = time.monotonic()
        with self._unharmed():
            # the event files of TensorBoard without its server, which would come with gRPC and
            # more. Not by tensorboardX's SummaryWriter: it writes in a thread, which a full disk
            # ends, and then waits for that thread for ever
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            folder.mkdir(parents=True, exist_ok=True)
            # a run resumed within the same second must not write over its own curves
            self._writer = EventsWriter(
                str(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}"
            )
            if first_step:
                # what was written after the resume point is replaced
                self._writer.write_event(
                    Event(step=first_step, session_log=SessionLog(status=SessionLog.START))
                )

    def write(self, step: int, values: dict[str, float | None]) -> None:
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        with self._unharmed():
            self._writer.write_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=points))
            )
            if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flushed = time.monotonic()
                self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._unharmed():
                self._writer.close()

    @contextlib.contextmanager
    def _unharmed(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, OSError) as error:
            log.warning("no TensorBoard curves from now on: %s", error)
            self._writer = None
