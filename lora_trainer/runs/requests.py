"""What others ask of a running worker: one small file each in requests/, consumed by the worker
between two steps.

    stop      finish the step, save, end            save      write a LoRA file now
    preview   make the preview pictures now         pause / resume

A request is a JSON file whose name sorts by time; it appears whole (rename) and is deleted when it
is taken. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lora_trainer import files
from lora_trainer.errors import RunError

RequestKind = Literal["stop", "save", "preview", "pause", "resume"]


@dataclass(frozen=True)
class RunRequest:
    kind: RequestKind
    values: dict[str, Any] = field(default_factory=dict)


def send_request(folder: Path, kind: RequestKind, **values: Any) -> None:
    """Put a request into the `requests` folder."""
    if kind not in get_args(RequestKind):
        raise RunError(
            "{kind!r} is not a request",
            hint="Use one of: {known}.",
            kind=kind,
            known=", ".join(get_args(RequestKind)),
        )
    name = f"{time.time_ns():020d}-{os.getpid()}-{kind}.json"
    files.write_text(folder / name, json.dumps({"request": kind, **values}))


def take_requests(folder: Path) -> list[RunRequest]:
    """All waiting requests, oldest first; they are deleted. What is not a request is left alone."""
    taken = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        with contextlib.suppress(*files.UNREADABLE):
            values = files.load_json(path, names=True)
            kind = values.pop("request")
            if kind in get_args(RequestKind):
                # one that cannot be deleted yet (on Windows, its sender may still hold it) is taken
                # next time, not twice
                path.unlink()
                taken.append(RunRequest(kind, values))
    return taken


def forget_requests(folder: Path) -> None:
    """Drop what was asked of an earlier worker: a new one must not stop because the last one was
    asked to. For whoever starts a worker.
    """
    take_requests(folder)


def waiting_requests(folder: Path) -> tuple[RequestKind, ...]:
    """What was asked and is not taken yet, oldest first."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ()
    asked = [name[:-5].rpartition("-")[2] for name in names if name.endswith(".json")]
    return tuple(cast(RequestKind, kind) for kind in asked if kind in get_args(RequestKind))
