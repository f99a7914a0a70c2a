"""Routes of the workbench: bulk edits, undo, tags, template and vocabulary, tokens, check, crops,
captioners. See workbench.py.
"""

from __future__ import annotations

import itertools
import os
from random import Random
from typing import Any, Literal, TypedDict

from starlette.responses import Response

from lora_trainer.dataset import template
from lora_trainer.dataset.captions import (
    require_length,
    training_caption,
    variants,
    with_trigger_word,
)
from lora_trainer.dataset.template import FIELDS, VOCABULARY_FILE, Field, vocabulary_from
from lora_trainer.errors import DatasetError
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.captions import (
    bulk_edits,
    caption_export,
    caption_runs,
    cropped_copies,
    serialization,
    tag_counts,
)
from lora_trainer.webui.captions.caption_runs import CaptionerView, CaptionRequest
from lora_trainer.webui.captions.check import CheckSettings
from lora_trainer.webui.captions.cropped_copies import Copy
from lora_trainer.webui.captions.serialization import (
    CheckView,
    EditEnds,
    EditView,
    OutcomeView,
    SelectBody,
    TokensView,
)
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.form import Texts
from lora_trainer.webui.datasets import image_query, token_counts
from lora_trainer.webui.datasets.registry import Card
from lora_trainer.webui.http.routing import Conflict, Nothing, Request, route
from lora_trainer.webui.texts import Sentence
from lora_trainer.webui.training.run_view import RunView

SAMPLES = 60
DRAWS = 6
DEPARTURES = 200
MOST_TAGS = 2000
LISTED_EDITS = 100

FIELD_LABELS: Texts = {
    "subject": "Subject",
    "action": "Action",
    "features": "Clothing or features",
    "scene": "Scene",
    "style": "Style",
    "light": "Light",
    "colour": "Colour",
}
FIELD_EXAMPLES: Texts = {
    "subject": "a red fox",
    "action": "leaping over a log",
    "features": "thick winter fur",
    "scene": "in a birch forest",
    "style": "ink wash",
    "light": "soft morning light",
    "colour": "muted colours",
}


def _bench(app: App, request: Request) -> Workbench:
    return app.workbenches.of(request.path["id"])


# --- responses and request bodies -----------------------------------------------------------------


class BulkSample(TypedDict):
    key: str
    name: str
    before: str
    after: str


class BulkPlan(TypedDict):
    plan: str
    selected: int
    changing: int
    samples: list[BulkSample]


class BulkBody(TypedDict, total=False):
    """A plan that was shown, or an action on some images."""

    plan: str
    select: SelectBody
    action: dict[str, Any]


class TrainedSample(TypedDict):
    """A caption, and examples of what training reads of it in different steps."""

    key: str
    name: str
    caption: str
    trained: list[str]


class TrainedSamples(TypedDict):
    samples: list[TrainedSample]


class ShuffleBody(TypedDict, total=False):
    """Images, or a caption being typed, and the settings to try."""

    keys: list[str]
    caption: str
    trigger: str
    shuffle: bool
    keep_tokens: int
    dropout: float
    seed: int


class EditList(TypedDict):
    edits: EditEnds
    list: list[EditView]


class Reviewed(TypedDict):
    count: int
    edits: EditEnds
    revision: str


class TagCountView(TypedDict):
    tag: str
    count: int


class TagTableView(TypedDict):
    kind: tag_counts.Kind
    mostly: Literal["tags", "sentences"]
    images: int
    distinct: int
    tags: list[TagCountView]


class TemplateField(TypedDict):
    name: Field
    label: str
    example: str


class TemplateView(TypedDict):
    """The fields of a caption, in order."""

    order: list[Field]
    fields: list[TemplateField]


class SplitCaption(TypedDict):
    """Field -> text."""

    fields: dict[Field, str]


class ComposedCaption(TypedDict):
    caption: str


