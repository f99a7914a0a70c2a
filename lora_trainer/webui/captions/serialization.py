"""Converts the workbench's values to JSON, and requests to values, for the routes of datasets and
captions. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from lora_trainer.dataset.caption_provenance import Author
from lora_trainer.dataset.captions import variants
from lora_trainer.dataset.findings import Finding, Severity, Sum, sums
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.webui import texts
from lora_trainer.webui.captions.bench import Bench, Outcome
from lora_trainer.webui.captions.check import IdentifiedFinding, State, clusters
from lora_trainer.webui.captions.image_facts import ImageFacts
from lora_trainer.webui.captions.journal import EditSummary
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.form import Texts
from lora_trainer.webui.datasets import image_query, token_counts
from lora_trainer.webui.datasets.caption_store import Item, View, key_of
from lora_trainer.webui.http.routing import Request
from lora_trainer.webui.texts import Sentence

MOST_NAMED = 20
"""Grouped findings that are listed individually."""
KIND_LABELS: Texts = {
    "unreadable-folder": "Unreadable folder",
    "unreadable-metadata": "Unreadable metadata file",
    "unreadable-row": "Unreadable row",
    "row-without-file": "Row without an image",
    "ambiguous-row": "Row matches several images",
    "duplicate-row": "Several rows for one image",
    "other-suffix": "File extension differs in the row",
    "unreadable-caption": "Unreadable caption",
    "guessed-encoding": "Encoding guessed",
    "several-captions": "Captions of several lines",
    "other-table": "Table by another name",
    "unread-captions": "Captions that are not read",
    "escaped-brackets": "Escaped brackets",
    "foreign-syntax": "Syntax of another program",
    "prompt-syntax": "Syntax in a sample prompt",
    "no-caption": "No caption",
    "captions-differ": "Conflicting captions",
    "shared-caption": "Caption of two images",
    "folder-name-caption": "Caption from the folder's name",
    "trigger-word-caption": "Only the trigger word as caption",
    "long-caption": "Caption too long",
    "unreadable-image": "Unreadable image",
    "unsupported-format": "Unsupported format",
    "unconverted-image": "Not converted yet",
    "duplicate-image": "Duplicate image",
    "left-out": "Left out",
    "repeats": "Repeats",
    "small-image": "Too small",
    "cropped-image": "Cropped a lot",
    "blurred-image": "Blurred",
    "near-duplicate": "Near-duplicate image",
    "wide-border": "Wide border",
    "extreme-aspect": "Extreme aspect ratio",
    "lettering": "Watermark or lettering",
    "too-dark": "Too dark",
    "too-bright": "Too bright",
    "low-contrast": "Low contrast",
    "small-subject": "Small subject",
    "identical-captions": "Identical captions",
    "vocabulary": "Other words",
    "little-variety": "Little variety",
}
FIX_LABELS: Texts = {
    "crop": "Crop",
    "crop_subject": "Crop",
    "leave_out": "Leave out",
    "set_caption": "Use the preferred words",
    "unescape": "Remove the backslashes",
    "convert": "Convert",
}


class FilterBody(TypedDict, total=False):
    """Which images; conditions that are not given are not applied."""

    filter: str
    text: str
    lacks: str
    tag: str
    match: str
    without: str
    finding: str
    trigger: str
    tokens: int


class SelectBody(TypedDict, total=False):
    """Images by keys, or by a filter."""

    keys: list[str]
    where: FilterBody


class TokensView(TypedDict):
    """`kept_end`: index of the first truncated character."""

    count: int
    limit: int
    kept_end: int
    over: bool


class FixBase(TypedDict):
    do: str
    label: str


class FixView(FixBase, total=False):
    """The fix that a button applies. `box`: left, top, right, bottom in pixels."""

    box: list[int]


class FindingView(TypedDict):
    """A finding of one image."""

    id: str
    severity: Severity
    kind: str
    message: str
    hint: str
    measured: float | None
    fix: FixView | None
    related: list[str]


class RemarkView(TypedDict):
    """A finding of the dataset; `each`: its first few sentences."""

    severity: Severity
    kind: str
    message: str
    hint: str
    each: list[str]
    count: int
    fix: FixView | None


class ItemFacts(TypedDict):
    """Facts about an image besides its files. `captions`: their number, one per line."""

    tokens: TokensView
    captions: int
    reviewed: bool
    author: Author
    findings: list[FindingView]


class EditView(TypedDict):
    """An edit of captions or images."""

    id: int
    title: str
    count: int
    time: float
    undone: bool


class EditEnds(TypedDict):
    """The edits that undo and redo would apply."""

    undo: EditView | None
    redo: EditView | None


class ConflictView(TypedDict):
    """A caption that was not changed, because someone else had changed it."""

    key: str
    name: str
    current: str
    message: str


class OutcomeView(TypedDict):
    """The result of an edit."""

    title: str
    changed: int
    unchanged: int
    conflicts: list[ConflictView]
    edit: int | None
    edits: EditEnds
    revision: str


class FixAll(TypedDict):
    label: str
    count: int


class SumView(TypedDict):
    """A group of findings, with the fix for all of them."""

    kind: str
    label: str
    severity: Severity
    message: str
    hint: str
    images: int
    fix: FixAll | None


class Cluster(TypedDict):
    """Keys of near-duplicates."""

    keys: list[str]
    best: str


class CheckChoice(TypedDict):
    resolution: int
    trigger: str
    tokens: int


class CheckView(TypedDict):
    """The check of a dataset. `stale`: images were added, removed or changed since."""

    state: State
    done: int
    total: int
    stale: bool
    settings: CheckChoice
    error: Sentence | None
    checked: float | None
    sums: list[SumView]
    clusters: list[Cluster]
    revision: str


# --- from requests --------------------------------------------------------------------------------


def where_of(values: Mapping[str, Any]) -> image_query.ImageFilter:
    """Query parameters, or the `where` of a body. Values of a wrong type are ignored."""
    given = {
        key: values[key]
        for key in ("text", "lacks", "tag", "without", "finding", "trigger")
        if isinstance(values.get(key), str)
    }
    which = values.get("filter", "all")
    match: Literal["all", "any"] = "any" if values.get("match") == "any" else "all"
    return image_query.ImageFilter(
        which=cast(image_query.Which, which if isinstance(which, str) else "all"),
        match=match,
        **given,
    )


def page_query(query: Mapping[str, str], offset: int, limit: int) -> image_query.PageQuery:
    order = cast(image_query.Order, query.get("order", "name"))
    return image_query.PageQuery(
        **dataclasses.asdict(where_of(query)), offset=offset, limit=limit, order=order
    )


def chosen(bench: Workbench, request: Request) -> list[str]:
    """The keys of a request's `select`, in the page's order. Raises LoraTrainerError."""
    select = request.value("select", dict)
    if select.get("keys") is not None:
        return keys_of(select["keys"])
    where = select.get("where")
    if not isinstance(where, dict):
        raise LoraTrainerError("no image was chosen", hint="Choose some, or choose all.")
    view = bench.store.view()
    wanted = where_of(where)
    known = bench.known(view, wanted.trigger, token_counts.limit_of(where.get("tokens")))
    return [item.key for item in image_query.matching(view.items, wanted, known)]


def keys_of(keys: object) -> list[str]:
    """Image keys of a request. Raises LoraTrainerError."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise LoraTrainerError(
            "keys in the request have the wrong type",
            hint="Reload the page: it may be older than the extension.",
        )
    return keys


