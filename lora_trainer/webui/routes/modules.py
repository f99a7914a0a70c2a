"""Where the tab's JavaScript modules are, and each of them. javascript/lora_trainer.js asks."""

from __future__ import annotations

from typing import TypedDict

from starlette.responses import Response

from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui import tab_modules, texts
from lora_trainer.webui.http import Request, route
from lora_trainer.webui.studio import Studio

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


@route("GET", "/modules")
def where(studio: Studio, request: Request) -> ModulesView:
    modules = tab_modules.MODULES
    trouble = LoraTrainerError(
        "a part of LoRA Trainer could not be loaded",
        hint="Reload the page: the extension may have been updated meanwhile.",
    )
    return {
        "start": modules.address(tab_modules.START),
        "all": [modules.address(name) for name in modules.texts],
        "trouble": {
            "message": texts.say(trouble.message, request.language),
            "hint": texts.say(trouble.hint, request.language),
            "label": texts.translate("Reload the page", request.language),
        },
    }


@route("GET", "/static/{version}/{feature}/{name}")
def module(studio: Studio, request: Request) -> Response:
    text = tab_modules.MODULES.find(
        request.path["version"], f"{request.path['feature']}/{request.path['name']}"
    )
    return Response(text, headers=FOR_EVER, media_type="text/javascript")