class DepartureView(TypedDict):
    key: str
    name: str
    caption: str
    fixed: str


class Departures(TypedDict):
    count: int
    list: list[DepartureView]


class VocabularyView(TypedDict):
    """Preferred words for each field, and for the start of captions."""

    opening: str
    fields: dict[str, list[str]]
    exists: bool
    departures: Departures


class CountedTokens(TokensView):
    """`available`: whether a tokenizer vocabulary is installed."""

    available: bool


class TokensBody(TypedDict):
    caption: str
    trigger: str
    limit: int


class TriggerRemark(TypedDict):
    """How the model tokenizes and knows a trigger word before training."""

    available: bool
    is_good: bool
    message: str
    hint: str


class CheckBody(TypedDict):
    resolution: int
    trigger: str
    tokens: int


class CopyView(TypedDict):
    """A cropping job and its progress."""

    id: str
    state: cropped_copies.State
    done: int
    total: int
    dataset: str | None
    card: Card | None
    notes: list[Sentence]
    error: Sentence | None


class CopyBody(TypedDict):
    select: SelectBody
    name: str
    size: int
    buckets: bool
    subject: bool


class CaptionRunBody(TypedDict):
    select: SelectBody
    captioner: str
    options: dict[str, Any]
    trigger: str
    only_missing: bool
    overwrite: bool
    token: str
    when: Literal["now", "queue"]


# --- bulk edits -----------------------------------------------------------------------------------


@route("POST", "/datasets/{id}/bulk/preview")
def preview(app: App, request: Request) -> BulkPlan:
    bench = _bench(app, request)
    plan = bench.preview(serialization.chosen(bench, request), request.value("action", dict))
    names = bench.store.view().by_key
    return {
        "plan": plan.id,
        "selected": plan.selected,
        "changing": len(plan.changes),
        "samples": [
            {
                "key": change.key,
                "name": names[change.key].name if change.key in names else "",
                "before": change.was,
                "after": change.caption,
            }
            for change in plan.changes[:SAMPLES]
        ],
    }


@route("POST", "/datasets/{id}/bulk", body=BulkBody)
def bulk(app: App, request: Request) -> OutcomeView:
    bench = _bench(app, request)
    identity = request.value("plan", str, None)
    plan = (
        bench.plan(identity)
        if identity
        else bench.preview(serialization.chosen(bench, request), request.value("action", dict))
    )
    if plan is None:
        raise Conflict("this preview is too old", hint="Preview the change again.")
    return serialization.outcome_json(bench, bench.apply(plan), request.language)


@route("POST", "/datasets/{id}/shuffle", body=ShuffleBody)
def shuffle(app: App, request: Request) -> TrainedSamples:
    items = _bench(app, request).store.view().by_key
    given = request.value("caption", str, None)
    captions = (
        [("", "", given)]
        if given is not None
        else [
            (key, items[key].name, items[key].caption)
            for key in request.value("keys", list, [])[:SAMPLES]
            if key in items
        ]
    )
    trigger, seed = request.value("trigger", str, ""), request.value("seed", int, 0)
    # 0 and false are values
    settings: dict[str, Any] = {
        "shuffle": request.value("shuffle", bool, True),
        "keep_tokens": max(0, request.value("keep_tokens", int, 0)),
        "dropout": min(1.0, max(0.0, request.value("dropout", float, 0.0))),
    }
    samples: list[TrainedSample] = []
    for key, name, caption in captions:
        whole = "\n".join(with_trigger_word(line, trigger) for line in variants(caption))
        random = Random(f"{seed} {key}")
        trained = [training_caption(whole, random=random, **settings) for _ in range(DRAWS)]
        samples.append({"key": key, "name": name, "caption": whole, "trained": trained})
    return {"samples": samples}


# --- undo -----------------------------------------------------------------------------------------


