"""Requests to a running worker: a small file each in requests/, taken by the worker between steps.

    stop      finish the step, save, end            save             write a LoRA file now
    preview   make the preview images now           pause / resume
    ask       answer a question (a job that answers: question, strength, step)

A request is a JSON file whose name sorts by time; it is written atomically and deleted when taken.
Standard library only.
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

RequestKind = Literal["stop", "save", "preview", "pause", "resume", "ask"]


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
    """All waiting requests, oldest first; their files are deleted. Other files are ignored."""
    taken = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        with contextlib.suppress(*files.UNREADABLE):
            values = files.load_json(path, names=True)
            kind = values.pop("request")
            if kind in get_args(RequestKind):
                # if this raises (on Windows, while its sender has it open), it is taken next time
                path.unlink()
                taken.append(RunRequest(kind, values))
    return taken


def forget_requests(folder: Path) -> None:
    """Delete requests to an earlier worker, before a new one starts."""
    take_requests(folder)


def waiting_requests(folder: Path) -> tuple[RequestKind, ...]:
    """The kinds of the requests not yet taken, oldest first."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ()
    kinds = [name[:-5].rpartition("-")[2] for name in names if name.endswith(".json")]
    return tuple(cast(RequestKind, kind) for kind in kinds if kind in get_args(RequestKind))
