"""What is wrong with a dataset, said all at once.

Each check adds `Finding`s; nothing is raised until all have spoken. `refuse` then stops the run, naming every one, unless the settings say to
go on without them. Called by dataset.scan and dataset.buckets (which make findings), by the worker before training, and by the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from lora_trainer.config import DatasetSettings
from lora_trainer.errors import DatasetError, Message

Severity = Literal["error", "warning", "info"]
"""error: something the user gave cannot be used, and the run stops unless on_bad_data is skip. warning: worth knowing; nothing stops.
info: a hint, where what was measured may well be as it should."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The gravest first."""

Kind = Literal[
    "unreadable-folder",
    "unreadable-metadata",
    "unreadable-row",
    "row-without-file",
    "ambiguous-row",
    "duplicate-row",
    "other-suffix",
    "unreadable-caption",
    "guessed-encoding",
    "several-captions",
    "other-table",
    "unread-captions",
    "escaped-brackets",
    "foreign-syntax",
    "prompt-syntax",
    "no-caption",
    "captions-differ",
    "shared-caption",
    "folder-name-caption",
    "trigger-word-caption",
    "long-caption",
    "unreadable-image",
    "unsupported-format",
    "duplicate-image",
    "left-out",
    "repeats",
    "small-image",
    "cropped-image",
    "blurred-image",
    "near-duplicate",
    "wide-border",
    "extreme-aspect",
    "lettering",
    "too-dark",
    "too-bright",
    "low-contrast",
    "small-subject",
    "identical-captions",
    "no-trigger",
    "vocabulary",
    "little-variety",
]

NAMES_PER_KIND = 10
"""A list of two thousand names helps nobody: the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about one file (or the whole dataset, where `path` is None). The hint fits every finding of its kind, so that it is said once."""

    kind: Kind
    severity: Severity
    message: Message
    hint: Message
    path: Path | None = None
    measured: float | None = None
    """What was measured, where a number says how bad it is; its unit is the kind's (dataset.check)."""
    mend: Mapping[str, Any] | None = None
    """What would mend it, to be done at a click: {"mend": "crop", "box": [left, top, right, bottom]}, {"mend": "leave_out"} ... (dataset.check)."""
    related: tuple[Path, ...] = ()
    """All files the finding is about, where it is about several: the members of a cluster of near-duplicates."""

    def __str__(self) -> str:
        return str(self.message)


def error(kind: Kind, template: str, *, hint: str = "", path: Path | None = None, **values: Any) -> Finding:
    """A finding that stops the run (see `Severity`). The template and the hint name their `values` in braces."""
    return Finding(kind=kind, severity="error", message=Message(template, values), hint=Message(hint, values if hint else {}), path=path)


def warning(kind: Kind, template: str, *, hint: str = "", path: Path | None = None, **values: Any) -> Finding:
    """A finding to be told, and no more."""
    return Finding(kind=kind, severity="warning", message=Message(template, values), hint=Message(hint, values if hint else {}), path=path)


def problem(
    kind: Kind,
    template: str,
    *,
    hint: str = "",
    path: Path | None = None,
    measured: float | None = None,
    mend: Mapping[str, Any] | None = None,
    related: tuple[Path, ...] = (),
    **values: Any,
) -> Finding:
    """A warning about something that was measured, with what would mend it."""
    found = warning(kind, template, hint=hint, path=path, **values)
    return dataclasses.replace(found, measured=measured, mend=mend, related=related)


def from_error(kind: Kind, problem: DatasetError, path: Path, name: str) -> Finding:
    """A DatasetError about one file as a finding that calls the file `name`. The error's template names it {path}."""
    message = Message(problem.message.template, {**problem.message.values, "path": name})
    return Finding(kind=kind, severity="error", message=message, hint=problem.hint, path=path)


def report(findings: Iterable[Finding], names_per_kind: int = NAMES_PER_KIND) -> str:
    """The findings as text, grouped by kind, errors first: at most `names_per_kind` lines of each kind, the number of the rest, the hint once."""
    groups: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind, str(finding.hint)), []).append(finding)
    lines: list[str] = []
    # the gravest first; within each, the order of first appearance stays
    for (_, _, hint), group in sorted(groups.items(), key=lambda item: SEVERITIES.index(item[0][0])):
        lines += [f"- {finding}" for finding in group[:names_per_kind]]
        if len(group) > names_per_kind:
            lines.append(f"- and {len(group) - names_per_kind} more like these")
        if hint:
            lines.append(f"  {hint}")
    return "\n".join(lines)


def refuse(findings: Sequence[Finding], settings: DatasetSettings) -> None:
    """Stops the run if on_bad_data is stop and any finding is an error.

    Raises one DatasetError that lists all errors; its `message.values["findings"]` holds them.
    """
    errors = tuple(finding for finding in findings if finding.severity == "error")
    if errors and settings.on_bad_data == "stop":
        raise DatasetError(
            "the images and captions in {folder} need attention ({count} found):\n{report}",
            hint="Mend them, or set on_bad_data to skip: images like these are then left out, and captions that are too long are cut off.",
            folder=settings.train_data_dir, count=len(errors), report=report(errors), findings=errors,
        )


def refuse_empty(findings: Sequence[Finding], settings: DatasetSettings) -> NoReturn:
    """For a dataset of which no image is left: raises a DatasetError that lists everything found, as `refuse` does."""
    raise DatasetError(
        "no image in {folder} can be used ({count} found):\n{report}", hint="Mend them and start again.",
        folder=settings.train_data_dir, count=len(findings), report=report(findings), findings=tuple(findings),
    )
