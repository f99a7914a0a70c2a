"""What the tab needs when it opens, and the table of its language."""

from __future__ import annotations

import contextlib
from typing import Any

from lora_trainer import __version__
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui import texts
from lora_trainer.webui.data_folder import NotFound
from lora_trainer.webui.form import form
from lora_trainer.webui.http import Request, route
from lora_trainer.webui.studio import Studio


@route("GET", "/texts/{language}")
def read_texts(studio: Studio, request: Request) -> dict[str, str]:
    language = request.path["language"]
    if language not in texts.languages():
        raise NotFound("there is no language {language}", language=language[:20])
    return dict(texts.table(language))


@route("GET", "/home")
def home(studio: Studio, request: Request) -> dict[str, Any]:
    with contextlib.suppress(LoraTrainerError):
        studio.begin_late()
    device = studio.host.device()
    return {
        "version": __version__,
        "language": request.language,
        "languages": [
            {"code": code, "name": texts.NAMES.get(code, code)} for code in texts.languages()
        ],
        "host": {
            "kind": studio.host.kind,
            "name": studio.host.name,
            "version": studio.host.version,
            "remote": request.remote,
            "device": device.name,
            "cpu": device.kind == "cpu",
        },
        **part(request, "setup", lambda: studio.setup.look(request.language)),
        **part(request, "checkpoints", lambda: studio.checkpoints.listing(request.language)),
        **part(request, "presets", lambda: studio.presets.listing(request.language)),
        **part(request, "own_presets", lambda: studio.own_presets.listing(request.language)),
        "preset": studio.options.preset,
        **part(request, "loaded", lambda: studio.checkpoints.loaded(request.language)),
        **part(request, "form", lambda: form(request.language)),
        **part(request, "datasets", lambda: studio.datasets.listing(request.language)),
    }


def part(request: Request, key: str, make: Any) -> dict[str, Any]:
    """One part of the page; where it cannot be made, the reason in its place, so that the others
    still come.
    """
    try:
        return {key: make()}
    except LoraTrainerError as error:
        return {key: None, f"{key}_problem": texts.say_error(error, request.language)}
