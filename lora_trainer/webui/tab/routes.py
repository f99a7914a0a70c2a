"""What the tab needs when it opens, the table of its language, and its JavaScript modules, which
javascript/lora_trainer.js asks for.
"""

from __future__ import annotations

import contextlib
from typing import Any, TypedDict

from starlette.responses import Response

from lora_trainer import __version__
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.common.form import form
from lora_trainer.webui.http.routing import Request, route
from lora_trainer.webui.tab import es_modules

FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Of an address that holds a hash of its content. Private: it lies behind the WebUI's login."""


class ModulesTrouble(TypedDict):
    message: str
    hint: str
    label: str


class ModulesView(TypedDict):
    """Addresses below lora-trainer/, and what to say where they cannot be loaded."""

    start: str
    all: list[str]
    trouble: ModulesTrouble


@route("GET", "/texts/{language}")
def read_texts(app: App, request: Request) -> dict[str, str]:
    language = request.path["language"]
    if language not in texts.languages():
        raise NotFound("there is no language {language}", language=language[:20])
    return dict(texts.table(language))


@route("GET", "/home")
def home(app: App, request: Request) -> dict[str, Any]:
    with contextlib.suppress(LoraTrainerError):
        app.begin_late()
    device = app.host.device()
    return {
        "version": __version__,
        "language": request.language,
        "languages": [
            {"code": code, "name": texts.NAMES.get(code, code)} for code in texts.languages()
        ],
        "host": {
            "kind": app.host.kind,
            "name": app.host.name,
            "version": app.host.version,
            "remote": request.remote,
            "device": device.name,
            "cpu": device.kind == "cpu",
        },
        **part(request, "setup", lambda: app.setup.look(request.language)),
        **part(request, "checkpoints", lambda: app.checkpoints.listing(request.language)),
        **part(request, "presets", lambda: app.presets.listing(request.language)),
        **part(request, "own_presets", lambda: app.user_presets.listing(request.language)),
        "preset": app.options.preset,
        **part(request, "loaded", lambda: app.checkpoints.loaded(request.language)),
        **part(request, "form", lambda: form(request.language)),
        **part(request, "datasets", lambda: app.datasets.listing(request.language)),
    }


def part(request: Request, key: str, make: Any) -> dict[str, Any]:
    """One part of the page; where it cannot be made, the reason in its place, so that the others
    still come.
    """
    try:
        return {key: make()}
    except LoraTrainerError as error:
        return {key: None, f"{key}_problem": texts.say_error(error, request.language)}


# --- modules --------------------------------------------------------------------------------------


@route("GET", "/modules")
def modules(app: App, request: Request) -> ModulesView:
    served = es_modules.MODULES
    trouble = LoraTrainerError(
        "a part of LoRA Trainer could not be loaded",
        hint="Reload the page: the extension may have been updated meanwhile.",
    )
    return {
        "start": served.address(es_modules.START),
        "all": [served.address(name) for name in served.texts],
        "trouble": {
            "message": texts.say(trouble.message, request.language),
            "hint": texts.say(trouble.hint, request.language),
            "label": texts.translate("Reload the page", request.language),
        },
    }


@route("GET", "/static/{version}/{feature}/{name}")
def module(app: App, request: Request) -> Response:
    text = es_modules.MODULES.find(
        request.path["version"], f"{request.path['feature']}/{request.path['name']}"
    )
    return Response(text, headers=FOR_EVER, media_type="text/javascript")