@route("GET", "/datasets/{id}/edits")
def edits(app: App, request: Request) -> EditList:
    bench = app.workbenches.any_of(request.path["id"])
    lines = itertools.islice(bench.journal.lines(), LISTED_EDITS)
    return {
        "edits": serialization.edits_json(bench, request.language),
        "list": [serialization.line_json(line, request.language) for line in lines],
    }


@route("POST", "/datasets/{id}/undo")
def undo(app: App, request: Request) -> OutcomeView:
    bench = app.workbenches.any_of(request.path["id"])
    return serialization.outcome_json(
        bench, bench.undo(request.value("id", int, None)), request.language
    )


@route("POST", "/datasets/{id}/redo")
def redo(app: App, request: Request) -> OutcomeView:
    bench = app.workbenches.any_of(request.path["id"])
    return serialization.outcome_json(
        bench, bench.redo(request.value("id", int, None)), request.language
    )


@route("POST", "/datasets/{id}/reviewed")
def reviewed(app: App, request: Request) -> Reviewed:
    bench = _bench(app, request)
    count = bench.mark(
        serialization.chosen(bench, request), reviewed=request.value("reviewed", bool)
    )
    return {
        "count": count,
        "edits": serialization.edits_json(bench, request.language),
        "revision": bench.revision(bench.store.view()),
    }


# --- tags, export ---------------------------------------------------------------------------------


@route("GET", "/datasets/{id}/tags")
def tags(app: App, request: Request) -> TagTableView:
    bench = _bench(app, request)
    view, where = bench.store.view(), serialization.where_of(request.query)
    known = bench.known(view, where.trigger, token_counts.limit_of(request.query.get("tokens")))
    captions = [item.caption for item in image_query.matching(view.items, where, known)]
    kind: tag_counts.Kind = "words" if request.query.get("kind") == "words" else "tags"
    most = min(MOST_TAGS, request.number("limit", 300))
    found = tag_counts.table(
        captions, kind, "name" if request.query.get("sort") == "name" else "count", most
    )
    return {
        "kind": found.kind,
        "mostly": tag_counts.mostly(captions),
        "images": found.captions,
        "distinct": found.distinct,
        "tags": [{"tag": tag.tag, "count": tag.count} for tag in found.tags],
    }


@route("GET", "/datasets/{id}/export")
def export(app: App, request: Request) -> Response:
    kind = request.query.get("as", "csv")
    content = caption_export.export(_bench(app, request).store.view().items, kind)
    name, media_type = caption_export.KINDS[kind]
    return Response(
        content,
        media_type=media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        },
    )


# --- template and vocabulary ----------------------------------------------------------------------


@route("GET", "/datasets/{id}/template")
def template_fields(app: App, request: Request) -> TemplateView:
    fields: list[TemplateField] = [
        {
            "name": name,
            "label": texts.translate(FIELD_LABELS[name], request.language),
            "example": FIELD_EXAMPLES[name],
        }
        for name in FIELDS
    ]
    return {"order": list(_bench(app, request).template_order()), "fields": fields}


@route("POST", "/datasets/{id}/template")
def set_template(app: App, request: Request) -> TemplateView:
    _bench(app, request).set_template_order(request.value("order", list))
    return template_fields(app, request)


@route("POST", "/datasets/{id}/split")
def split(app: App, request: Request) -> SplitCaption:
    return {
        "fields": template.split(request.value("caption", str), _bench(app, request).vocabulary())
    }


@route("POST", "/datasets/{id}/compose")
def compose(app: App, request: Request) -> ComposedCaption:
    order = _bench(app, request).template_order()
    return {"caption": template.compose(bulk_edits.fields_of(request.value("fields", dict)), order)}