# --- as JSON --------------------------------------------------------------------------------------


def item_facts(root: Path, item: Item, known: ImageFacts, language: str) -> ItemFacts:
    """Facts about an image besides its files."""
    length = known.length(item)
    return {
        "tokens": {
            "count": known.tokens(item),
            "limit": length.limit,
            "kept_end": length.kept_end,
            "over": known.is_long(item),
        },
        "captions": len(variants(item.caption)) if item.caption else 0,
        "reviewed": known.reviewed(item),
        "author": known.author(item),
        "findings": [
            check_finding_json(root, item, identified, language)
            for identified in known.findings_of(item)
        ],
    }


def finding_json(finding: Finding, item: Item, language: str) -> FindingView:
    """A finding of the scan, for display beside its image."""
    return {
        "id": "",
        "severity": finding.severity,
        "kind": finding.kind,
        "message": texts.render_beside(finding.message, item.name, language),
        "hint": texts.render(finding.hint, language),
        "measured": None,
        "fix": None,
        "related": [],
    }


def sums_json(findings: Iterable[Finding], language: str) -> list[RemarkView]:
    """Grouped findings, with individual sentences if there are several."""
    return [
        {
            "severity": one.severity,
            "kind": one.kind,
            "message": texts.render(one.message, language),
            "hint": texts.render(one.hint, language),
            "each": (
                [texts.render(finding.message, language) for finding in one.findings[:MOST_NAMED]]
                if len(one.findings) > 1
                else []
            ),
            "count": len(one.findings),
            "fix": _fix(one.findings[0].fix, language),
        }
        for one in sums(findings)
    ]


