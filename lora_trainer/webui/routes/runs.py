"""Runs: begin, watch, ask, order, delete. See webui/runs.py."""

from __future__ import annotations

from typing import Any

from starlette.responses import FileResponse, PlainTextResponse, Response

from lora_trainer.webui import again, file_manager
from lora_trainer.webui.http import Forbidden, Request, route
from lora_trainer.webui.present import RunView
from lora_trainer.webui.runs import LiveView, RunList
from lora_trainer.webui.studio import Studio


@route("POST", "/runs")
def create(studio: Studio, request: Request) -> RunView:
    return studio.runs.create(
        request.body,
        request.value("token", str),
        request.value("when", str, "now"),
        request.language,
    )


@route("GET", "/runs")
def listing(studio: Studio, request: Request) -> RunList:
    return studio.runs.listing(request.language)


@route("GET", "/pulse")
def pulse(studio: Studio, request: Request) -> dict[str, Any]:
    return studio.runs.pulse(request.language)


@route("GET", "/runs/{id}/live")
def live(studio: Studio, request: Request) -> LiveView:
    return studio.runs.live(
        request.path["id"],
        request.number("offset", 0),
        request.query.get("log") == "1",
        request.language,
    )


@route("POST", "/runs/{id}/ask")
def ask(studio: Studio, request: Request) -> RunView:
    return studio.runs.ask(request.path["id"], request.value("what", str), request.language)


@route("POST", "/runs/{id}/continue")
def go_on(studio: Studio, request: Request) -> RunView:
    return studio.runs.go_on(
        request.path["id"],
        request.value("changes", dict, {}),
        request.language,
        request.value("when", str, "now"),
    )


@route("POST", "/runs/{id}/delete")
def delete(studio: Studio, request: Request) -> dict[str, Any]:
    return studio.runs.delete(request.path["id"])


@route("POST", "/runs/{id}/move")
def move(studio: Studio, request: Request) -> RunList:
    return studio.runs.move(request.path["id"], request.value("position", int), request.language)


@route("POST", "/runs/{id}/unqueue")
def unqueue(studio: Studio, request: Request) -> RunView:
    return studio.runs.unqueue(request.path["id"], request.language)


@route("POST", "/runs/{id}/folder")
def show_folder(studio: Studio, request: Request) -> dict[str, Any]:
    request.require_local()
    file_manager.show(studio.runs.folder(request.path["id"]))
    return {}


@route("GET", "/runs/{id}/picture/{name}")
def picture(studio: Studio, request: Request) -> Response:
    # another picture has another address
    return FileResponse(
        studio.runs.picture(request.path["id"], request.path["name"]),
        headers={"Cache-Control": "private, max-age=604800"},
    )


@route("GET", "/runs/{id}/log")
def log(studio: Studio, request: Request) -> Response:
    return PlainTextResponse(
        studio.runs.log(request.path["id"]), headers={"Cache-Control": "no-store"}
    )


@route("GET", "/runs/{id}/config")
def settings(studio: Studio, request: Request) -> Response:
    return PlainTextResponse(
        studio.runs.settings(request.path["id"]), headers={"Cache-Control": "no-store"}
    )


@route("GET", "/runs/{id}/draft")
def draft(studio: Studio, request: Request) -> dict[str, Any]:
    return again.draft_of(studio, request.path["id"])


@route("GET", "/trash")
def trash_load(studio: Studio, request: Request) -> dict[str, Any]:
    return studio.runs.trash_load()


@route("POST", "/trash/empty")
def empty_trash(studio: Studio, request: Request) -> dict[str, Any]:
    # deleting is undone by anybody, this by nobody
    if request.remote:
        raise Forbidden(
            "this WebUI can be reached from other machines, so nothing is deleted for good from the"
            " browser",
            hint="Empty the folder trash of LoRA Trainer's data folder on the machine itself.",
        )
    return studio.runs.empty_trash()


@route("POST", "/trash/{id}/restore")
def restore(studio: Studio, request: Request) -> RunView:
    return studio.runs.restore(request.path["id"], request.language)
