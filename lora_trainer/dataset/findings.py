"""What is wrong with a dataset, said all at once.

Each check adds `Finding`s; nothing is raised until all have spoken. `refuse` then stops the run,
naming every one, unless the settings say to go on without them. Called by dataset.scan and
dataset.buckets (which make findings), by the worker before training, and by the command line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from lora_trainer.errors import DatasetError, Message
from lora_trainer.settings.training import DatasetSettings

Severity = Literal["error", "warning", "info"]
"""error: something the user gave cannot be used, and the run stops unless on_bad_data is skip.
warning: worth knowing; nothing stops. info: a hint, where what was measured may well be as it
should.
"""
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
    "unconverted-image",
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
    "vocabulary",
    "little-variety",
]

NAMES_PER_KIND = 10
"""A list of two thousand names helps nobody: the rest is counted."""

Texts = Mapping[Kind, str]
SUMS: Texts = {
    "no-caption": "{count} images have no caption",
    "captions-differ": "{count} images have two different captions",
    "shared-caption": "{count} captions belong to two images each",
    "unreadable-caption": "{count} captions cannot be read",
    "guessed-encoding": "{count} captions are not UTF-8, and their encoding was guessed",
    "escaped-brackets": (
        "{count} captions have escaped brackets, and the backslashes are trained as well"
    ),
    "long-caption": "{count} captions are longer than training reads",
    "unreadable-row": "{count} rows cannot be read",
    "row-without-file": "{count} rows name an image that is not there",
    "ambiguous-row": "{count} rows fit several images",
    "duplicate-row": "{count} images have several rows",
    "other-suffix": "{count} rows name another file type than the image has",
    "unreadable-folder": "{count} folders cannot be opened",
    "unreadable-image": "{count} images cannot be read",
    "unsupported-format": "{count} files have a format that is not read",
    "unconverted-image": "{count} pictures are not read as they are, but can be converted",
    "duplicate-image": "{count} images are copies of others",
    "small-image": "{count} images are too small",
    "cropped-image": "Much is cropped away of {count} images",
    "blurred-image": "{count} images are blurred",
    "near-duplicate": "{count} images are nearly the same as others",
    "wide-border": "{count} images have a wide border of one colour",
    "extreme-aspect": "{count} images are very long or tall",
    "lettering": "{count} images seem to have a watermark or lettering",
    "too-dark": "{count} images are very dark",
    "too-bright": "{count} images are very bright",
    "low-contrast": "{count} images have little contrast",
    "small-subject": "The subject is small in {count} images",
    "vocabulary": "{count} captions do not keep to the vocabulary",
}
"""Several findings of a kind in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about one file (or the whole dataset, where `path` is None). The hint fits every
    finding of its kind, so that it is said once.
    """

    kind: Kind
    severity: Severity
    message: Message
    hint: Message
    path: Path | None = None
    measured: float | None = None
    """What was measured, where a number says how bad it is; its unit is the kind's (dataset.check).
    """
    mend: Mapping[str, Any] | None = None
    """What would mend it, to be done at a click: {"mend": "crop", "box": [left, top, right,
    bottom]}, {"mend": "leave_out"} ... (dataset.check).
    """
    related: tuple[Path, ...] = ()
    """All files the finding is about, where it is about several: the members of a cluster of
    near-duplicates.
    """

    def __str__(self) -> str:
        return str(self.message)

    @property
    def about(self) -> tuple[Path, ...]:
        """The files that it is about: one, or those that share it."""
        return (self.path,) if self.path is not None else self.related


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Findings that are one thing: of one kind and severity, with one hint. There is at least
    one.
    """

    findings: tuple[Finding, ...]

    @property
    def kind(self) -> Kind:
        return self.findings[0].kind

    @property
    def severity(self) -> Severity:
        return self.findings[0].severity

    @property
    def hint(self) -> Message:
        return self.findings[0].hint

    @cached_property
    def about(self) -> tuple[Path, ...]:
        """All files that they are about, each once."""
        return tuple(dict.fromkeys(path for finding in self.findings for path in finding.about))

    @property
    def message(self) -> Message:
        """The finding's own sentence, or how many there are."""
        if len(self.findings) == 1:
            return self.findings[0].message
        # rows are all about one table, and one finding about several pictures
        return Message(SUMS[self.kind], {"count": max(len(self.about), len(self.findings))})

    def named(self, most: int) -> Message:
        """`message`, and of several the names of some files."""
        if len(self.findings) == 1 or not self.about:
            return self.message
        names = ", ".join(path.name for path in self.about[:most]) + (
            " ..." if len(self.about) > most else ""
        )
        return Message("{said} ({names})", {"said": self.message, "names": names})


