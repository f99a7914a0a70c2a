"""The errors a user may see, and their messages.

    LoraTrainerError
    ├── SetupError            the worker's packages: missing, broken, not installable
    ├── ConfigError           a setting: unknown, wrong type, out of range
    ├── DatasetError          images and captions
    ├── CaptionerError        a captioner: its model is missing, damaged, or cannot caption
    ├── CheckpointError       the base model file
    ├── LoraFileError         a LoRA file: unreadable, or it does not fit its base
    ├── RunError              a run folder: in use, not a run, not resumable
    └── TrainingError         the training itself
        ├── OutOfMemory
        ├── NotFinite         loss or gradients are NaN or infinite
        └── ProcessLost       one of several processes that train together is gone

A message is a template and its values: `str(error)` is English, and translations are keyed by the
template. Standard library only; every module may import this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Refused = TypeVar("Refused", bound="LoraTrainerError")


@dataclass(frozen=True)
class Message:
    """A sentence for the user: a template with `{named}` fields, and their values."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.template.format(**self.values) if self.values else self.template


class LoraTrainerError(Exception):
    """An error the user can act on: `message` says what is wrong, with the value; `hint` what to
    do.

    Both are templates; `values` fill the fields of either:

        raise DatasetError("no images in {folder}", hint="Put images there.", folder=folder)
    """

    def __init__(self, template: str, *, hint: str = "", **values: Any) -> None:
        self.message = Message(template, values)
        self.hint = Message(hint, values if hint else {})
        super().__init__(str(self.message))

    @classmethod
    def cannot_write(cls: type[Refused], path: object, error: OSError, hint: str) -> Refused:
        """The error of this class for a file or folder that the system does not let us write.
        path: as the user may see it.
        """
        template = "{path} cannot be written: {reason}"
        return cls(template, hint=hint, path=path, reason=error.strerror or error)

    def __str__(self) -> str:
        return str(self.message)

    def report(self) -> str:
        """The message and, on its own line, the hint."""
        hint = str(self.hint)
        return f"{self}\n{hint}" if hint else str(self)


class SetupError(LoraTrainerError):
    """The worker's packages are missing, broken or could not be installed."""


class ConfigError(LoraTrainerError):
    """One or more wrong settings: `problems` has an error for each."""

    def __init__(
        self,
        template: str,
        *,
        hint: str = "",
        problems: tuple[ConfigError, ...] = (),
        **values: Any,
    ) -> None:
        super().__init__(template, hint=hint, **values)
        self.problems = problems or (self,)

    @classmethod
    def listing(cls, problems: list[ConfigError], source: str) -> ConfigError:
        """All problems of one file as one error; a single problem is returned unchanged."""
        if len(problems) == 1:
            return problems[0]
        lines = "\n".join(
            f"- {problem}" + (f". {problem.hint}" if str(problem.hint) else "")
            for problem in problems
        )
        return cls(
            "{count} settings in {source} need attention:\n{lines}",
            problems=tuple(problems),
            count=len(problems),
            source=source,
            lines=lines,
        )


class DatasetError(LoraTrainerError):
    """The images or captions cannot be used as they are."""


class CaptionerError(LoraTrainerError):
    """A captioner's model is missing, cannot be downloaded, is damaged, or cannot caption."""


class CheckpointError(LoraTrainerError):
    """The base model file cannot be used."""


class LoraFileError(LoraTrainerError):
    """A LoRA file cannot be read, written or matched with its base."""


class RunError(LoraTrainerError):
    """A run folder is occupied, is not a run, or cannot be continued."""


class TrainingError(LoraTrainerError):
    """Training cannot go on."""


def disk_full() -> TrainingError:
    """The failure of a run that could not be saved for lack of disk space."""
    return TrainingError(
        "the disk is full",
        hint="Free some space, then continue with `resume`: nothing that was saved is lost.",
    )


class OutOfMemory(TrainingError):
    """The device's memory is used up."""


class NotFinite(TrainingError):
    """The loss or the gradients are NaN or infinite, step after step."""


class ProcessLost(TrainingError):
    """One of the processes that train together is gone. `was_memory`: its memory was used up."""

    def __init__(
        self, template: str, *, hint: str = "", was_memory: bool = False, **values: Any
    ) -> None:
        super().__init__(template, hint=hint, **values)
        self.was_memory = was_memory
