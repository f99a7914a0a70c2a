"""Requests to a running worker: a small file each in requests/, taken by the worker between steps.

    stop      finish the step, save, end            save             write a LoRA file now
    preview   make the preview images now           pause / resume
    ask       answer a question (a job that answers: question, strength, step)

A request is a JSON file whose name sorts by time; it is written atomically and deleted when taken.
The events Paused and Resumed name the one that they obey.
Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any, Literal, cast, get_args

from lora_trainer import files
from lora_trainer.errors import RunError

RequestKind = Literal["stop", "save", "preview", "pause", "resume", "ask"]
_counting = threading.Lock()
_last = 0


@dataclass(frozen=True)
class RunRequest:
    kind: RequestKind
    values: dict[str, Any] = field(default_factory=dict)
    name: str = field(default="", compare=False)
    """Its file's, which sorts by time."""


def send_request(folder: Path, kind: RequestKind, **values: Any) -> str:
    """Put a request into the `requests` folder. Returns its name."""
    if kind not in get_args(RequestKind):
        raise RunError(
            "{kind!r} is not a request",
            hint="Use one of: {known}.",
            kind=kind,
            known=", ".join(get_args(RequestKind)),
        )
    name = new_name(kind)
    send_named(folder, name, kind, values)
    return name


def send_named(
    folder: Path, name: str, kind: RequestKind, values: Mapping[str, Any] | None = None
) -> None:
    """Put a request with a name of `new_name` into the `requests` folder."""
    files.write_text(folder / f"{name}.json", json.dumps({"request": kind, **(values or {})}))


def new_name(kind: RequestKind) -> str:
    """A name that sorts after all before it. It begins with the nanoseconds since 1970, but at
    least one more than the last: a clock may tick only every 16 ms.
    """
    global _last
    with _counting:
        _last = max(_last + 1, time_ns())
        return f"{_last:020d}-{os.getpid()}-{kind}"


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
                taken.append(RunRequest(kind, values, path.stem))
    return taken


def forget_requests(folder: Path) -> None:
    """Delete requests to an earlier worker, before a new one starts."""
    take_requests(folder)


def waiting_names(folder: Path) -> list[str]:
    """The names of the requests not yet taken, oldest first."""
    try:
        return sorted(path.stem for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []


def waiting_requests(folder: Path) -> tuple[RequestKind, ...]:
    """The kinds of the requests not yet taken, oldest first."""
    kinds = [name.rpartition("-")[2] for name in waiting_names(folder)]
    return tuple(cast(RequestKind, kind) for kind in kinds if kind in get_args(RequestKind))
