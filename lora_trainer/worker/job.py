"""Runs the task of a run folder, and turns exceptions into a `failed` event with a hint."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import platform
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer import files
from lora_trainer.environment import Overlay
from lora_trainer.errors import LoraTrainerError, Message, RunError, TrainingError, disk_full
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import Failed, Stopped
from lora_trainer.runs.state import DISK_FULL, EXIT_STATUSES
from lora_trainer.tasks import base
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Outcome, StopRequested

if TYPE_CHECKING:
    from lora_trainer.worker.memory import MemoryOptions

log = logging.getLogger(__name__)
FINISHED, FAILED, STOPPED = (EXIT_STATUSES[end] for end in ("finished", "failed", "stopped"))


def run(path: Path, overlay: Overlay | None = None) -> int:
    """Run what the folder's settings file specifies, resuming if possible. Returns the exit status.

    overlay: the worker's packages; if they are missing, the run fails.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        folder = folders.existing(path)
        with (
            folders.occupy(folder, versions()) as heartbeat,
            contextlib.closing(Report(folder, heartbeat)) as report,
        ):
            report.listen_for_interrupts()
            try:
                if overlay is not None:
                    overlay.require()
                    _prepare_packages(folder, report, heartbeat)
                return _run_reporting(folder, report)
            except StopRequested:
                return _report_stop(folder, report)
            except LoraTrainerError as error:
                return _report_failure(error, report)
    except RunError as error:
        # another worker's folder, or no run folder: write nothing there
        return _report_failure(error)
    except OSError as error:
        if not files.is_disk_full(error):
            raise
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return DISK_FULL


def _report_failure(error: LoraTrainerError, report: Report | None = None) -> int:
    """Write the failure to the log and the events. Returns the exit status, DISK_FULL if the events
    could not be written.
    """
    with contextlib.suppress(OSError):
        traceback.print_exc()
        print(error.report(), flush=True)
    try:
        if report is not None:
            report.write(Failed.of(error))
    except OSError:
        return DISK_FULL
    return FAILED


def _prepare_packages(
    folder: folders.RunFolder, report: Report, heartbeat: folders.Heartbeat
) -> None:
    # needs PyYAML, so only after overlay.require()
    from lora_trainer.worker import packages

    packages.prepare(folder, report)
    heartbeat.note(versions())


def _report_stop(folder: folders.RunFolder, report: Report) -> int:
    """Stopped before the task began."""
    state = folder.read_state()
    report.write(Stopped(step=state.step, file=state.saved[-1].file if state.saved else ""))
    return STOPPED


def _run_reporting(folder: folders.RunFolder, report: Report) -> int:
    try:
        task = base.find(folder)
        _collect_garbage_from_here()
        return FINISHED if _run(task, folder, report) == "finished" else STOPPED
    except LoraTrainerError:
        raise
    except Exception as error:
        if files.is_disk_full(error):
            raise disk_full() from error
        raise TrainingError(
            "something unexpected went wrong: {kind}: {detail}",
            hint="The details are at the end of {log}. Please report it with that file.",
            kind=type(error).__name__,
            detail=error,
            log=folder.log,
        ) from error


def _collect_garbage_from_here() -> None:
    """Of what the job makes, but not of what was imported: the entry file had turned it off."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _run(task: type[base.Task], folder: folders.RunFolder, report: Report) -> Outcome:
    """Run the task with the options that save memory; when memory runs out, again with fewer."""
    options = _memory_options(task, folder)
    notes: Sequence[Message] = options.choose() if options else ()
    while True:
        outcome = _attempt(task, folder, report, notes)
        if outcome is not None:
            return outcome
        # outside of the exception, whose frames hold the models
        _free_memory()
        less = options.go_on_with_less() if options else None
        if less is None:
            raise task.out_of_memory(folder)
        notes = less


def _attempt(
    task: type[base.Task], folder: folders.RunFolder, report: Report, notes: Sequence[Message]
) -> Outcome | None:
    """None: out of memory."""
    # needs torch, so only after overlay.require()
    from lora_trainer.training.device import is_out_of_memory

    try:
        job = task(folder, report)
        job.notes = notes
        return job.run()
    except LoraTrainerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            log.warning("memory ran out", exc_info=True)
            return None
        raise


def _memory_options(task: type[base.Task], folder: folders.RunFolder) -> MemoryOptions | None:
    if not task.plans_memory:
        return None
    from lora_trainer.worker.memory import MemoryOptions

    return MemoryOptions.of(folder)


def _free_memory() -> None:
    from lora_trainer.training.device import choose_device, free_memory

    free_memory(choose_device("auto"))


def versions() -> dict[str, str]:
    """Versions of Python and the main libraries, for worker.json."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft", "safetensors"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
