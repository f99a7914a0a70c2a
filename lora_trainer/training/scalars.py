"""TensorBoard curves of a run: logs/."""

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
    """Writes one point per curve and step. Without tensorboardX, or on a full disk, training
    continues without curves.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._writer: Any = None
        self._flushed = time.monotonic()
        with self._ignoring_errors():
            # tensorboardX, because TensorBoard brings gRPC and more. Not its SummaryWriter, whose
            # thread dies on a full disk, and which then blocks forever
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            folder.mkdir(parents=True, exist_ok=True)
            # unique even for a run resumed within the same second
            self._writer = EventsWriter(
                str(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}"
            )
            if first_step:
                # TensorBoard then discards points after the resume point
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
        with self._ignoring_errors():
            self._writer.write_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=points))
            )
            if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flushed = time.monotonic()
                self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._ignoring_errors():
                self._writer.close()

    @contextlib.contextmanager
    def _ignoring_errors(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, OSError) as error:
            log.warning("no TensorBoard curves from now on: %s", error)
            self._writer = None
