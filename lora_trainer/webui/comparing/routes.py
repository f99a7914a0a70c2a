"""Routes for comparisons of LoRAs, and for checking why a LoRA has no effect."""

from __future__ import annotations

from typing import TypedDict

from starlette.responses import FileResponse, Response

from lora_trainer.errors import Message
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.comparing.comparisons import Comparison, TryBody, TryView, request_from
from lora_trainer.webui.http.routing import Nothing, Request, route
from lora_trainer.webui.lazy_app import PREFIX
from lora_trainer.webui.loras.certificates import CertificateView, Certified, KeptView
from lora_trainer.webui.loras.library import InspectableView

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


class Samplers(TypedDict):
    samplers: list[str]
    schedulers: list[str]


@route("GET", "/samplers")
def samplers(app: App, request: Request) -> Samplers:
    return {"samplers": app.host.samplers(), "schedulers": app.host.schedulers()}


@route("GET", "/tries")
def list_tries(app: App, request: Request) -> list[TryView]:
    return [_try(job, request) for job in app.comparisons.recent()]


@route("POST", "/tries", body=TryBody)
def start_try(app: App, request: Request) -> TryView:
    return _try(app.comparisons.submit(request_from(request.body)), request)


@route("GET", "/tries/{id}")
def get_try(app: App, request: Request) -> TryView:
    return _try(app.comparisons.find(request.path["id"]), request)


@route("POST", "/tries/{id}/cancel")
def cancel_try(app: App, request: Request) -> TryView:
    return _try(app.comparisons.cancel(request.path["id"]), request)


@route("POST", "/tries/{id}/delete")
def delete_try(app: App, request: Request) -> Nothing:
    app.comparisons.delete(request.path["id"])
    return {}


@route("POST", "/tries/{id}/restore")
def restore_try(app: App, request: Request) -> TryView:
    return _try(app.comparisons.restore(request.path["id"]), request)


@route("GET", "/tries/{id}/image/{name}")
def try_image(app: App, request: Request) -> Response:
    return FileResponse(
        app.comparisons.file(request.path["id"], request.path["name"]), headers=FOREVER
    )


@route("GET", "/inspectable")
def inspectable(app: App, request: Request) -> list[InspectableView]:
    return app.loras.inspectable()


@route("GET", "/inspectable/{id}/certificate")
def certificate(app: App, request: Request) -> CertificateView:
    return _certificate(app.loras.certificate(request.path["id"]), request)


@route("GET", "/inspectable/{id}/kept")
def kept(app: App, request: Request) -> KeptView:
    found = app.loras.kept(request.path["id"])
    return found.to_mapping(lambda message: texts.render(message, request.language))


@route("POST", "/inspectable/{id}/fix")
def fix(app: App, request: Request) -> CertificateView:
    return _certificate(app.loras.fix(request.path["id"]), request)


def _certificate(found: Certified, request: Request) -> CertificateView:
    return found.to_mapping(lambda message: texts.render(message, request.language))


def _try(job: Comparison, request: Request) -> TryView:
    def render(message: Message) -> str:
        return texts.render(message, request.language)

    return job.to_mapping(render, lambda name: f"{PREFIX.lstrip('/')}/tries/{job.id}/image/{name}")