def sums(findings: Iterable[Finding]) -> list[Sum]:
    """The findings, what is one thing together: the gravest first, then what is about most files;
    the order of first appearance stays.
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        own = "" if finding.kind in SUMS else str(finding.message)
        groups.setdefault((finding.severity, finding.kind, str(finding.hint), own), []).append(
            finding
        )
    return in_order(Sum(findings=tuple(group)) for group in groups.values())


def in_order(summed: Iterable[Sum]) -> list[Sum]:
    """Sums of several sources together, as `sums` orders them."""
    return sorted(summed, key=lambda one: (SEVERITIES.index(one.severity), -len(one.about)))


def error(
    kind: Kind, template: str, *, hint: str = "", path: Path | None = None, **values: Any
) -> Finding:
    """A finding that stops the run (see `Severity`). The template and the hint name their `values`
    in braces.
    """
    return Finding(
        kind=kind,
        severity="error",
        message=Message(template, values),
        hint=Message(hint, values if hint else {}),
        path=path,
    )


def warning(
    kind: Kind, template: str, *, hint: str = "", path: Path | None = None, **values: Any
) -> Finding:
    """A finding to be told, and no more."""
    return Finding(
        kind=kind,
        severity="warning",
        message=Message(template, values),
        hint=Message(hint, values if hint else {}),
        path=path,
    )


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
    """A DatasetError about one file as a finding that calls the file `name`. The error's template
    names it {path}.
    """
    message = Message(problem.message.template, {**problem.message.values, "path": name})
    return Finding(kind=kind, severity="error", message=message, hint=problem.hint, path=path)


def report(findings: Iterable[Finding], names_per_kind: int = NAMES_PER_KIND) -> str:
    """The findings as text, each thing once and the gravest first: its sentence, its hint, and of
    several at most `names_per_kind` lines.
    """
    return "\n".join(line for one in sums(findings) for line in _report_lines(one, names_per_kind))


_PLACE = re.compile(r"\{(\w+)\}")


def _report_lines(one: Sum, most: int) -> Iterable[str]:
    yield f"- {one.message}"
    if str(one.hint):
        yield f"  {one.hint}"
    if len(one.findings) < 2:
        return
    rest = len(one.findings) - most
    messages = [finding.message for finding in one.findings]
    if {message.template for message in messages} == {messages[0].template} and set(
        _PLACE.findall(messages[0].template)
    ) == {"name"}:
        # the sum says all but the names
        yield (
            "  "
            + ", ".join(str(finding.message.values["name"]) for finding in one.findings[:most])
            + (f" and {rest} more" if rest > 0 else "")
        )
        return
    yield from (f"  - {finding}" for finding in one.findings[:most])
    if rest > 0:
        yield f"  - and {rest} more like these"


def refuse(findings: Sequence[Finding], settings: DatasetSettings) -> None:
    """Stops the run if on_bad_data is stop and any finding is an error.

    Raises one DatasetError that lists all errors; its `message.values["findings"]` holds them.
    """
    errors = tuple(finding for finding in findings if finding.severity == "error")
    if errors and settings.on_bad_data == "stop":
        raise DatasetError(
            "the images and captions in {folder} need attention ({count} found):\n{report}",
            hint=(
                "Mend them, or set on_bad_data to skip: images like these are then left out, and"
                " captions that are too long are cut off."
            ),
            folder=settings.train_data_dir,
            count=len(errors),
            report=report(errors),
            findings=errors,
        )


def refuse_empty(findings: Sequence[Finding], settings: DatasetSettings) -> NoReturn:
    """For a dataset of which no image is left: raises a DatasetError that lists everything found,
    as `refuse` does.
    """
    raise DatasetError(
        "no image in {folder} can be used ({count} found):\n{report}",
        hint="Mend them and start again.",
        folder=settings.train_data_dir,
        count=len(findings),
        report=report(findings),
        findings=tuple(findings),
    )