@route("GET", "/datasets/{id}/vocabulary")
def vocabulary(app: App, request: Request) -> VocabularyView:
    bench = _bench(app, request)
    found = template.read_vocabulary(bench.root)
    if found is None:
        return {
            "opening": "",
            "fields": {},
            "exists": False,
            "departures": {"count": 0, "list": []},
        }
    view = bench.store.view()
    captions = {item.name: item.caption for item in view.items}
    by_name = {item.name: item.key for item in view.items}
    departures = template.departures(captions, found, request.query.get("trigger", ""))
    listed: list[DepartureView] = [
        {
            "key": by_name[each.name],
            "name": each.name,
            "caption": each.caption,
            "fixed": each.fixed,
        }
        for each in departures[:DEPARTURES]
    ]
    return {
        "opening": found.opening,
        "fields": {name: list(words) for name, words in found.fields.items()},
        "exists": True,
        "departures": {"count": len(departures), "list": listed},
    }


@route("POST", "/datasets/{id}/vocabulary")
def set_vocabulary(app: App, request: Request) -> VocabularyView:
    bench = _bench(app, request)
    values = {
        "opening": request.value("opening", str, ""),
        "fields": request.value("fields", dict, {}),
    }
    bench.set_vocabulary(vocabulary_from(values, bench.root / VOCABULARY_FILE))
    return vocabulary(app, request)


# --- tokens ---------------------------------------------------------------------------------------


@route("POST", "/tokens", body=TokensBody)
def count_tokens(app: App, request: Request) -> CountedTokens:
    limit = token_counts.limit_of(request.value("limit", int, 75))
    caption = request.value("caption", str)
    require_length(caption, "the caption")
    length = token_counts.length(caption, request.value("trigger", str, ""), limit)
    return {
        "available": token_counts.available(),
        "count": length.count,
        "limit": length.limit,
        "kept_end": length.kept_end,
        "over": length.over,
    }


@route("GET", "/trigger")
def trigger(app: App, request: Request) -> TriggerRemark:
    word = request.query.get("word", "")[:200]
    found = token_counts.check_trigger_word(word) if word.strip() else None
    if found is None:
        return {"available": False, "is_good": True, "message": "", "hint": ""}
    message = texts.render(found.message, request.language)
    hint = texts.render(found.hint, request.language)
    return {"available": True, "is_good": found.is_good, "message": message, "hint": hint}


# --- the check ------------------------------------------------------------------------------------


@route("POST", "/datasets/{id}/check", body=CheckBody)
def start_check(app: App, request: Request) -> CheckView:
    bench = _bench(app, request)
    resolution = request.value("resolution", int, 512)
    if not 64 <= resolution <= 4096:
        hint = "Use {low} to {high}; 512, 768 and 1024 are usual."
        raise DatasetError(
            "{size} is not a valid image size", hint=hint, size=resolution, low=64, high=4096
        )
    limit = token_counts.limit_of(request.value("tokens", int, 75))
    bench.checker.start(
        CheckSettings(
            resolution=resolution, trigger=request.value("trigger", str, "").strip(), tokens=limit
        )
    )
    return serialization.check_json(bench, bench.store.view(), request.language)


@route("GET", "/datasets/{id}/check")
def read_check(app: App, request: Request) -> CheckView:
    bench = _bench(app, request)
    view = bench.store.view()
    bench.checker.keep_up(view)
    return serialization.check_json(bench, view, request.language)


@route("POST", "/datasets/{id}/check/stop")
def stop_check(app: App, request: Request) -> CheckView:
    bench = _bench(app, request)
    bench.checker.stop()
    return serialization.check_json(bench, bench.store.view(), request.language)


@route("POST", "/datasets/{id}/fix")
def fix(app: App, request: Request) -> OutcomeView:
    bench = _bench(app, request)
    found = bench.checker.findings(bench.store.view())
    kind = request.value("kind", str, None)
    if kind is not None:
        identified = [
            each for each in found.everything if each.finding.kind == kind and each.finding.fix
        ]
    else:
        identified = [
            found.by_id[identity]
            for identity in request.value("ids", list)
            if identity in found.by_id
        ]
    if not identified:
        raise DatasetError(
            "there is nothing left to fix here", hint="It may have been fixed in another window."
        )
    return serialization.outcome_json(bench, bench.fix(identified), request.language)


