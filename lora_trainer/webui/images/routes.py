"""Routes for datasets: list, uploads, images, captions, trash."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, TypedDict
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from lora_trainer.dataset.encoded_files import delete_encoded, encoded_size
from lora_trainer.dataset.findings import from_error
from lora_trainer.dataset.images import image_size
from lora_trainer.dataset.sources import CaptionSource
from lora_trainer.errors import DatasetError, Message
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.captions import serialization
from lora_trainer.webui.captions.image_facts import ImageFacts
from lora_trainer.webui.captions.serialization import EditEnds, ItemFacts, OutcomeView, RemarkView
from lora_trainer.webui.common import file_manager
from lora_trainer.webui.datasets import image_query, token_counts
from lora_trainer.webui.datasets.caption_store import CaptionStore, Item, View
from lora_trainer.webui.datasets.registry import Card, DataKind, thumbnail_address
from lora_trainer.webui.datasets.settings_draft import DraftView
from lora_trainer.webui.datasets.text_store import TextStore
from lora_trainer.webui.datasets.thumbnails import LARGE_SIDE
from lora_trainer.webui.http.routing import Conflict, Nothing, Request, Trashed, route
from lora_trainer.webui.images import text_uploads, uploads
from lora_trainer.webui.images.uploads import Accepted

_SHOWN_BY_BROWSERS = {
    ".png": "image/png",
    ".apng": "image/apng",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
}
_MOST_AT_ONCE = 500
_FOR_GOOD = "private, max-age=31536000, immutable"


class DeletedDataset(TypedDict):
    id: str
    name: str
    time: float


class EncodedSize(TypedDict):
    """Bytes of the encoded images and captions that are kept for the next training."""

    size: int


class AddedImage(TypedDict):
    key: str
    name: str
    width: int
    height: int


class SkippedFile(TypedDict):
    """`kept_caption`: skipped because the image already has a caption."""

    name: str
    message: str
    hint: str
    kept_caption: bool


class AcceptedView(TypedDict):
    """The result of an upload. Format -> count, for images that the WebUI cannot decode."""

    added: list[AddedImage]
    converted: dict[str, int]
    waiting: dict[str, int]
    captions: int
    texts: int
    skipped: list[SkippedFile]


class Addresses(TypedDict):
    """URLs of an image, thumbnail and original."""

    thumbnail: str
    image: str


class ItemView(ItemFacts, Addresses):
    """An image with its caption and facts about both."""

    key: str
    name: str
    width: int
    height: int
    caption: str
    source: CaptionSource | None
    caption_file: str | None
    changed: float


class SavedItem(ItemView):
    """An image whose caption was saved."""

    edits: EditEnds
    revision: str


class ItemsView(TypedDict):
    """A page of images. `counts`: filter -> number of matches."""

    total: int
    matching: int
    captioned: int
    counts: dict[str, int]
    revision: str
    removed: int
    edits: EditEnds
    findings: list[RemarkView]
    items: list[ItemView]


class Unchanged(TypedDict):
    """The page is unchanged."""

    unchanged: Literal[True]
    revision: str


class Counts(TypedDict):
    """Number of images, and of those with a caption."""

    total: int
    captioned: int


class CountedOutcome(OutcomeView, Counts):
    """The result of removing or restoring images."""


class RemovedImage(TypedDict):
    key: str
    name: str
    caption: str
    time: float


class CaptionBody(TypedDict):
    key: str
    caption: str
    was: str
    trigger: str
    tokens: int


@route("GET", "/datasets")
def list_datasets(app: App, request: Request) -> list[Card]:
    return app.datasets.listing(request.language)


@route("POST", "/datasets")
def create(app: App, request: Request) -> Card:
    kind: DataKind = "texts" if request.value("kind", str, "images") == "texts" else "images"
    created = app.datasets.create(request.value("name", str), kind)
    return app.datasets.card(created, request.language)


@route("POST", "/datasets/open")
def open_folder(app: App, request: Request) -> Card:
    request.require_local()
    return app.datasets.card(app.datasets.open(request.value("folder", str)), request.language)


@route("POST", "/datasets/{id}/rename")
def rename(app: App, request: Request) -> Card:
    return app.datasets.card(
        app.datasets.rename(request.path["id"], request.value("name", str)), request.language
    )


@route("POST", "/datasets/{id}/delete")
def delete(app: App, request: Request) -> Trashed:
    return {"trash": app.datasets.delete(request.path["id"])}


@route("GET", "/deleted-datasets")
def deleted(app: App, request: Request) -> list[DeletedDataset]:
    return [
        {"id": found.id, "name": found.title or found.name, "time": found.time}
        for found in app.datasets.deleted()
    ]


@route("POST", "/deleted-datasets/{id}/restore")
def restore_dataset(app: App, request: Request) -> Card:
    return app.datasets.card(app.datasets.restore(request.path["id"]), request.language)


@route("POST", "/datasets/{id}/folder")
def show_folder(app: App, request: Request) -> Nothing:
    request.require_local()
    file_manager.show(app.datasets.find(request.path["id"]).path)
    return {}


@route("GET", "/datasets/{id}/encoded")
def read_encoded(app: App, request: Request) -> EncodedSize:
    return {"size": encoded_size(app.datasets.find(request.path["id"]).path)}


@route("POST", "/datasets/{id}/delete-encoded")
def remove_encoded(app: App, request: Request) -> EncodedSize:
    return {"size": delete_encoded(app.datasets.find(request.path["id"]).path)}


@route("GET", "/datasets/{id}/draft")
def read_draft(app: App, request: Request) -> DraftView:
    return app.datasets.draft(request.path["id"]).to_json()


@route("POST", "/datasets/{id}/draft")
def write_draft(app: App, request: Request) -> DraftView:
    return app.datasets.set_draft(
        request.path["id"], request.value("values", dict), request.value("revision", str)
    ).to_json()


# --- images ---------------------------------------------------------------------------------------


@route("POST", "/datasets/{id}/upload", upload=True)
async def upload(app: App, request: Request) -> AcceptedView:
    store = await run_in_threadpool(_store_of_any, app, request)
    name = request.query.get("name", "")
    incoming = await uploads.receive(request.stream(), store, name, request.number("size", None))
    accepted = await run_in_threadpool(_take, app, request, incoming, name)
    return _accepted(accepted, request.language)


def _take(app: App, request: Request, incoming: Path, name: str) -> Accepted:
    """Add an upload to its dataset; changes of existing captions can be undone."""
    if app.datasets.find(request.path["id"]).kind == "texts":
        text_bench = app.text_benches.of(request.path["id"])
        accepted, added = text_uploads.accept(text_bench.store, incoming, name)
        for file in added:
            text_bench.record_new(file)
        return accepted
    bench = app.workbenches.of(request.path["id"])
    return uploads.accept(
        bench.store,
        incoming,
        name,
        replace_captions=request.query.get("captions") == "replace",
        converter=bench.converter,
        recording=partial(
            bench.recording,
            Message("Imported: {name}", {"name": name}),
            also_new=not uploads.is_one_caption(name),
        ),
    )


@route("GET", "/datasets/{id}/items")
def items(app: App, request: Request) -> ItemsView | Unchanged:
    store = app.datasets.store(request.path["id"])
    bench, view = app.workbenches.of(request.path["id"]), store.view()
    revision = bench.revision(view)
    if request.query.get("known") == revision:
        return {"unchanged": True, "revision": revision}
    query = serialization.page_query(
        request.query, request.number("offset", 0), min(request.number("limit", 60), _MOST_AT_ONCE)
    )
    known = bench.known(view, query.trigger, token_counts.limit_of(request.query.get("tokens")))
    page = image_query.page(view, query, known)
    return {
        "total": len(view.items),
        "matching": page.matching,
        "captioned": sum(bool(item.caption) for item in view.items),
        "counts": image_query.counts(view.items, query, known),
        "revision": revision,
        "removed": len(store.removed()),
        "edits": serialization.edits_json(bench, request.language),
        "findings": serialization.sums_json(view.findings, request.language),
        "items": [_item(request.path["id"], item, known, request.language) for item in page.items],
    }


@route("GET", "/datasets/{id}/thumbnail/{key}.webp")
def thumbnail(app: App, request: Request) -> Response:
    path, version = _store(app, request).image(request.path["key"])
    return _image(app.datasets.thumbnails.image(path), "image/webp", version, request)


@route("GET", "/datasets/{id}/image/{key}")
def image(app: App, request: Request) -> Response:
    path, version = _store(app, request).image(request.path["key"])
    kind = _SHOWN_BY_BROWSERS.get(path.suffix.lower())
    if kind is None:
        return _image(
            app.datasets.thumbnails.image(path, LARGE_SIDE), "image/webp", version, request
        )
    return _image(path, kind, version, request)


@route("POST", "/datasets/{id}/remove")
def remove(app: App, request: Request) -> CountedOutcome:
    bench = app.workbenches.of(request.path["id"])
    keys = (
        serialization.chosen(bench, request)
        if "select" in request.body
        else serialization.keys_of(request.value("keys", list))
    )
    return {
        **serialization.outcome_json(bench, bench.remove(keys), request.language),
        **_counts(bench.store.view()),
    }


@route("POST", "/datasets/{id}/restore")
def restore(app: App, request: Request) -> CountedOutcome:
    bench = app.workbenches.of(request.path["id"])
    keys = serialization.keys_of(request.value("keys", list))
    return {
        **serialization.outcome_json(bench, bench.restore(keys), request.language),
        **_counts(bench.store.view()),
    }


@route("GET", "/datasets/{id}/removed")
def list_removed(app: App, request: Request) -> list[RemovedImage]:
    removed = _store(app, request).removed()
    return [
        {"key": entry.key, "name": entry.name, "caption": entry.caption, "time": entry.time}
        for entry in removed
    ]


# --- captions -------------------------------------------------------------------------------------


@route("POST", "/datasets/{id}/caption", body=CaptionBody)
def write_caption(app: App, request: Request) -> SavedItem:
    bench, key = app.workbenches.of(request.path["id"]), request.value("key", str)
    outcome = bench.save(key, request.value("caption", str), request.value("was", str))
    view = bench.store.latest()
    item = view.item(key)
    if outcome.conflicts:
        raise Conflict(
            "someone else has changed the caption of {name}",
            hint="Choose which one to keep.",
            current=item.caption,
            name=item.name,
        )
    known = bench.known(
        view,
        request.value("trigger", str, ""),
        token_counts.limit_of(request.value("tokens", int, 75)),
    )
    answer = _item(request.path["id"], item, known, request.language)
    return {
        **answer,
        "edits": serialization.edits_json(bench, request.language),
        "revision": bench.revision(view),
    }


# --- as JSON --------------------------------------------------------------------------------------


def _store_of_any(app: App, request: Request) -> CaptionStore | TextStore:
    identity = request.path["id"]
    if app.datasets.find(identity).kind == "texts":
        return app.datasets.texts(identity)
    return app.datasets.store(identity)


def _store(app: App, request: Request) -> CaptionStore:
    return app.datasets.store(request.path["id"])


def _item(identity: str, item: Item, known: ImageFacts, language: str) -> ItemView:
    findings = list(item.findings)
    width = height = 0
    try:
        width, height = image_size(item.path)
    except DatasetError as problem:
        # the check may have reported it already
        if "unreadable-image" not in known.kinds(item):
            findings.append(from_error("unreadable-image", problem, item.path, item.name))
    facts = serialization.item_facts(known.store.path, item, known, language)
    return {
        "key": item.key,
        "name": item.name,
        "width": width,
        "height": height,
        "caption": item.caption,
        "source": item.source,
        "caption_file": item.caption_file,
        "changed": item.changed,
        **_addresses(identity, item.key, item.version),
        **facts,
        "findings": [
            *(serialization.finding_json(finding, item, language) for finding in findings),
            *facts["findings"],
        ],
    }


def _addresses(identity: str, key: str, version: str) -> Addresses:
    return {
        "thumbnail": thumbnail_address(identity, key, version),
        "image": f"lora-trainer/datasets/{quote(identity, safe='')}/image/{key}?v={version}",
    }


def _accepted(accepted: Accepted, language: str) -> AcceptedView:
    return {
        "added": [
            {"key": added.key, "name": added.name, "width": added.width, "height": added.height}
            for added in accepted.added
        ],
        "converted": accepted.converted,
        "waiting": accepted.waiting,
        "captions": accepted.captions,
        "texts": accepted.texts,
        "skipped": [
            {
                "name": skipped.name,
                "message": texts.render(skipped.message, language),
                "hint": texts.render(skipped.hint, language),
                "kept_caption": skipped.kept_caption,
            }
            for skipped in accepted.skipped
        ],
    }


def _counts(view: View) -> Counts:
    return {"total": len(view.items), "captioned": sum(bool(item.caption) for item in view.items)}


def _image(path: Path, kind: str, version: str, request: Request) -> Response:
    # the URL contains the version, so it can be cached forever
    keep = _FOR_GOOD if request.query.get("v") == version else "no-cache"
    return FileResponse(
        path, media_type=kind, headers={"Cache-Control": keep, "X-Content-Type-Options": "nosniff"}
    )
