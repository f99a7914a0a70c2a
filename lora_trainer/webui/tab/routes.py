"""The data that the page loads first, translations, and the JavaScript modules for
javascript/lora_trainer.js.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypedDict, TypeVar

from starlette.responses import Response

from lora_trainer import __version__
from lora_trainer.errors import LoraTrainerError
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.common.form import FormView, form
from lora_trainer.webui.datasets.registry import Card
from lora_trainer.webui.http.routing import Request, route
from lora_trainer.webui.settings.checkpoints import ListedCheckpoint, LoadedView
from lora_trainer.webui.settings.presets import PresetView
from lora_trainer.webui.settings.setup import SetupView
from lora_trainer.webui.settings.user_presets import OwnPresetList
from lora_trainer.webui.tab import es_modules
from lora_trainer.webui.texts import Sentence

FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
"""For URLs that contain a hash of their content. Private: behind the WebUI's login."""


class ModulesError(TypedDict):
    message: str
    hint: str
    label: str


class ModulesView(TypedDict):
    """URLs below lora-trainer/, and the messages if they cannot be loaded."""

    start: str
    all: list[str]
    error: ModulesError


class Language(TypedDict):
    code: str
    name: str


class HostView(TypedDict):
    """The WebUI and its device. `remote`: reachable from other machines."""

    kind: str
    name: str
    version: str
    remote: bool
    device: str
    cpu: bool


class HomeView(TypedDict):
    """The data that the page loads first. A part that failed is None, with its error in
    `problems`.
    """

    version: str
    language: str
    languages: list[Language]
    host: HostView
    setup: SetupView | None
    checkpoints: list[ListedCheckpoint] | None
    presets: list[PresetView] | None
    own_presets: OwnPresetList | None
    preset: str
    loaded: LoadedView | None
    form: FormView | None
    datasets: list[Card] | None
    problems: dict[str, Sentence]


T = TypeVar("T")


@route("GET", "/texts/{language}")
def read_texts(app: App, request: Request) -> dict[str, str]:
    language = request.path["language"]
    if language not in texts.languages():
        raise NotFound("there is no language {language}", language=language[:20])
    return dict(texts.table(language))


@route("GET", "/home")
def home(app: App, request: Request) -> HomeView:
    with contextlib.suppress(LoraTrainerError):
        app.begin_late()
    device, language = app.host.device(), request.language
    problems: dict[str, Sentence] = {}

    def part(name: str, make: Callable[[str], T]) -> T | None:
        """One part; if it fails, the others are still sent."""
        try:
            return make(language)
        except LoraTrainerError as error:
            problems[name] = texts.render_error(error, language)
            return None

    return {
        "version": __version__,
        "language": language,
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
        "setup": part("setup", app.setup.view),
        "checkpoints": part("checkpoints", app.checkpoints.listing),
        "presets": part("presets", app.presets.listing),
        "own_presets": part("own_presets", app.user_presets.listing),
        "preset": app.options.preset,
        "loaded": part("loaded", app.checkpoints.loaded),
        "form": part("form", lambda language: form(language, device.count)),
        "datasets": part("datasets", app.datasets.listing),
        "problems": problems,
    }


# --- modules --------------------------------------------------------------------------------------


@route("GET", "/modules")
def modules(app: App, request: Request) -> ModulesView:
    served = es_modules.MODULES
    error = LoraTrainerError(
        "a part of LoRA Trainer could not be loaded",
        hint="Reload the page: the extension may have been updated.",
    )
    return {
        "start": served.address(es_modules.START),
        "all": [served.address(name) for name in served.texts],
        "error": {
            "message": texts.render(error.message, request.language),
            "hint": texts.render(error.hint, request.language),
            "label": texts.translate("Reload the page", request.language),
        },
    }


@route("GET", "/static/{version}/{feature}/{name}")
def module(app: App, request: Request) -> Response:
    text = es_modules.MODULES.find(
        request.path["version"], f"{request.path['feature']}/{request.path['name']}"
    )
    return Response(text, headers=FOR_EVER, media_type="text/javascript")
