"""What every host has: facts, its model on the device, and pictures by its own pipeline.

    host.loaded(), host.checkpoints()               facts; reading them never loads a model
    host.release_model() ... host.restore_model()   the model leaves the device for a training run,
                                                    and comes back
    host.on_generation(before, after)               around everything the host does on its device
    host.generate(request) -> GeneratedImage        a picture by the host's own pipeline

Nothing of the host is imported before it is asked for. A fork that lacks an attribute gives None,
an empty list or a sentence, never a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from lora_trainer.errors import LoraTrainerError
from lora_trainer.hosts.addresses import host_of, is_loopback
from lora_trainer.hosts.queue_lock import QueueLock

log = logging.getLogger(__name__)
Result = TypeVar("Result")
HOST_NAMES = "lora_trainer_host_names"
"""The option in which people name the addresses of their proxies."""
TUNNEL_FLAGS = (
    "share",
    "listen",
    "ngrok",
    "cloudflared",
    "localhostrun",
    "remotemoe",
    "googleusercontent",
    "jprq",
    "bore",
    "tunnel",
    "subpath",
)
"""The hosts' flags, and those of extensions that open the WebUI to others. A path before ours
belongs to a proxy.
"""
TUNNEL_MODULES = ("ngrok", "pyngrok", "pycloudflared")
TUNNEL_VARIABLES = ("GRADIO_SHARE", "GRADIO_ROOT_PATH", "SPACE_ID")
WATCH_SECONDS = 0.2
"""How often a picture in the making is asked how far it is."""


class HostError(LoraTrainerError):
    """The WebUI cannot do what was asked of it."""


class GenerationRefused(HostError):
    """Raised inside the host's queue in place of a picture. The host shows the user `str(error)`
    and nothing else: `told` is message and hint, in the host's language.
    """

    def __init__(self, error: LoraTrainerError, told: str) -> None:
        super().__init__(
            error.message.template,
            hint=error.hint.template,
            **{**error.hint.values, **error.message.values},
        )
        self._told = told

    def __str__(self) -> str:
        return self._told


class GenerationCancelled(LoraTrainerError):
    """The picture was given up on request."""


@dataclass(frozen=True, kw_only=True)
class HostPaths:
    data: Path
    """--data-dir, or the WebUI's own folder."""
    models: Path
    lora_dir: Path
    """--lora-dir, or models/Lora."""


@dataclass(frozen=True, kw_only=True)
class HostCheckpoint:
    title: str
    """As the WebUI's menu shows it; it may gain a hash once the file has been hashed."""
    path: Path


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """What the next picture would be made with."""

    title: str
    path: Path
    vae: Path | None
    clip_skip: int
    in_memory: bool = True
    """False: it is what the menu says, and nothing, or another one, is loaded: hosts load it for
    the next picture.
    """


@dataclass(frozen=True, kw_only=True)
class HostDevice:
    kind: str
    """cuda, cpu, mps, xpu ..."""
    device_id: str | None
    """What --device-id names, for the worker's CUDA_VISIBLE_DEVICES."""
    name: str


@dataclass(frozen=True, kw_only=True)
class HostOption:
    """One option of ours on the host's Settings page: a text, a whole number, a yes or no by its
    default; or one of `choices`.
    """

    key: str
    label: str
    help: str
    default: str | int | bool
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of the device, in bytes."""

    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Txt2ImgRequest:
    """One picture to make. An empty sampler or scheduler is the host's default."""

    prompt: str
    negative: str = ""
    seed: int = 1
    steps: int = 20
    cfg: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = ""
    scheduler: str = ""


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One picture, made by the host."""

    image: Image.Image
    infotext: str
    """The host's generation parameters, as it writes them into a PNG."""
    comments: tuple[str, ...]
    """What the host remarked: a LoRA it did not find, keys it could not match."""
    matched_modules: dict[str, int] | None
    """LoRA name -> how many of its modules the model took, where the host can tell (A1111)."""


