"""Routes of the section that asks trained language models. See asks.py."""

from __future__ import annotations

from typing import TypedDict

from lora_trainer.webui.app import App
from lora_trainer.webui.asking.asks import AskView, TrainedModel
from lora_trainer.webui.http.routing import Request, route


class AskBody(TypedDict):
    """`step`: the saved step to ask; null: the newest."""

    question: str
    strength: float
    step: int | None
    token: str


class CopyOfLora(TypedDict):
    """Where a LoRA was copied to."""

    path: str


@route("GET", "/asks")
def listing(app: App, request: Request) -> list[TrainedModel]:
    return app.asking.listing(remote=request.remote)


@route("GET", "/asks/{id}/answers")
def view(app: App, request: Request) -> AskView:
    return app.asking.view(request.path["id"], request.language, remote=request.remote)


@route("POST", "/asks/{id}/ask", body=AskBody)
def ask(app: App, request: Request) -> AskView:
    app.asking.ask(
        request.path["id"],
        request.value("question", str),
        request.value("strength", float, 1.0),
        request.value("step", int, None),
        request.value("token", str),
    )
    return view(app, request)


@route("POST", "/asks/{id}/copy")
def copy(app: App, request: Request) -> CopyOfLora:
    request.require_local()
    made = app.asking.copy(
        request.path["id"], request.value("step", int, None), request.value("folder", str)
    )
    return {"path": str(made)}
