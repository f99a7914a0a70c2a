"""Findings about a dataset, collected and reported together.

Checks add `Finding`s without raising; `refuse` then stops the run with all errors, unless
on_bad_data is skip. Used by the worker before training, the command line and the tab.
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
"""error: something cannot be used, and the run stops unless on_bad_data is skip. warning: worth
knowing. info: a hint, where the measurement may be intended.
"""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Most severe first."""

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
    "unreadable-text",
    "empty-text",
    "long-text",
    "duplicate-text",
    "contradicting-text",
]

NAMES_PER_KIND = 10
"""Names listed per kind; the rest is counted."""

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
    "long-caption": "{count} captions are longer than the token limit",
    "unreadable-row": "{count} rows cannot be read",
    "row-without-file": "{count} rows name an image that is not there",
    "ambiguous-row": "{count} rows match several images",
    "duplicate-row": "{count} images have several rows",
    "other-suffix": "{count} rows name another file type than the image has",
    "unreadable-folder": "{count} folders cannot be opened",
    "unreadable-image": "{count} images cannot be read",
    "unsupported-format": "{count} files are in a format that is not supported",
    "unconverted-image": "{count} images cannot be read directly, but can be converted",
    "duplicate-image": "{count} images are copies of others",
    "small-image": "{count} images are too small",
    "cropped-image": "{count} images lose much to cropping",
    "blurred-image": "{count} images are blurred",
    "near-duplicate": "{count} images are nearly the same as others",
    "wide-border": "{count} images have a wide border of one colour",
    "extreme-aspect": "{count} images are very long or tall",
    "lettering": "{count} images seem to have a watermark or text",
    "too-dark": "{count} images are very dark",
    "too-bright": "{count} images are very bright",
    "low-contrast": "{count} images have little contrast",
    "small-subject": "The subject is small in {count} images",
    "vocabulary": "{count} captions do not follow the vocabulary",
    "unreadable-text": "{count} texts cannot be used",
    "empty-text": "{count} texts are empty, or have an empty question or answer",
    "long-text": "{count} texts are longer than max_length",
    "duplicate-text": "{count} texts are copies of others",
    "contradicting-text": "{count} questions are asked twice with different answers",
}
"""Several findings of a kind in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem with a file, or with the whole dataset if `path` is None. The hint is the same for
    all findings of a kind, to be shown once.
    """

    kind: Kind
    severity: Severity
    message: Message
    hint: Message
    path: Path | None = None
    measured: float | None = None
    """The measured value, in the kind's unit (dataset.check)."""
    fix: Mapping[str, Any] | None = None
    """A fix that the tab can apply: {"do": "crop", "box": [left, top, right, bottom]}, {"do":
    "leave_out"} ... (dataset.check).
    """
    related: tuple[Path, ...] = ()
    """All files of a finding about several, such as a cluster of near-duplicates."""

    def __str__(self) -> str:
        return str(self.message)

    @property
    def about(self) -> tuple[Path, ...]:
        """The files that it is about."""
        return (self.path,) if self.path is not None else self.related

    @cached_property
    def group(self) -> tuple[str, ...]:
        """Equal for findings that are one thing (`Sum`)."""
        own = "" if self.kind in SUMS else str(self.message)
        return self.severity, self.kind, str(self.hint), own


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Findings of one kind and severity with the same hint; at least one."""

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
        """All files that they are about, without repetition."""
        return tuple(dict.fromkeys(path for finding in self.findings for path in finding.about))

    @property
    def message(self) -> Message:
        """The finding's message, or the number of findings."""
        if len(self.findings) == 1:
            return self.findings[0].message
        # findings about rows share one table; one finding may be about several images
        return Message(SUMS[self.kind], {"count": max(len(self.about), len(self.findings))})

    def named(self, most: int) -> Message:
        """`message`, with the names of some files if there are several."""
        if len(self.findings) == 1 or not self.about:
            return self.message
        names = ", ".join(path.name for path in self.about[:most])
        names += " ..." if len(self.about) > most else ""
        return Message("{message} ({names})", {"message": self.message, "names": names})


def sums(findings: Iterable[Finding]) -> list[Sum]:
    """The findings grouped by kind: most severe first, then those about most files; otherwise in
    order of appearance.
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.group, []).append(finding)
    return in_order(Sum(findings=tuple(group)) for group in groups.values())


def in_order(summed: Iterable[Sum]) -> list[Sum]:
    """Sums of several sources, sorted as by `sums`."""
    return sorted(summed, key=lambda one: (SEVERITIES.index(one.severity), -len(one.about)))


def warning(
    kind: Kind,
    template: str,
    *,
    hint: str = "",
    path: Path | None = None,
    measured: float | None = None,
    fix: Mapping[str, Any] | None = None,
    related: tuple[Path, ...] = (),
    **values: Any,
) -> Finding:
    """A finding that does not stop the run. Template and hint use `values`."""
    return Finding(
        kind=kind,
        severity="warning",
        message=Message(template, values),
        hint=Message(hint, values if hint else {}),
        path=path,
        measured=measured,
        fix=fix,
        related=related,
    )


def error(kind: Kind, template: str, **details: Any) -> Finding:
    """As `warning`, but it stops the run (see `Severity`)."""
    return dataclasses.replace(warning(kind, template, **details), severity="error")


def from_error(kind: Kind, problem: DatasetError, path: Path, name: str) -> Finding:
    """A DatasetError about a file as a finding that shows the file as `name`; the error's template
    has {path}.
    """
    message = Message(problem.message.template, {**problem.message.values, "path": name})
    return Finding(kind=kind, severity="error", message=message, hint=problem.hint, path=path)


def report(findings: Iterable[Finding], names_per_kind: int = NAMES_PER_KIND) -> str:
    """The findings as text, grouped, most severe first: message, hint, and at most `names_per_kind`
    files.
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
    templates = {message.template for message in messages}
    if len(templates) == 1 and set(_PLACE.findall(templates.pop())) == {"name"}:
        # the sum has everything but the names
        names = ", ".join(message.values["name"] for message in messages[:most])
        yield f"  {names}" + (f" and {rest} more" if rest > 0 else "")
        return
    yield from (f"  - {finding}" for finding in one.findings[:most])
    if rest > 0:
        yield f"  - and {rest} more like these"


def refuse(
    findings: Sequence[Finding],
    settings: DatasetSettings,
    template: str = "the images and captions in {folder} need attention ({count} found):\n{report}",
    hint: str = (
        "Fix them, or set on_bad_data to skip: images like these are then left out, and captions"
        " that are too long are cut off."
    ),
) -> None:
    """Raise a DatasetError that lists all errors, if on_bad_data is stop. Its
    `message.values["findings"]` has them.
    """
    errors = tuple(finding for finding in findings if finding.severity == "error")
    if errors and settings.on_bad_data == "stop":
        raise DatasetError(
            template,
            hint=hint,
            folder=settings.train_data_dir,
            count=len(errors),
            report=report(errors),
            findings=errors,
        )


def refuse_empty(findings: Sequence[Finding], settings: DatasetSettings) -> NoReturn:
    """Raise a DatasetError that lists all findings of a dataset without usable images."""
    raise DatasetError(
        "no image in {folder} can be used ({count} found):\n{report}",
        hint="Fix them and start again.",
        folder=settings.train_data_dir,
        count=len(findings),
        report=report(findings),
        findings=tuple(findings),
    )