class Host:
    """A WebUI. Subclasses say how to tell it, and how its model leaves the device and returns."""

    kind = ""
    """Its id, for reports and the page; empty for classes that are no host by themselves."""
    name = ""

    @classmethod
    def is_here(cls) -> bool:
        """Whether this process is a WebUI of this kind, told by what can be imported."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._queue: QueueLock | None = None
        self._visited = False

    # --- facts ------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The host's version, as it names it; empty if it does not."""
        return _text(lambda: importlib.import_module("modules.launch_utils").git_tag())

    def paths(self) -> HostPaths:
        """Where the host keeps things. Raises HostError if it does not say."""
        internal = host_module("modules.paths_internal")
        data, models = getattr(internal, "data_path", None), getattr(internal, "models_path", None)
        if not data or not models:
            raise HostError(
                "the WebUI does not say where its models are",
                hint="Please report it with the WebUI's name and version.",
            )
        lora_dir = self._flag("lora_dir") or Path(models) / "Lora"
        return HostPaths(data=Path(data), models=Path(models), lora_dir=Path(lora_dir))

    def font(self) -> Path | None:
        """A font file that the host brings along, for labels on pictures."""
        path = getattr(host_module("modules.paths_internal"), "roboto_ttf_file", None)
        return Path(path) if path and Path(path).is_file() else None

    def data_folder(self) -> Path:
        """Where the extension keeps what people give it and make with it: the flag, else the
        setting, else lora-trainer in the host's data folder.
        """
        chosen = str(
            self._flag("lora_trainer_data_dir") or self.option("lora_trainer_data_folder", "") or ""
        ).strip()
        return Path(chosen).expanduser() if chosen else self.paths().data / "lora-trainer"

    def checkpoints(self) -> list[HostCheckpoint]:
        """What the host's menu of checkpoints lists."""
        listed = getattr(host_module("modules.sd_models"), "checkpoints_list", None) or {}
        found = [
            HostCheckpoint(title=str(info.title), path=Path(info.filename))
            for info in list(listed.values())
            if getattr(info, "filename", None)
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.title.casefold())

    def loaded(self) -> LoadedCheckpoint | None:
        """The checkpoint of the next picture; None if there is none. Never loads one."""
        info = self._checkpoint_info()
        if info is None or not getattr(info, "filename", None):
            return None
        return LoadedCheckpoint(
            title=str(getattr(info, "title", "")) or Path(info.filename).name,
            path=Path(info.filename),
            vae=self._vae(),
            clip_skip=_whole(self.option("CLIP_stop_at_last_layers", 1), 1),
            in_memory=getattr(getattr(self._model(), "sd_checkpoint_info", None), "filename", None)
            == info.filename,
        )

    def samplers(self) -> list[str]:
        """Names of samplers, in the host's order, without those the user has hidden."""
        module = host_module("modules.sd_samplers")
        names = getattr(module, "visible_sampler_names", None)
        if callable(names):
            with contextlib.suppress(Exception):
                return [str(name) for name in names()]
        return [str(sampler.name) for sampler in getattr(module, "samplers", None) or []]

    def schedulers(self) -> list[str]:
        """Labels of noise schedules; empty where they are part of the sampler's name
        (forge-classic).
        """
        listed = getattr(host_module("modules.sd_schedulers"), "schedulers", None) or []
        return [str(getattr(scheduler, "label", scheduler)) for scheduler in listed]

    def device(self) -> HostDevice:
        """Where the host computes."""
        devices = host_module("modules.devices")
        device = getattr(devices, "device", None)
        kind = str(getattr(device, "type", "") or device or "cpu").split(":")[0]
        name = _text(lambda: devices.torch.cuda.get_device_name(device)) if kind == "cuda" else kind
        chosen = self._flag("device_id")
        return HostDevice(
            kind=kind, device_id=None if chosen is None else str(chosen), name=name or kind
        )

    def memory(self) -> Memory | None:
        """Free and total memory of the device, all programs counted; None on a CPU or where it
        cannot be asked.
        """
        if self.device().kind != "cuda":
            return None
        try:
            # the host's own gauge: it knows which card is meant
            free, total = host_module("modules.shared").mem_mon.cuda_mem_get_info()
        except Exception:
            log.debug("memory cannot be asked", exc_info=True)
            return None
        return Memory(free=int(free), total=int(total))

    def is_remote(self) -> bool:
        """Whether people on other machines may be using the tab: they get no paths and open no
        folders.
        """
        if self._flag("enable_insecure_extension_access"):
            return False
        return (
            self._visited
            or self._has_tunnel()
            or not all(is_loopback(address) for address in self._bound_to())
        )

    def expect_visitors(self) -> None:
        """A request came from elsewhere, so that others may be coming."""
        self._visited = True

    def names(self) -> frozenset[str]:
        """Host names, in small letters, under which browsers may know this WebUI: the machine's, a
        share link's, and what the user named.
        """
        demo, machine = self._demo(), socket.gethostname()
        shared = urlsplit(str(getattr(demo, "share_url", None) or "")).netloc
        servers = (
            self._flag("server_name"),
            os.environ.get("GRADIO_SERVER_NAME"),
            getattr(demo, "server_name", None),
        )
        named = re.split(r"[\s,;]+", str(self.option(HOST_NAMES, "") or ""))
        known = (
            machine,
            f"{machine.partition('.')[0]}.local",
            shared,
            *(str(server or "") for server in servers),
        )
        # who pastes an address means its name
        wished = (
            name if name.startswith("*") else name.partition("://")[2] or name for name in named
        )
        return frozenset(
            name
            for name in (*map(host_of, known), *(host_of(name.split("/")[0]) for name in wished))
            if name
        )

    def _demo(self) -> Any:
        """gradio's Blocks; None before they are made, and without the WebUI's page (--nowebui)."""
        return getattr(host_module("modules.shared"), "demo", None)

    def _bound_to(self) -> list[str]:
        """What the running server listens on, as its sockets tell. Without a server that shows
        them: what it was told, or anywhere.
        """
        servers = getattr(getattr(self._demo(), "server", None), "servers", None) or []
        with contextlib.suppress(Exception):
            names = [bound.getsockname() for server in servers for bound in server.sockets or ()]
            if names:
                # a socket in the file system has a path: who listens there stands before a proxy
                return [str(name[0]) if isinstance(name, tuple) else "" for name in names]
        return [str(self._flag("server_name") or os.environ.get("GRADIO_SERVER_NAME") or "")]

    def _has_tunnel(self) -> bool:
        demo = self._demo()
        told = any(self._flag(flag) for flag in TUNNEL_FLAGS)
        shared = any(
            getattr(demo, name, None) for name in ("share", "share_url", "is_colab", "is_kaggle")
        )
        variables = any(
            os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")
            for name in TUNNEL_VARIABLES
        )
        return (
            told
            or shared
            or variables
            or any(name in sys.modules for name in TUNNEL_MODULES)
            or bool(self.option(HOST_NAMES, ""))
        )

    def option(self, key: str, default: Any = None) -> Any:
        """One of the user's settings."""
        options = getattr(host_module("modules.shared"), "opts", None)
        try:
            found = getattr(options, key, default)
        except Exception:
            return default
        return default if found is None else found

    def add_options(self, section: tuple[str, str], options: Sequence[HostOption]) -> None:
        """Put options of ours on the host's Settings page, as a section (id, title) of their own.
        For on_ui_settings.
        """
        shared = importlib.import_module("modules.shared")
        for option in options:
            component: Any = None
            arguments: dict[str, Any] | None = None
            if option.choices:
                component = importlib.import_module("gradio").Dropdown
                arguments = {"choices": list(option.choices)}
            elif isinstance(option.default, int) and not isinstance(option.default, bool):
                component, arguments = importlib.import_module("gradio").Number, {"precision": 0}
            made = shared.OptionInfo(
                option.default, option.label, component, arguments, section=section
            )
            if hasattr(made, "info"):
                made.info(option.help)
            shared.opts.add_option(option.key, made)

    def language(self) -> str:
        """The name of the chosen localization, such as zh_CN; empty for the WebUI's own English."""
        chosen = str(self.option("localization", "") or "")
        return "" if chosen == "None" else chosen

    def api_credentials(self) -> dict[str, str]:
        """User -> password of --api-auth."""
        pairs = (pair.partition(":") for pair in str(self._flag("api_auth") or "").split(","))
        return {user.strip(): password for user, colon, password in pairs if colon}

    # --- the device -------------------------------------------------------------------------------

    @property
    def queue(self) -> QueueLock:
        """The host's queue. Raises HostError if it has none that we know."""
        if self._queue is None:
            lock = getattr(host_module("modules.call_queue"), "queue_lock", None)
            if lock is None:
                raise HostError(
                    "this WebUI has no queue that the training could join",
                    hint="Please report it with the WebUI's name and version.",
                )
            self._queue = QueueLock(lock)
        return self._queue

    def our_turn(self, *, wait: bool = True) -> AbstractContextManager[bool]:
        """A turn of ours in the host's queue: True while nobody else has the device. With
        wait=False, False at once when somebody has it.
        """
        return self.queue.ours(wait=wait)

    def on_generation(
        self,
        before: Callable[[], object],
        after: Callable[[], object],
        *,
        tell: Callable[[LoraTrainerError], str] = str,
    ) -> bool:
        """Call `before` when the host is about to use its device (Generate, the API, an upscale,
        another checkpoint), `after` when it has.

        `before` may wait; a LoraTrainerError from it is shown to the user in place of the picture,
        as `tell` puts it.
        `after` comes however the turn ended. False if this host cannot be watched.
        """

        def guarded() -> None:
            try:
                before()
            except LoraTrainerError as error:
                self._forget_waiting_task()
                raise GenerationRefused(error, tell(error)) from error

        return self.queue.watch(guarded, after)

    def off_generation(self) -> None:
        """Undo on_generation, when the extension is unloaded."""
        if self._queue is not None:
            self._queue.unwatch()

    def is_generating(self) -> bool:
        """Whether the host is using its device now."""
        if self._queue is not None and self._queue.watched:
            return self._queue.guest_inside
        state = getattr(host_module("modules.shared"), "state", None)
        return bool(getattr(state, "job", "")) or _whole(getattr(state, "job_count", 0), 0) != 0

    def release_model(self) -> None:
        """Take the host's model off the device, in our turn of the queue. Nothing happens if it is
        not there.
        """
        try:
            with self.queue.ours():
                self._on_main_thread(self._release)
        except Exception as error:
            log.warning("the host's model could not be moved", exc_info=True)
            raise HostError(
                "the WebUI's model could not leave the graphics card: {reason}",
                hint="Unload it in the WebUI's settings (Actions), or restart the WebUI.",
                reason=_reason(error),
            ) from error

    def restore_model(self) -> None:
        """Put the model back, in our turn; hosts that load on demand do so at the next picture."""
        try:
            with self.queue.ours():
                self._on_main_thread(self._restore)
        except Exception as error:
            log.warning("the host's model could not be moved", exc_info=True)
            raise HostError(
                "the WebUI's model could not return to the graphics card: {reason}",
                hint="Choose the checkpoint again in the WebUI's menu, or restart the WebUI.",
                reason=_reason(error),
            ) from error

    def model_on_device(self) -> bool:
        """Whether the host's model takes memory on the device now."""
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _restore(self) -> None:
        """Nothing: this host loads on demand."""

    # --- pictures ---------------------------------------------------------------------------------

    def generate(
        self,
        request: Txt2ImgRequest,
        *,
        progress: Callable[[int, int], object] | None = None,
        stop_asked: Callable[[], bool] | None = None,
    ) -> GeneratedImage:
        """Make one picture as the host's txt2img would, LoRA tags of the prompt included. Nothing
        is saved in the host's folders.

        Waits in the host's queue like anyone. `progress` gets (step, steps) while it is made;
        `stop_asked` is asked meanwhile and leads to GenerationCancelled. Raises HostError with the
        host's reason when there is no picture.
        """
        stopped = stop_asked or (lambda: False)
        with self.queue.lock:
            if stopped():
                raise GenerationCancelled("the picture was cancelled")
            return self._on_main_thread(
                lambda: self._make(request, progress or (lambda step, steps: None), stopped)
            )

    def _make(
        self,
        request: Txt2ImgRequest,
        progress: Callable[[int, int], object],
        stopped: Callable[[], bool],
    ) -> GeneratedImage:
        state = getattr(host_module("modules.shared"), "state", None)
        if state is None:
            raise HostError("the WebUI is still starting", hint="Try again in a moment.")
        state.begin(job="LoRA Trainer")
        try:
            with _watching(state, progress, stopped) as was_stopped, self._listening() as heard:
                processed = self._process(request)
            if was_stopped():
                raise GenerationCancelled("the picture was cancelled")
            return self._made(processed, heard)
        finally:
            state.end()
            # what `wrap_gradio_call` does for the host's own buttons
            state.skipped = state.interrupted = False

    def _process(self, request: Txt2ImgRequest) -> Any:
        processing = importlib.import_module("modules.processing")
        kind = processing.StableDiffusionProcessingTxt2Img
        asked = {
            "prompt": request.prompt,
            "negative_prompt": request.negative,
            "styles": [],
            "seed": request.seed,
            "steps": request.steps,
            "cfg_scale": request.cfg,
            "width": request.width,
            "height": request.height,
            "batch_size": 1,
            "n_iter": 1,
            "do_not_save_samples": True,
            "do_not_save_grid": True,
            "sampler_name": request.sampler or next(iter(self.samplers()), None),
            "scheduler": request.scheduler or None,
        }
        # forge-classic has no `scheduler`
        known = (
            {field.name for field in dataclasses.fields(kind)}
            if dataclasses.is_dataclass(kind)
            else set(asked)
        )
        try:
            made = kind(**{key: value for key, value in asked.items() if key in known})
            # an empty runner: no other extension's script joins in, and reForge reads an attribute
            # of it without asking whether there is one
            made.scripts = importlib.import_module("modules.scripts").ScriptRunner()
            with contextlib.closing(made):
                return processing.process_images(made)
        except LoraTrainerError:
            raise
        except Exception as error:
            log.warning("the host's pipeline failed", exc_info=True)
            raise _failure(error) from error

    def _made(self, processed: Any, heard: list[str]) -> GeneratedImage:
        images = list(getattr(processed, "images", None) or [])
        if not images:
            raise HostError(
                "the WebUI made no picture",
                hint=(
                    "Make one in txt2img with the same checkpoint; the WebUI's console may say"
                    " more."
                ),
            )
        first = min(_whole(getattr(processed, "index_of_first_image", 0), 0), len(images) - 1)
        infotexts = list(getattr(processed, "infotexts", None) or [])
        infotext = infotexts[first] if first < len(infotexts) else getattr(processed, "info", "")
        remarks = [
            line.strip() for line in str(getattr(processed, "comments", "") or "").splitlines()
        ]
        return GeneratedImage(
            image=images[first].convert("RGB"),
            infotext=str(infotext),
            comments=tuple(line for line in (*remarks, *heard) if line),
            matched_modules=self._matched_modules(),
        )

    def refresh_loras(self) -> None:
        """Let the host list its LoRA folder again. New cards are there when the page is opened
        next, or its own refresh button is pressed.
        """
        module = host_module("modules.ui_extra_networks")
        for page in getattr(module, "extra_pages", None) or []:
            if str(getattr(page, "name", "")).lower() == "lora":
                try:
                    page.refresh()
                except Exception:
                    log.warning("the host could not list its LoRA folder", exc_info=True)
        _forget_cards(getattr(module, "ExtraNetworksUi", None))

    # --- what hosts differ in ---------------------------------------------------------------------

    def _model(self) -> Any:
        """The model in memory, or None. Not `shared.sd_model`: reading that loads one on A1111."""
        return getattr(
            getattr(host_module("modules.sd_models"), "model_data", None), "sd_model", None
        )

    def _checkpoint_info(self) -> Any:
        return getattr(self._model(), "sd_checkpoint_info", None) or self._selected_info()

    def _selected_info(self) -> Any:
        """What the menu says. Not `select_checkpoint()`: it prints a line whenever the checkpoint
        is gone, and raises when there is none.
        """
        models = host_module("modules.sd_models")
        aliases = getattr(models, "checkpoint_aliases", None) or {}
        chosen = aliases.get(self.option("sd_model_checkpoint"))
        return chosen or next(
            iter((getattr(models, "checkpoints_list", None) or {}).values()), None
        )

    def _vae(self) -> Path | None:
        path = getattr(host_module("modules.sd_vae"), "loaded_vae_file", None)
        return Path(path) if path else None

    def _on_main_thread(self, work: Callable[[], Result]) -> Result:
        """Do work where the host does its own."""
        return work()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[list[str]]:
        """What the host says of LoRAs elsewhere than in its comments."""
        yield []

    def _matched_modules(self) -> dict[str, int] | None:
        return None

    def _flag(self, name: str) -> Any:
        """A command-line option; None if this host has none of that name."""
        return getattr(getattr(host_module("modules.shared"), "cmd_opts", None), name, None)

    def _forget_waiting_task(self) -> None:
        """A refused task would stay in the host's list of waiting ones, and its Generate button
        hidden: it is the oldest there.
        """
        progress = host_module("modules.progress")
        with contextlib.suppress(Exception):
            task = next(iter(progress.pending_tasks), None)
            if task is not None:
                progress.start_task(task)
                progress.finish_task(task)


