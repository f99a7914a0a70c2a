"""Our LoRA files, and pictures that try them."""

from __future__ import annotations

from typing import Any

from starlette.responses import FileResponse, Response

from lora_trainer.errors import Message
from lora_trainer.webui import texts
from lora_trainer.webui.http import Request, route
from lora_trainer.webui.late import PREFIX
from lora_trainer.webui.loras import Lora, LoraView, to_mapping
from lora_trainer.webui.studio import Studio
from lora_trainer.webui.tries import Try, wanted_from

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


@route("GET", "/loras")
def list_loras(studio: Studio, request: Request) -> list[LoraView]:
    return [_lora(lora) for lora in studio.loras.listing()]


@route("GET", "/loras/{id}/picture")
def lora_picture(studio: Studio, request: Request) -> Response:
    return FileResponse(studio.loras.picture(request.path["id"]))


@route("POST", "/loras/{id}/strength")
def set_strength(studio: Studio, request: Request) -> LoraView:
    return _lora(studio.loras.set_strength(request.path["id"], request.value("strength", float)))


@route("POST", "/loras/{id}/deliver")
def deliver(studio: Studio, request: Request) -> LoraView:
    return _lora(studio.loras.deliver(request.path["id"]))


@route("GET", "/insertable")
def insertable(studio: Studio, request: Request) -> dict[str, Any]:
    ours, weights = studio.loras.insertable()
    return {"loras": [_lora(lora) for lora in ours], "weights": weights}


@route("GET", "/samplers")
def samplers(studio: Studio, request: Request) -> dict[str, Any]:
    return {"samplers": studio.host.samplers(), "schedulers": studio.host.schedulers()}


@route("GET", "/tries")
def list_tries(studio: Studio, request: Request) -> list[dict[str, Any]]:
    return [_try(job, request) for job in studio.tries.recent()]


@route("POST", "/tries")
def start_try(studio: Studio, request: Request) -> dict[str, Any]:
    return _try(studio.tries.submit(wanted_from(request.body)), request)


@route("GET", "/tries/{id}")
def look_at_try(studio: Studio, request: Request) -> dict[str, Any]:
    return _try(studio.tries.find(request.path["id"]), request)


@route("POST", "/tries/{id}/cancel")
def cancel_try(studio: Studio, request: Request) -> dict[str, Any]:
    return _try(studio.tries.cancel(request.path["id"]), request)


@route("POST", "/tries/{id}/delete")
def delete_try(studio: Studio, request: Request) -> dict[str, Any]:
    studio.tries.delete(request.path["id"])
    return {}


@route("POST", "/tries/{id}/restore")
def restore_try(studio: Studio, request: Request) -> dict[str, Any]:
    return _try(studio.tries.restore(request.path["id"]), request)


@route("GET", "/tries/{id}/picture/{name}")
def try_picture(studio: Studio, request: Request) -> Response:
    return FileResponse(
        studio.tries.file(request.path["id"], request.path["name"]), headers=FOREVER
    )


def _lora(lora: Lora) -> LoraView:
    return to_mapping(lora, f"{PREFIX.lstrip('/')}/loras/{lora.id}/picture?v={int(lora.changed)}")


def _try(job: Try, request: Request) -> dict[str, Any]:
    def say(message: Message) -> str:
        return texts.say(message, request.language)

    return job.to_mapping(say, lambda name: f"{PREFIX.lstrip('/')}/tries/{job.id}/picture/{name}")
