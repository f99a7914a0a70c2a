"""The captioners offered in the tab, and caption runs.

    offers(...)                  every captioner with its settings, its download, and whether its
                                 weights are on this disk
    begin(runs, bench, ...)      creates and queues a caption run; the scheduler starts the worker
    expect_more(benches, run)    a caption run is about to be resumed

Images that were captioned with the same settings are skipped, so repeating a stopped run continues
it. Captions by a person are only replaced on request. Loads no model and downloads nothing. Called
by the routes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lora_trainer import environment, packages
from lora_trainer.captioning import captioners
from lora_trainer.captioning.captioner import CaptionerInfo
from lora_trainer.errors import ConfigError, Message
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import captioning, schema
from lora_trainer.settings.captioning import CaptionSettings
from lora_trainer.settings.schema import Settings, about
from lora_trainer.settings.training import FORBIDDEN_IN_NAMES
from lora_trainer.webui import texts
from lora_trainer.webui.captions.workbench import Workbench, Workbenches
from lora_trainer.webui.common import form
from lora_trainer.webui.common.form import SettingView
from lora_trainer.webui.common.safe_names import safe_name
from lora_trainer.webui.common.units import size_of
from lora_trainer.webui.datasets.caption_store import View
from lora_trainer.webui.http.routing import Forbidden
from lora_trainer.webui.training.run_view import RunView
from lora_trainer.webui.training.runs import Runs

_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.onnx",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, kw_only=True)
class CaptionRequest:
    """A request for a caption run."""

    captioner: str
    options: Mapping[str, Any]
    only_missing: bool
    overwrite: bool
    trigger: str
    only: tuple[str, ...] = ()
    """Names of the images to caption; empty: all."""


# --- what is offered ------------------------------------------------------------------------------


class CaptionerNeeds(TypedDict):
    sentence: str


class CaptionerView(TypedDict):
    name: str
    title: str
    sentence: str
    model: str
    download: int
    download_text: str
    memory_text: str
    licence: str
    on_disk: bool
    needs: CaptionerNeeds | None
    fields: list[SettingView]


def offers(
    host_models: Path,
    environ: Mapping[str, str],
    language: str,
    *,
    remote: bool = False,
    cards: int = 1,
) -> list[CaptionerView]:
    """GET /captioners. `environ`: the worker's environment variables; cards: number of this
    machine's graphics cards.
    """
    return [
        _offer(info, host_models, environ, language, remote, cards)
        for info in captioners.every().values()
    ]


def _offer(
    info: CaptionerInfo,
    host_models: Path,
    environ: Mapping[str, str],
    language: str,
    remote: bool,
    cards: int,
) -> CaptionerView:
    needed = packages.CAPTIONER_PACKAGES.get(info.needs, ()) if info.needs else ()
    missing = (
        needed[0]
        if needed and not any(environment.CAPTIONER_OVERLAYS[info.needs].glob("*/*/stamp.json"))
        else None
    )
    return {
        "name": info.name,
        "title": info.title,
        "sentence": texts.translate(info.sentence, language),
        "model": info.model,
        "download": info.download_bytes,
        "download_text": size_of(info.download_bytes),
        "memory_text": size_of(info.memory_bytes),
        "licence": info.licence,
        "on_disk": is_on_disk(info, host_models, environ),
        "needs": {"sentence": texts.render(_needs(missing), language)} if missing else None,
        "fields": [
            form.shown(group, item.name, language)
            for group, item in _fields_of(info)
            if not (remote and about(item).audience == "local") and form.is_for(item.name, cards)
        ],
    }


def _needs(package: packages.Package) -> Message:
    values = {"package": package.name, "megabytes": package.megabytes}
    return Message("Needs {package} ({megabytes} MB), which is downloaded on first use.", values)


def is_on_disk(info: CaptionerInfo, host_models: Path, environ: Mapping[str, str]) -> bool:
    """Whether its weights are in the hub's cache or among the host's models. A quick check; the
    worker checks thoroughly.
    """
    if info.host_file and (host_models / info.host_file).is_file():
        return True
    snapshots = hub_cache(environ) / ("models--" + info.model.replace("/", "--")) / "snapshots"
    return any((folder / name).is_file() for folder in snapshots.glob("*") for name in _WEIGHTS)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """huggingface_hub's cache folder:
    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = (
        Path(environ["HF_HOME"])
        if environ.get("HF_HOME")
        else Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    return home.expanduser() / "hub"


def _fields_of(info: CaptionerInfo) -> list[tuple[type[Settings], dataclasses.Field[Any]]]:
    """The settings shown for a captioner: those for everyone, then its own, then the common
    advanced ones.
    """

    def place(one: tuple[type[Settings], dataclasses.Field[Any]]) -> tuple[bool, bool, int]:
        group, item = one
        advanced, is_own = about(item).audience != "everyone", group is info.settings
        return advanced, is_own != advanced, about(item).order

    found = [
        (group, item)
        for group in (CaptionSettings, info.settings)
        for item in schema.fields_of(group)
        if about(item).audience != "elsewhere"
    ]
    return sorted(found, key=place)


# --- a run ----------------------------------------------------------------------------------------


def settings_of(
    request: CaptionRequest, folder: Path, view: View, host_models: Path, *, remote: bool
) -> CaptionSettings:
    """A request -> the run's settings. Raises ConfigError with all problems; Forbidden for a path
    from a remote user.
    """
    every = captioners.every()
    if request.captioner not in every:
        raise ConfigError(
            "there is no captioner {name}",
            hint="Use: {known}.",
            name=request.captioner,
            known=", ".join(every),
        )
    shown = {info.name: dict(_named_fields(info)) for info in every.values()}
    allowed = shown[request.captioner]
    foreign = [
        key for key in request.options if not any(key in fields for fields in shown.values())
    ]
    if foreign:
        raise ConfigError("{keys} cannot be changed here", keys=", ".join(foreign))
    options = {
        key: value
        for key, value in request.options.items()
        if key in allowed and value not in (None, "", [])
    }
    if remote and any(about(allowed[key]).audience == "local" for key in options):
        raise Forbidden(
            "this WebUI can be reached from other machines, so only the captioners in the list can"
            " be used, without files of your own",
            hint="Choose one of them, or start the WebUI with --enable-insecure-extension-access.",
        )
    return captioning.from_mapping(
        {
            **options,
            "captioner": request.captioner,
            "input": str(folder),
            "format": "txt" if keeps_texts(view) else "auto",
            "trigger": request.trigger,
            "only": request.only,
            "only_missing": request.only_missing,
            "overwrite": request.overwrite,
            "host_models": str(host_models),
        },
        source="the request",
    )


def _named_fields(info: CaptionerInfo) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    return ((item.name, item) for _, item in _fields_of(info))


def keeps_texts(view: View) -> bool:
    """Whether the dataset's captions are in text files, as dataset.edits decides for a new one."""
    sources = {item.source for item in view.items}
    if view.listing.metadata:
        return False
    return "text" in sources or any(
        view.listing.kohya_folder_of(item.path.parent) for item in view.items
    )


def begin(
    runs: Runs,
    bench: Workbench,
    settings: CaptionSettings,
    name: str,
    *,
    token: str,
    when: str,
    language: str,
) -> RunView:
    """A queued caption run, as in /runs. Each token creates one run. Raises RunError."""
    folder_name = safe_name(f"captions-{name}", forbidden=FORBIDDEN_IN_NAMES)
    with runs.click(token, when) as click:
        if not click.run_id:
            folder = runs.make(folder_name, settings)
            # before it starts, so that its changes can be undone
            bench.expect(folder, _title(settings))
            click.run_id = folder.path.name
    return runs.one(click.run_id, language)


def expect_more(benches: Workbenches, folder: RunFolder) -> None:
    """Make undoable what a resumed caption run will write, if its images are a dataset of the tab.
    Raises ConfigError if its settings cannot be read.
    """
    settings = captioning.read(folder.caption_config)
    bench = benches.at(settings.input)
    if bench is not None:
        bench.expect(folder, _title(settings))


def _title(settings: CaptionSettings) -> Message:
    return Message("Captioned with {captioner}", {"captioner": settings.info.title})