def check_finding_json(
    root: Path, item: Item, identified: IdentifiedFinding, language: str
) -> FindingView:
    """A finding of the check."""
    finding = identified.finding
    return {
        **finding_json(finding, item, language),
        "id": identified.id,
        "measured": finding.measured,
        "fix": _fix(finding.fix, language),
        "related": [_key(root, path) for path in finding.related],
    }


def _fix(fix: Mapping[str, Any] | None, language: str) -> FixView | None:
    if not fix:
        return None
    view: FixView = {
        "do": fix["do"],
        "label": texts.translate(FIX_LABELS[fix["do"]], language),
    }
    return {**view, "box": list(fix["box"])} if "box" in fix else view


def _key(root: Path, path: Path) -> str:
    return key_of(path.relative_to(root).as_posix()) if path.is_relative_to(root) else ""


def edits_json(bench: Bench, language: str) -> EditEnds:
    """The edits that undo and redo would apply."""
    bench.settle()
    undo, redo = bench.journal.ends()
    return {
        "undo": line_json(undo, language) if undo else None,
        "redo": line_json(redo, language) if redo else None,
    }


def line_json(line: EditSummary, language: str) -> EditView:
    return {
        "id": line.id,
        "title": texts.render(line.title, language),
        "count": line.count,
        "time": line.time,
        "undone": line.undone,
    }


def outcome_json(bench: Bench, outcome: Outcome, language: str) -> OutcomeView:
    """The answer of every edit."""
    return {
        "title": texts.render(outcome.title, language),
        "changed": outcome.changed,
        "unchanged": outcome.unchanged,
        "conflicts": [
            {
                "key": conflict.key,
                "name": conflict.name,
                "current": conflict.current,
                "message": texts.render(conflict.message, language),
            }
            for conflict in outcome.conflicts
        ],
        "edit": outcome.edit,
        "edits": edits_json(bench, language),
        "revision": bench.current_revision(),
    }


def check_json(bench: Workbench, view: View, language: str) -> CheckView:
    """The check, as JSON."""
    status, findings = bench.checker.status(view), bench.checker.findings(view)
    return {
        "state": status.state,
        "done": status.done,
        "total": status.total,
        "stale": status.stale,
        "settings": {
            "resolution": status.settings.resolution,
            "trigger": status.settings.trigger,
            "tokens": status.settings.tokens,
        },
        "error": texts.render_error(status.error, language) if status.error else None,
        "checked": status.checked,
        "sums": [_sum_json(one, view, language) for one in findings.summed],
        "clusters": [
            {"keys": [_key(bench.root, path) for path in paths], "best": _key(bench.root, best)}
            for paths, best in clusters(findings, view)
        ],
        "revision": bench.revision(view),
    }


def _sum_json(one: Sum, view: View, language: str) -> SumView:
    """A group of findings, with the fix for all of them."""
    fixes = [finding.fix["do"] for finding in one.findings if finding.fix]
    # the scan's hint is for users of a text editor
    hint = (
        Message("Write them below, or let a captioner write a first draft.")
        if one.kind == "no-caption"
        else one.hint
    )
    return {
        "kind": one.kind,
        "label": texts.translate(KIND_LABELS[one.kind], language),
        "severity": one.severity,
        "message": texts.render(one.message, language),
        "hint": texts.render(hint, language),
        "images": sum(path in view.by_path for path in one.about),
        "fix": (
            {"label": texts.translate(FIX_LABELS[fixes[0]], language), "count": len(fixes)}
            if fixes
            else None
        ),
    }
