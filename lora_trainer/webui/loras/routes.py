"""Routes for LoRA files: list, strengths, delivery. The strength panel of txt2img uses
`insertable`.
"""

from __future__ import annotations

from typing import TypedDict

from starlette.responses import FileResponse, Response

from lora_trainer.webui.app import App
from lora_trainer.webui.http.routing import Request, route
from lora_trainer.webui.lazy_app import PREFIX
from lora_trainer.webui.loras.library import Lora, LoraFileView, LoraView, to_mapping


class Insertable(TypedDict):
    """LoRAs of this trainer, and name -> preferred weight of every LoRA that has one."""

    loras: list[LoraView]
    weights: dict[str, float]


@route("GET", "/loras")
def list_loras(app: App, request: Request) -> list[LoraView]:
    return [_lora(lora) for lora in app.loras.listing()]


@route("GET", "/startable")
def startable(app: App, request: Request) -> list[LoraFileView]:
    return app.loras.startable()


@route("GET", "/loras/{id}/preview")
def lora_preview(app: App, request: Request) -> Response:
    return FileResponse(app.loras.preview(request.path["id"]))


@route("POST", "/loras/{id}/strength")
def set_strength(app: App, request: Request) -> LoraView:
    return _lora(app.loras.set_strength(request.path["id"], request.value("strength", float)))


@route("POST", "/loras/{id}/deliver")
def deliver(app: App, request: Request) -> LoraView:
    return _lora(app.loras.deliver(request.path["id"]))


@route("GET", "/insertable")
def insertable(app: App, request: Request) -> Insertable:
    ours, weights = app.loras.insertable()
    return {"loras": [_lora(lora) for lora in ours], "weights": weights}


def _lora(lora: Lora) -> LoraView:
    return to_mapping(lora, f"{PREFIX.lstrip('/')}/loras/{lora.id}/preview?v={int(lora.changed)}")
