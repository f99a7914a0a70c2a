"""Routes for settings: the plan, checkpoints, user presets, and the set-up of the worker's
packages.
"""

from __future__ import annotations

from typing import TypedDict

from lora_trainer.errors import CheckpointError, Message
from lora_trainer.webui import texts
from lora_trainer.webui.app import App
from lora_trainer.webui.http.routing import Request, route
from lora_trainer.webui.settings.checkpoints import (
    PRACTICE_TITLE,
    CheckpointFacts,
    CheckpointSummary,
    ListedCheckpoint,
    LoadedView,
    summarize,
)
from lora_trainer.webui.settings.preflight import PlanBody, PlanRequest, PlanView
from lora_trainer.webui.settings.setup import SetupView
from lora_trainer.webui.settings.user_presets import OwnPresetList, PresetBody, SavedPreset

PRACTICE_NOTE = Message(
    "It draws coloured shapes of 64 pixels and trains within minutes on any computer: for"
    " trying out this tab, not for images."
)


class CheckpointView(CheckpointSummary):
    """The chosen checkpoint, with the VAE and clip skip that the WebUI uses."""

    id: str | None
    title: str
    practice: bool
    vae: str | None
    clip_skip: int | None
    notes: list[str]


class CheckpointList(TypedDict):
    checkpoints: list[ListedCheckpoint]
    loaded: LoadedView | None


class OpenedModel(CheckpointList):
    """The list with the language model that was added, and its id."""

    id: str


@route("POST", "/plan", body=PlanBody)
def plan(app: App, request: Request) -> PlanView:
    report = app.preflight.check(PlanRequest.of(request.body), app.runs.pending_names())
    return report.to_json(request.language)


@route("POST", "/checkpoint")
def get_checkpoint(app: App, request: Request) -> CheckpointView:
    """Facts about a checkpoint, with a problem and a hint if it is unusable or missing: that is not
    an error of the request.
    """
    try:
        choice = app.checkpoints.find(request.value("id", str))
    except CheckpointError as error:
        return {
            "id": None,
            "title": "",
            "practice": False,
            "vae": None,
            "clip_skip": None,
            "notes": [],
            **summarize(CheckpointFacts.refused(error), request.language),
        }
    facts = app.checkpoints.facts(choice.path)
    return {
        "id": choice.id,
        "title": (
            texts.render(PRACTICE_TITLE, request.language) if choice.is_practice else choice.title
        ),
        "practice": choice.is_practice,
        "vae": choice.vae.name if choice.vae else None,
        "clip_skip": choice.clip_skip if facts.family and facts.family.has_clip_skip else None,
        "notes": [texts.render(PRACTICE_NOTE, request.language)] if choice.is_practice else [],
        **summarize(facts, request.language),
    }


@route("GET", "/checkpoints")
def list_checkpoints(app: App, request: Request) -> CheckpointList:
    """Polled while checkpoints are being read."""
    return {
        "checkpoints": app.checkpoints.listing(request.language),
        "loaded": app.checkpoints.loaded(request.language),
    }


@route("POST", "/checkpoints/open")
def open_language_model(app: App, request: Request) -> OpenedModel:
    """Add the folder of a language model. For local users only."""
    request.require_local()
    opened = app.checkpoints.open(request.value("folder", str))
    return {"id": opened, **list_checkpoints(app, request)}


@route("POST", "/presets", body=PresetBody)
def save_preset(app: App, request: Request) -> SavedPreset:
    """Save the settings as a user preset. Returns the new listing, with its id as `saved`."""
    own, replace = app.user_presets, request.value("replace", bool, False)
    saved = own.save(
        request.value("title", str),
        request.value("why", str, ""),
        request.value("values", dict),
        replace=replace,
    )
    return {**own.listing(request.language), "saved": saved}


@route("POST", "/presets/{name}/delete")
def delete_preset(app: App, request: Request) -> OwnPresetList:
    app.user_presets.delete(request.path["name"])
    return app.user_presets.listing(request.language)


@route("GET", "/setup")
def get_setup(app: App, request: Request) -> SetupView:
    """With ?report=1 the report too, which takes some seconds."""
    answer = app.setup.view(request.language)
    return (
        {**answer, "report": app.setup.report()} if request.query.get("report") == "1" else answer
    )


@route("POST", "/setup")
def begin_setup(app: App, request: Request) -> SetupView:
    app.setup.begin()
    return app.setup.view(request.language)
