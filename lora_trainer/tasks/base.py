"""A task, and how a run folder's settings file finds it."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType
from typing import ClassVar, TypeVar

from lora_trainer import tasks
from lora_trainer.errors import OutOfMemory, RunError
from lora_trainer.runs.folder import RunFolder
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Outcome

Base = TypeVar("Base")


class Task(ABC):
    """One run of one kind. It is made with the run folder, whose settings it reads: ConfigError for
    wrong ones.
    """

    settings_file: ClassVar[str]
    """The file in the run folder that asks for this task."""

    def __init__(self, folder: RunFolder, report: Report) -> None:
        self.folder = folder
        self.report = report

    @abstractmethod
    def run(self) -> Outcome:
        """Do it, from where it was left."""

    @classmethod
    @abstractmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        """What to tell when memory ran out where no stage has a sentence of its own."""


def find(folder: RunFolder) -> type[Task]:
    """The task that the folder's settings file asks for. Raises RunError when there is none."""
    # one after the other, until it is found: a caption job needs nothing of what a training imports
    for task in defined_in(tasks, Task):  # type: ignore[type-abstract]
        if task.settings_file == folder.settings.name:
            return task
    raise RunError(
        "{path} asks for a task that this version does not have ({name})",
        hint="Update the extension.",
        path=folder.path,
        name=folder.settings.name,
    )


def defined_in(package: ModuleType, base: type[Base]) -> Iterator[type[Base]]:
    """The subclasses of `base` that the package's modules define, module by module in order of
    their names. A module is imported when its turn comes.
    """
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and value.__module__ == module.__name__
                and issubclass(value, base)
                and value is not base
            ):
                yield value
