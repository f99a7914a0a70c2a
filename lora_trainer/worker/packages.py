"""Activates the libraries that a training's checkpoint needs, before torch is imported. They are
installed when first needed.
"""

from __future__ import annotations

from lora_trainer import environment
from lora_trainer.checkpoint.packages import packages_of
from lora_trainer.errors import LoraTrainerError
from lora_trainer.runs.events import Started
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.tasks.control import Control
from lora_trainer.tasks.installing import install
from lora_trainer.tasks.report import Report


def activate(folder: RunFolder) -> None:
    """The same for a process that is not the first of its run, and installs nothing."""
    name = _needed(folder)
    if name:
        environment.activate(environment.find_family_overlay(name).require())


def prepare(folder: RunFolder, report: Report) -> None:
    """Does nothing for a run whose checkpoint needs the worker's own set only. Raises SetupError;
    StopRequested.
    """
    name = _needed(folder)
    if not name:
        return
    overlay = environment.find_family_overlay(name)
    overlay.require_torch()
    # processes that torchrun has started do not wait for each other yet
    if overlay.state != "ready" and not environment.is_launched():
        report.write(Started(resumed_from=_resumed(folder)))
        install(report, Control(report), "--packages", name)
        # an earlier version of the set serves where this one cannot be fetched
        overlay = environment.find_family_overlay(name)
    environment.activate(overlay.require())


def _needed(folder: RunFolder) -> str:
    if folder.settings != folder.config:
        return ""
    try:
        return packages_of(training.read(folder.config).checkpoint.base_model)
    except (LoraTrainerError, OSError):
        # the task says what is wrong with the settings
        return ""


def _resumed(folder: RunFolder) -> int | None:
    """The step of the run so far, whose saves and previews go on to be shown."""
    return folder.read_state().step or None
