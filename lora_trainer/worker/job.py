"""A run folder -> its job, done; and the one place where exceptions become a `failed` event with a
hint.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
import traceback
from pathlib import Path

from lora_trainer import files
from lora_trainer.environment import Overlay
from lora_trainer.errors import LoraTrainerError, OutOfMemory, RunError, TrainingError, disk_full
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import Failed
from lora_trainer.runs.state import DISK_FULL, EXIT_STATUSES
from lora_trainer.settings import captioning, training
from lora_trainer.worker.report import Report

FINISHED, FAILED, STOPPED = (EXIT_STATUSES[end] for end in ("finished", "failed", "stopped"))


def run(path: Path, overlay: Overlay | None = None) -> int:
    """Do what the folder's config.yaml or caption.yaml asks for, from where it was left. Returns
    the exit status.

    overlay: the worker's packages; if they are not there, that is the run's failure.
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
                return _do(folder, report)
            except LoraTrainerError as error:
                return _tell(error, report)
    except RunError as error:
        # the folder is not ours to write in: another worker's, or no run at all
        return _tell(error)
    except OSError as error:
        if not files.is_disk_full(error):
            raise
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return DISK_FULL


def _tell(error: LoraTrainerError, report: Report | None = None) -> int:
    """Say how the run has failed. Where there is no room for it, the exit status says so."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
        print(error.report(), flush=True)
    try:
        if report is not None:
            report.say(Failed.of(error))
    except OSError:
        return DISK_FULL
    return FAILED


def _train(folder: folders.RunFolder, report: Report) -> str:
    from lora_trainer.worker.training_job import TrainingJob

    return TrainingJob(folder, training.read(folder.config), report).run()


def _caption(folder: folders.RunFolder, report: Report) -> str:
    from lora_trainer.worker.caption_job import CaptionJob

    return CaptionJob(folder, captioning.read(folder.caption_config), report).run()


def _do(folder: folders.RunFolder, report: Report) -> int:
    try:
        outcome = (_caption if folder.job == "caption" else _train)(folder, report)
        return FINISHED if outcome == "finished" else STOPPED
    except LoraTrainerError:
        raise
    except Exception as error:
        from lora_trainer.training.device import is_out_of_memory

        if is_out_of_memory(error) and folder.job == "caption":
            hint = (
                "Close other programs, or unload the WebUI's checkpoint; or use a smaller"
                " captioner, or set device to cpu."
            )
            raise OutOfMemory("memory ran out", hint=hint) from error
        if is_out_of_memory(error):
            raise OutOfMemory(
                "memory ran out at step {step}",
                hint=(
                    "Set gradient_checkpointing to true and batch_size to 1; if that is not enough,"
                    " lower resolution."
                ),
                step=folder.read_state().step,
            ) from error
        if files.is_disk_full(error):
            raise disk_full() from error
        raise TrainingError(
            "something unexpected went wrong: {kind}: {detail}",
            hint="The details are at the end of {log}. Please report it with that file.",
            kind=type(error).__name__,
            detail=error,
            log=folder.log,
        ) from error


def versions() -> dict[str, str]:
    """What this worker runs on, for worker.json."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft", "safetensors"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
