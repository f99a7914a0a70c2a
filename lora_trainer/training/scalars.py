"""The curves of a run, for TensorBoard: logs/."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Scalars:
    """Writes one point of each curve a step. Curves are a convenience: without a writer, training goes on without them."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._writer: Any = None
        try:
            # the event files of TensorBoard without its server, which would come with gRPC and more
            from tensorboardX import SummaryWriter

            # a run resumed within the same second must not write over its own curves
            suffix = f".{os.getpid()}.{time.monotonic_ns()}"
            # a resumed run replaces what was written after its resume point
            self._writer = SummaryWriter(str(folder), purge_step=first_step or None, filename_suffix=suffix)
        except ImportError as error:
            log.warning("no TensorBoard curves: %s", error)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