@contextlib.contextmanager
def _watching(
    state: Any, progress: Callable[[int, int], object], stopped: Callable[[], bool]
) -> Iterator[Callable[[], bool]]:
    """Report steps, and interrupt when asked, while our picture is made: `interrupt` at any other
    time would hit somebody else's.
    """
    over, interrupted = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            progress(
                _whole(getattr(state, "sampling_step", 0), 0),
                _whole(getattr(state, "sampling_steps", 0), 0),
            )
            if stopped() and not over.is_set():
                interrupted.set()
                state.interrupt()

    thread = threading.Thread(target=watch, name="lora-trainer-picture", daemon=True)
    thread.start()
    try:
        yield interrupted.is_set
    finally:
        over.set()
        thread.join()


def has_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def host_module(name: str) -> Any:
    """A module of the host, or None: a fork may lack it, or fail in importing it."""
    try:
        return importlib.import_module(name)
    except Exception:
        log.debug("%s is not to be had", name, exc_info=True)
        return None


def _text(ask: Callable[[], Any]) -> str:
    try:
        return str(ask() or "")
    except Exception:
        return ""


def _forget_cards(kind: Any) -> None:
    """The cards of a page are drawn once and kept for whoever opens the page later, by an instance
    of `kind` that only closures know.
    """
    for keeper in gc.get_referrers(kind) if isinstance(kind, type) else []:
        if type(keeper) is kind:
            keeper.pages_contents = []


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _failure(error: Exception) -> HostError:
    """The host's exception as a sentence; being out of memory is told apart, as its remedy is
    another.
    """
    text = _reason(error)
    if "out of memory" in text.lower():
        return HostError(
            "the graphics card ran out of memory while the WebUI made the picture",
            hint="Choose a smaller width and height, or close other programs.",
        )
    return HostError(
        "the WebUI could not make the picture: {reason}",
        hint="Try the prompt in txt2img; the WebUI's console says more.",
        reason=text,
    )
