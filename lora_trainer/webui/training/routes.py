"""Routes for runs. See runs.py."""

from __future__ import annotations

from starlette.responses import FileResponse, PlainTextResponse, Response

from lora_trainer.webui.app import App
from lora_trainer.webui.common import file_manager
from lora_trainer.webui.http.routing import Forbidden, Nothing, Request, Trashed, route
from lora_trainer.webui.settings.preflight import PlanRequest, RunBody
from lora_trainer.webui.training import draft_from_run
from lora_trainer.webui.training.draft_from_run import RunDraft
from lora_trainer.webui.training.run_view import RunView
from lora_trainer.webui.training.runs import LiveView, Pulse, RunList, TrashLoad

REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


@route("POST", "/runs", body=RunBody)
def create(app: App, request: Request) -> RunView:
    token = request.value("token", str)
    if run_id := app.runs.started_by(token):
        # a repeated request gets the run of the first one, even if the settings have changed
        return app.runs.one(run_id, request.language)
    return app.runs.create(
        app.preflight.run_config(PlanRequest.of(request.body)),
        token,
        request.value("when", str, "now"),
        request.language,
    )


@route("GET", "/runs")
def listing(app: App, request: Request) -> RunList:
    return app.runs.listing(request.language)


@route("GET", "/pulse")
def pulse(app: App, request: Request) -> Pulse:
    return app.runs.pulse(request.language)


@route("GET", "/runs/{id}/live")
def live(app: App, request: Request) -> LiveView:
    return app.runs.live(
        request.path["id"],
        request.number("offset", 0),
        request.query.get("log") == "1",
        request.language,
    )


@route("POST", "/runs/{id}/ask")
def ask(app: App, request: Request) -> RunView:
    return app.runs.ask(request.path["id"], request.value("what", str), request.language)


@route("POST", "/runs/{id}/continue")
def go_on(app: App, request: Request) -> RunView:
    return app.runs.go_on(
        request.path["id"],
        request.value("changes", dict, {}),
        request.language,
        request.value("when", str, "now"),
    )


@route("POST", "/runs/{id}/delete")
def delete(app: App, request: Request) -> Trashed:
    return app.runs.delete(request.path["id"])


@route("POST", "/runs/{id}/move")
def move(app: App, request: Request) -> RunList:
    return app.runs.move(request.path["id"], request.value("position", int), request.language)


@route("POST", "/runs/{id}/unqueue")
def unqueue(app: App, request: Request) -> RunView:
    return app.runs.unqueue(request.path["id"], request.language)


@route("POST", "/runs/{id}/folder")
def show_folder(app: App, request: Request) -> Nothing:
    request.require_local()
    file_manager.show(app.runs.folder(request.path["id"]))
    return {}


@route("GET", "/runs/{id}/preview/{name}")
def preview(app: App, request: Request) -> Response:
    # the URL contains the version
    return FileResponse(
        app.runs.preview(request.path["id"], request.path["name"]),
        headers={"Cache-Control": "private, max-age=604800"},
    )


@route("GET", "/runs/{id}/report")
def report(app: App, request: Request) -> Response:
    # it contains untrusted names and captions: no scripts, no requests, no access to this origin
    return FileResponse(
        app.runs.report(request.path["id"]),
        media_type="text/html; charset=utf-8",
        headers={
            "Cache-Control": "no-cache",
            "Content-Security-Policy": REPORT_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        },
    )


@route("GET", "/runs/{id}/log")
def log(app: App, request: Request) -> PlainTextResponse:
    return PlainTextResponse(
        app.runs.log(request.path["id"]), headers={"Cache-Control": "no-store"}
    )


@route("GET", "/runs/{id}/config")
def settings(app: App, request: Request) -> PlainTextResponse:
    return PlainTextResponse(
        app.runs.settings(request.path["id"]), headers={"Cache-Control": "no-store"}
    )


@route("GET", "/runs/{id}/draft")
def draft(app: App, request: Request) -> RunDraft:
    on_processor = app.host.device().kind == "cpu"
    run = app.runs.entry(request.path["id"])
    return draft_from_run.draft_of(
        run, app.datasets, app.checkpoints, app.loras, on_processor=on_processor
    )


@route("GET", "/trash")
def trash_load(app: App, request: Request) -> TrashLoad:
    return app.runs.trash_load()


@route("POST", "/trash/empty")
def empty_trash(app: App, request: Request) -> TrashLoad:
    # deleting can be undone, this cannot: local users only
    if request.remote:
        raise Forbidden(
            "this WebUI can be reached from other machines, so nothing can be deleted permanently"
            " from the browser",
            hint="Empty the folder trash of LoRA Trainer's data folder on the machine itself.",
        )
    return app.runs.empty_trash()


@route("POST", "/trash/{id}/restore")
def restore(app: App, request: Request) -> RunView:
    return app.runs.restore(request.path["id"], request.language)
