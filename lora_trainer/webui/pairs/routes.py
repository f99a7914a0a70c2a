"""Routes of the workbench of texts: pages of pairs, changes, pairs from documents. Undo is shared
with captions. See workbench.py and pair_runs.py.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from lora_trainer.dataset.findings import Severity
from lora_trainer.language.text_files import Role
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.captions import serialization
from lora_trainer.webui.captions.serialization import EditEnds, OutcomeView, RemarkView
from lora_trainer.webui.common.form import Texts
from lora_trainer.webui.datasets.registry import Card
from lora_trainer.webui.datasets.text_store import TextItem, TextView
from lora_trainer.webui.http.routing import Nothing, Request, route
from lora_trainer.webui.pairs import pair_runs
from lora_trainer.webui.pairs.workbench import TextBench
from lora_trainer.webui.training.run_view import RunView

MOST_AT_ONCE = 200
ROLE_LABELS: Texts = {
    "system": "System prompt",
    "user": "Question",
    "context": "Context",
    "assistant": "Answer",
    "text": "Text",
}


class TextFieldView(TypedDict):
    role: Role
    label: str
    text: str


class RemarkOfText(TypedDict):
    severity: Severity
    message: str
    hint: str


class TextItemView(TypedDict):
    """An entry. Without `fields` it cannot be edited; `raw` is then its text in the file."""

    key: str
    name: str
    file: str
    fields: list[TextFieldView]
    raw: str
    findings: list[RemarkOfText]


class TextFileView(TypedDict):
    """A file. `count`: entries; `usable`: those that can be trained on; `plain`: whether it has
    plain texts, from which pairs can be made.
    """

    name: str
    count: int
    usable: int
    plain: bool


class TextsView(TypedDict):
    """A page of texts. Numbers of entries: `total`; `usable`, that can be trained on; `matching`
    the search; `found`, that have findings.
    """

    total: int
    usable: int
    matching: int
    found: int
    revision: str
    edits: EditEnds
    files: list[TextFileView]
    findings: list[RemarkView]
    items: list[TextItemView]


class TextsUnchanged(TypedDict):
    unchanged: Literal[True]
    revision: str


class SavedText(TypedDict):
    """An entry after a change."""

    item: TextItemView
    edits: EditEnds
    revision: str


class AddedText(SavedText):
    """A new entry, and the edit that added it."""

    edit: int


class TextBody(TypedDict):
    """`texts`: of all fields, in their order."""

    key: str
    texts: list[str]


class PairRunBody(TypedDict, total=False):
    """`model`: the id of a language model; or `url`, the address of a server on this machine, and
    the name of its `served` model.
    """

    model: str
    url: str
    served: str
    count: int
    token: str


class PairRun(TypedDict):
    """The job, and the new dataset that its pairs go into."""

    run: RunView
    card: Card


def _bench(app: App, request: Request) -> TextBench:
    return app.text_benches.of(request.path["id"])


@route("GET", "/datasets/{id}/texts")
def page(app: App, request: Request) -> TextsView | TextsUnchanged:
    bench = _bench(app, request)
    view = bench.store.view()
    if request.query.get("known") == view.revision:
        return {"unchanged": True, "revision": view.revision}
    found = [item for item in view.items if item.findings]
    items = _matching(found if request.query.get("filter") == "findings" else view.items, request)
    offset = request.number("offset", 0)
    limit = min(request.number("limit", 50), MOST_AT_ONCE)
    language = request.language
    return {
        "total": len(view.items),
        "usable": len(view.examples),
        "matching": len(items),
        "found": len(found),
        "revision": view.revision,
        "edits": serialization.edits_json(bench, language),
        "files": _files(view),
        "findings": serialization.sums_json(view.findings, language),
        "items": [_item(item, language) for item in items[offset : offset + limit]],
    }


@route("POST", "/datasets/{id}/text", body=TextBody)
def save(app: App, request: Request) -> SavedText:
    bench = _bench(app, request)
    values = request.value("texts", list)
    item = bench.save(request.value("key", str), [str(one) for one in values])
    return _saved(bench, item, request.language)


@route("POST", "/datasets/{id}/add-text")
def add(app: App, request: Request) -> AddedText:
    bench = _bench(app, request)
    item, edit = bench.add(request.value("question", str), request.value("answer", str))
    return {**_saved(bench, item, request.language), "edit": edit}


@route("POST", "/datasets/{id}/remove-texts")
def remove(app: App, request: Request) -> OutcomeView:
    bench = _bench(app, request)
    keys = serialization.keys_of(request.value("keys", list))
    return serialization.outcome_json(bench, bench.remove(keys), request.language)


@route("POST", "/datasets/{id}/remove-text-file")
def remove_file(app: App, request: Request) -> OutcomeView:
    bench = _bench(app, request)
    outcome = bench.remove_file(request.value("name", str))
    return serialization.outcome_json(bench, outcome, request.language)


@route("POST", "/datasets/{id}/pair-run", body=PairRunBody)
def make_pairs(app: App, request: Request) -> PairRun:
    dataset = app.datasets.find(request.path["id"])
    url = request.value("url", str, "").strip()
    if url:
        # the server may be one that only this machine can reach
        request.require_local()
    model = None if url else app.checkpoints.find(request.value("model", str)).path
    run, made = pair_runs.begin(
        app.runs,
        app.datasets,
        dataset,
        model=model,
        url=url,
        served=request.value("served", str, ""),
        count=request.value("count", int, pair_runs.USUAL_COUNT),
        token=request.value("token", str),
        language=request.language,
    )
    return {"run": run, "card": app.datasets.card(made, request.language)}


@route("GET", "/datasets/{id}/pair-run")
def newest_pair_run(app: App, request: Request) -> RunView | Nothing:
    """The job that writes, or wrote, the pairs of this dataset."""
    found = pair_runs.of_output(app.runs, app.datasets.find(request.path["id"]).path)
    return app.runs.one(found, request.language) if found else {}


# --- as JSON --------------------------------------------------------------------------------------


def _matching(items: Any, request: Request) -> list[TextItem]:
    words = request.query.get("text", "").casefold().split()
    return [
        item
        for item in items
        if all(word in f"{item.raw}\n{item.name}".casefold() or _says(item, word) for word in words)
    ]


def _says(item: TextItem, word: str) -> bool:
    """Whether a field contains the word, which may be escaped in the file."""
    return any(word in field.text.casefold() for field in item.fields)


def _files(view: TextView) -> list[TextFileView]:
    return [
        {
            "name": one.name,
            "count": len(one.examples),
            "usable": sum(example is not None for example in one.examples),
            "plain": any(example is not None and example.text for example in one.examples),
        }
        for one in view.files
    ]


def _item(item: TextItem, language: str) -> TextItemView:
    return {
        "key": item.key,
        "name": item.name,
        "file": item.file,
        "fields": [
            {
                "role": field.role,
                "label": texts.translate(ROLE_LABELS[field.role], language),
                "text": field.text,
            }
            for field in item.fields
        ],
        "raw": "" if item.fields else item.raw[:2000],
        "findings": [
            {
                "severity": finding.severity,
                "message": texts.render(finding.message, language),
                "hint": texts.render(finding.hint, language),
            }
            for finding in item.findings
        ],
    }


def _saved(bench: TextBench, item: TextItem, language: str) -> SavedText:
    return {
        "item": _item(item, language),
        "edits": serialization.edits_json(bench, language),
        "revision": bench.current_revision(),
    }
