"""The base class of tasks, and the lookup by settings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import ClassVar, TypeVar

from lora_trainer import tasks
from lora_trainer.errors import Message, OutOfMemory, RunError
from lora_trainer.runs.folder import RunFolder
from lora_trainer.tasks.report import Report
from lora_trainer.training.loop import Outcome
from lora_trainer.training.processes import ALONE, Processes

Base = TypeVar("Base")


class Task(ABC):
    """A job in a run folder, whose settings it reads when created. Raises ConfigError."""

    settings_file: ClassVar[str]
    """The settings file that this task runs."""
    plans_memory: ClassVar[bool] = False
    """Whether the planner knows the options with which it needs less memory."""

    def __init__(self, folder: RunFolder, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.processes: Processes = ALONE
        """Those that share the work, where it can be shared."""
        self.notes: Sequence[Message] = ()
        """What to tell once the job has begun."""

    @classmethod
    def accepts(cls, folder: RunFolder) -> bool:
        """Whether this task runs what the folder's settings ask for. Raises ConfigError."""
        return cls.settings_file == folder.settings.name

    @abstractmethod
    def run(self) -> Outcome:
        """Run the job, resuming if possible."""

    @classmethod
    @abstractmethod
    def out_of_memory(cls, folder: RunFolder) -> OutOfMemory:
        """The error for out of memory outside of stages that have their own."""


def find(folder: RunFolder) -> type[Task]:
    """The task that accepts the folder. Raises RunError if there is none."""
    # imported one by one: a caption job needs nothing of what a training imports
    for task in defined_in(tasks, Task):  # type: ignore[type-abstract]
        if not inspect.isabstract(task) and task.accepts(folder):
            return task
    raise RunError(
        "{path} asks for a task that this version does not have ({name})",
        hint="Update the extension.",
        path=folder.path,
        name=folder.settings.name,
    )


def defined_in(package: ModuleType, base: type[Base]) -> Iterator[type[Base]]:
    """The subclasses of `base` defined in the package's modules, in order of module names; each
    module is imported when reached.
    """
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for value in vars(module).values():
            is_defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if is_defined_here and issubclass(value, base) and value is not base:
                yield value