@route("POST", "/datasets/{id}/convert")
def convert(app: App, request: Request) -> OutcomeView:
    bench = _bench(app, request)
    return serialization.outcome_json(bench, bench.convert(), request.language)


# --- crops into a copy ----------------------------------------------------------------------------


@route("POST", "/datasets/{id}/crop-copy", body=CopyBody)
def crop_copy(app: App, request: Request) -> CopyView:
    bench = _bench(app, request)
    keys, items = serialization.chosen(bench, request), bench.store.view().by_key
    copy = app.copies.start(
        bench.root,
        request.value("name", str),
        [items[key].name for key in keys if key in items],
        size=request.value("size", int),
        buckets=request.value("buckets", bool, False),
        subject=request.value("subject", bool, False),
    )
    return _copy(app, copy, request.language)


@route("GET", "/crop-copies/{copy}")
def read_copy(app: App, request: Request) -> CopyView:
    return _copy(app, app.copies.find(request.path["copy"]), request.language)


@route("POST", "/crop-copies/{copy}/stop")
def stop_copy(app: App, request: Request) -> CopyView:
    copy = app.copies.find(request.path["copy"])
    copy.stop = True
    return _copy(app, copy, request.language)


def _copy(app: App, copy: Copy, language: str) -> CopyView:
    return {
        "id": copy.id,
        "state": copy.state,
        "done": copy.done,
        "total": copy.total,
        "dataset": copy.dataset,
        "card": (
            app.datasets.card(app.datasets.find(copy.dataset), language)
            if copy.dataset and copy.state != "running"
            else None
        ),
        "notes": [
            {
                "message": texts.render(note.message, language),
                "hint": texts.render(note.hint, language),
            }
            for note in copy.notes
        ],
        "error": texts.render_error(copy.error, language) if copy.error else None,
    }


# --- captioners -----------------------------------------------------------------------------------


@route("GET", "/captioners")
def captioners(app: App, request: Request) -> list[CaptionerView]:
    environ = {**os.environ, **app.options.environ}
    return caption_runs.offers(
        app.host.paths().models,
        environ,
        request.language,
        remote=request.remote,
        cards=app.host.device().count,
    )


@route("POST", "/datasets/{id}/caption-run", body=CaptionRunBody)
def caption_run(app: App, request: Request) -> RunView:
    dataset = app.datasets.find(request.path["id"])
    view = app.datasets.store(dataset.id).view()
    if not view.items:
        raise DatasetError("there is no image to caption", hint="Add images first.")
    bench = _bench(app, request)
    only: tuple[str, ...] = ()
    if request.value("select", dict, {}) not in ({}, {"where": {}}):
        only = tuple(
            view.by_key[key].name
            for key in serialization.chosen(bench, request)
            if key in view.by_key
        )
        if not only:
            raise DatasetError("no image was chosen", hint="Choose some, or choose all.")
    caption_request = CaptionRequest(
        captioner=request.value("captioner", str),
        options=request.value("options", dict, {}),
        trigger=request.value("trigger", str, ""),
        only_missing=request.value("only_missing", bool, False),
        overwrite=request.value("overwrite", bool, False),
        only=only,
    )
    settings = caption_runs.settings_of(
        caption_request, dataset.path, view, app.host.paths().models, remote=request.remote
    )
    when = request.value("when", str, "now")
    return caption_runs.begin(
        app.runs,
        bench,
        settings,
        dataset.name,
        token=request.value("token", str),
        when=when,
        language=request.language,
    )


@route("GET", "/datasets/{id}/caption-run")
def newest_caption_run(app: App, request: Request) -> RunView | Nothing:
    identity = app.runs.newest_captioning(app.datasets.find(request.path["id"]).path)
    return app.runs.one(identity, request.language) if identity else {}
