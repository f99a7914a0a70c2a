"""Processes that die in the middle of something, as under a kill: nothing is cleaned up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CHANGING = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate", "os.scandir"}


def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a process that dies before its `step`-th call to the system about a file in
    `folder`. False: it was through before that.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in CHANGING and str(arguments[0]).startswith(str(folder)):
                count += 1
                if count == step:
                    os._exit(9)

        sys.addaudithook(watch)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    assert status in (0, 9), "the work itself failed"
    return status == 9
