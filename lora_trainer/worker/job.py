"""Runs the task of a run folder, and turns exceptions into a `failed` event with a hint."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer import environment, files
from lora_trainer.environment import Overlay
from lora_trainer.errors import (
    LoraTrainerError,
    Message,
    OutOfMemory,
    ProcessLost,
    RunError,
    TrainingError,
    disk_full,
)
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import Failed, Stopped
from lora_trainer.runs.state import DISK_FULL, EXIT_STATUSES
from lora_trainer.tasks import base
from lora_trainer.tasks.report import Report, Silence
from lora_trainer.training.loop import Outcome, StopRequested

if TYPE_CHECKING:
    from lora_trainer.training.joined import Joined
    from lora_trainer.worker.memory import MemoryOptions

log = logging.getLogger(__name__)
FINISHED, FAILED, STOPPED = (EXIT_STATUSES[end] for end in ("finished", "failed", "stopped"))


def run(path: Path, overlay: Overlay | None = None) -> int:
    """Run what the folder's settings file specifies, resuming if possible. Returns the exit status.

    overlay: the worker's packages; if they are missing, the run fails.
    """
    _log_to_output()
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
        raise _explained(error, folder.log) from error


def _explained(error: Exception, log_file: Path) -> LoraTrainerError:
    """The error of a cause that no stage expects."""
    if files.is_disk_full(error):
        return disk_full()
    return TrainingError(
        "something unexpected went wrong: {kind}: {detail}",
        hint="The details are at the end of {log}. Please report it with that file.",
        kind=type(error).__name__,
        detail=error,
        log=log_file,
    )


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
        if not isinstance(outcome, OutOfMemory):
            return outcome
        # outside of the exception, whose frames hold the models
        _free_memory()
        # torchrun's processes are not ours to start again
        less = options.go_on_with_less() if options and not environment.is_launched() else None
        if less is None:
            raise outcome
        notes = less


def _attempt(
    task: type[base.Task], folder: folders.RunFolder, report: Report, notes: Sequence[Message]
) -> Outcome | OutOfMemory:
    """The outcome; OutOfMemory is returned, without the frames that use it up."""
    # need torch, so only after overlay.require()
    from lora_trainer.training.device import is_out_of_memory
    from lora_trainer.worker.companions import joined

    def give_up(error: LoraTrainerError) -> None:
        os._exit(_report_failure(error, report))

    try:
        with joined(folder, give_up) as processes:
            job = task(folder, report)
            job.notes, job.processes = notes, processes
            return job.run()
    except ProcessLost as lost:
        if not lost.was_memory:
            raise
        return OutOfMemory(lost.message.template, hint=lost.hint.template, **lost.message.values)
    except LoraTrainerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            log.warning("memory ran out", exc_info=True)
            return task.out_of_memory(folder)
        raise


def take_part(path: Path, overlay: Overlay | None = None) -> int:
    """Do the share of a process that is not the first of its run. Returns the exit status. Nothing
    is written but its log; why it fails is told to the first process.
    """
    _log_to_output()
    folder = folders.RunFolder(path)
    report = Silence(folder)
    report.listen_for_interrupts()
    try:
        if overlay is not None:
            overlay.require()
            _activate_packages(folder)
    except LoraTrainerError as error:
        return _report_failure(error)
    from lora_trainer.training.joined import Joined
    from lora_trainer.worker import companions

    companions.end_with_starter()
    processes = Joined.by_environment()
    try:
        companions.share_settings(folder, processes)
        task = base.find(folder)
        _collect_garbage_from_here()
        _share(task, folder, report, processes)
        return FINISHED
    except ProcessLost as lost:
        log.info("%s", lost)
        return FINISHED if processes.is_over else FAILED
    except LoraTrainerError as error:
        processes.tell_failure(error)
        return _report_failure(error)


def _share(
    task: type[base.Task], folder: folders.RunFolder, report: Silence, processes: Joined
) -> None:
    """Raises LoraTrainerError only."""
    from lora_trainer.training.device import is_out_of_memory

    try:
        job = task(folder, report)
        job.processes = processes
        job.run()
    except LoraTrainerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise task.out_of_memory(folder) from error
        own_log = folder.companion_log(processes.rank + 1)
        raise _explained(error, own_log) from error


def _activate_packages(folder: folders.RunFolder) -> None:
    # needs PyYAML, so only after overlay.require()
    from lora_trainer.worker import packages

    packages.activate(folder)


def _log_to_output() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


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
