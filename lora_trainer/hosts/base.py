"""The interface of a host: facts, its model on the device, and image generation.

    host.loaded(), host.checkpoints()               facts; reading them never loads a model
    host.release_model() ... host.restore_model()   move the model off the device for training, and
    back
    host.on_generation(before, after)               hooks around everything the host does on its
    device
    host.generate(request) -> GeneratedImage        an image from the host's own pipeline

Host modules are imported on first use. Where a fork lacks an attribute the result is None, an empty
list or a HostError.
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
import textwrap
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
"""The option for the host names of proxies."""
TUNNEL_FLAGS = tuple(
    (
        "share listen ngrok cloudflared localhostrun remotemoe googleusercontent jprq bore"
        " tunnel subpath"
    ).split()
)
"""Command-line flags of hosts and extensions that expose the WebUI to others."""
LONGEST_REASON = 300
"""Characters of a host's exception in a sentence; its console has all of it."""
TUNNEL_MODULES = ("ngrok", "pyngrok", "pycloudflared")
TUNNEL_VARIABLES = ("GRADIO_SHARE", "GRADIO_ROOT_PATH", "SPACE_ID")
WATCH_SECONDS = 0.2
"""Interval at which a generation's progress is read."""


class HostError(LoraTrainerError):
    """The WebUI cannot do what is required of it."""


class GenerationRefused(HostError):
    """Raised inside the host's queue instead of generating. The host shows only `str(error)`, which
    is therefore `text`: message and hint, translated.
    """

    def __init__(self, error: LoraTrainerError, text: str) -> None:
        super().__init__(
            error.message.template,
            hint=error.hint.template,
            **{**error.hint.values, **error.message.values},
        )
        self._text = text

    def __str__(self) -> str:
        return self._text


class GenerationCancelled(LoraTrainerError):
    """The generation was cancelled on request."""


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
    """As in the WebUI's menu; a hash is appended once the file was hashed."""
    path: Path


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """What the next image would be generated with."""

    title: str
    path: Path
    vae: Path | None
    clip_skip: int
    in_memory: bool = True
    """False if it is only selected: hosts load it for the next image."""


@dataclass(frozen=True, kw_only=True)
class LowBits:
    """In how many bits the host is set to keep a model's weights."""

    setting: str = ""
    """As lora.low_bits names it; empty: as the file has them, or 16 bits."""
    keeps_loras: bool = False
    """Whether that setting's remedy is chosen."""


@dataclass(frozen=True, kw_only=True)
class HostDevice:
    kind: str
    """cuda, cpu, mps, xpu ..."""
    device_id: str | None
    """The value of --device-id, for the worker's CUDA_VISIBLE_DEVICES."""
    name: str
    count: int = 1
    """How many graphics cards a worker sees."""


@dataclass(frozen=True, kw_only=True)
class HostOption:
    """An option of ours on the host's Settings page: a string, an integer or a boolean, by its
    default; or one of `choices`.
    """

    key: str
    label: str
    help: str
    default: str | int | bool
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Device memory in bytes."""

    free: int
    total: int
    leaving: int = 0
    """What the host holds of it, and gives back when its model leaves."""


@dataclass(frozen=True, kw_only=True)
class Txt2ImgRequest:
    """One image to generate. An empty sampler or scheduler means the host's default."""

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
    image: Image.Image
    infotext: str
    """The host's generation parameters, as in its PNG files."""
    comments: tuple[str, ...]
    """The host's remarks: a LoRA not found, keys not matched."""
    matched_modules: dict[str, int] | None
    """LoRA name -> number of its modules applied to the model, where known (A1111)."""


class Host:
    """A WebUI. Subclasses detect it, and move its model off the device and back."""

    kind = ""
    """An id for reports and the page; empty for abstract classes."""
    name = ""

    @classmethod
    def is_here(cls) -> bool:
        """Whether this process is a WebUI of this kind, judged by the modules that exist."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._queue: QueueLock | None = None
        self._visited = False

    # --- facts ------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The host's version, or ""."""
        return _text(lambda: importlib.import_module("modules.launch_utils").git_tag())

    def lora_folders(self) -> list[Path]:
        """The folders whose LoRA files it lists: its own, and Forge Neo's --lora-dirs. Raises
        HostError if unknown.
        """
        return [self.paths().lora_dir, *(Path(one) for one in self._flag("lora_dirs") or ())]

    def paths(self) -> HostPaths:
        """The host's folders. Raises HostError if unknown."""
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
        """The host's font file for labels on images, or None."""
        path = getattr(host_module("modules.paths_internal"), "roboto_ttf_file", None)
        return Path(path) if path and Path(path).is_file() else None

    def data_folder(self) -> Path:
        """The extension's data: the flag, else the setting, else lora-trainer in the host's data
        folder.
        """
        chosen = str(
            self._flag("lora_trainer_data_dir") or self.option("lora_trainer_data_folder", "") or ""
        ).strip()
        return Path(chosen).expanduser() if chosen else self.paths().data / "lora-trainer"

    def checkpoints(self) -> list[HostCheckpoint]:
        """The entries of the host's checkpoint menu."""
        listed = getattr(host_module("modules.sd_models"), "checkpoints_list", None) or {}
        found = [
            HostCheckpoint(title=_title(info), path=Path(info.filename))
            for info in list(listed.values())
            if getattr(info, "filename", None)
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.title.casefold())

    def loaded(self) -> LoadedCheckpoint | None:
        """The checkpoint of the next image, or None. Never loads one."""
        info = self._checkpoint_info()
        if info is None or not getattr(info, "filename", None):
            return None
        return LoadedCheckpoint(
            title=_title(info),
            path=Path(info.filename),
            vae=self._vae(),
            clip_skip=self.clip_skip(),
            in_memory=getattr(getattr(self._model(), "sd_checkpoint_info", None), "filename", None)
            == info.filename,
        )

    def clip_skip(self) -> int:
        """The clip skip of the next image, whatever its checkpoint: 2 by default on Forge Neo."""
        return _whole(self.option("CLIP_stop_at_last_layers", 1), 1)

    def low_bits(self) -> LowBits:
        """What is chosen for the next image."""
        return LowBits()

    def part_files(self) -> list[Path]:
        """The text encoders and VAEs in files of their own that the host is set to use."""
        return []

    def part_folders(self) -> list[Path]:
        """The host's folders of such files."""
        return []

    def tokenizer_folder(self) -> Path | None:
        """The host's own copies of tokenizers, backend/huggingface, or None."""
        own = getattr(host_module("modules.paths_internal"), "script_path", None)
        folder = Path(own) / "backend" / "huggingface" if own else None
        return folder if folder is not None and folder.is_dir() else None

    def samplers(self) -> list[str]:
        """Sampler names in the host's order, without hidden ones."""
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
        """The device the host computes on."""
        devices = host_module("modules.devices")
        device = getattr(devices, "device", None)
        kind = str(getattr(device, "type", "") or device or "cpu").split(":")[0]
        name = _text(lambda: devices.torch.cuda.get_device_name(device)) if kind == "cuda" else kind
        chosen = self._flag("device_id")
        count = 1
        if kind == "cuda" and chosen is None:
            with contextlib.suppress(Exception):
                count = int(devices.torch.cuda.device_count())
        return HostDevice(
            kind=kind,
            device_id=None if chosen is None else str(chosen),
            name=name or kind,
            count=count,
        )

    def memory(self) -> Memory | None:
        """Free and total device memory, counting all programs; None on a CPU or if unknown."""
        if self.device().kind != "cuda":
            return None
        try:
            # the host knows the index of its GPU
            monitor = host_module("modules.shared").mem_mon
            free, total = monitor.cuda_mem_get_info()
            held = monitor.read().get("reserved", 0)
        except Exception:
            log.debug("device memory is unknown", exc_info=True)
            return None
        return Memory(free=int(free), total=int(total), leaving=int(held))

    def is_remote(self) -> bool:
        """Whether users on other machines may use the tab: they get no paths and open no
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
        """Note that a request came from another machine."""
        self._visited = True

    def names(self) -> frozenset[str]:
        """Lower-case host names by which browsers may reach this WebUI: the machine's, a share
        link's, and those in the option.
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
        # a pasted URL stands for its host name
        wanted = (
            name if name.startswith("*") else name.partition("://")[2] or name for name in named
        )
        return frozenset(
            name
            for name in (*map(host_of, known), *(host_of(name.split("/")[0]) for name in wanted))
            if name
        )

    def _demo(self) -> Any:
        """gradio's Blocks, or None: before they exist, and with --nowebui."""
        return getattr(host_module("modules.shared"), "demo", None)

    def _bound_to(self) -> list[str]:
        """The addresses that the running server's sockets listen on, else those in its options; ""
        means any.
        """
        servers = getattr(getattr(self._demo(), "server", None), "servers", None) or []
        with contextlib.suppress(Exception):
            names = [bound.getsockname() for server in servers for bound in server.sockets or ()]
            if names:
                # a Unix socket has a path; a proxy is in front of it
                return [str(name[0]) if isinstance(name, tuple) else "" for name in names]
        return [str(self._flag("server_name") or os.environ.get("GRADIO_SERVER_NAME") or "")]

    def _has_tunnel(self) -> bool:
        demo = self._demo()
        flagged = any(self._flag(flag) for flag in TUNNEL_FLAGS)
        shared = any(
            getattr(demo, name, None) for name in ("share", "share_url", "is_colab", "is_kaggle")
        )
        variables = any(
            os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")
            for name in TUNNEL_VARIABLES
        )
        return (
            flagged
            or shared
            or variables
            or any(name in sys.modules for name in TUNNEL_MODULES)
            or bool(self.option(HOST_NAMES, ""))
        )

    def option(self, key: str, default: Any = None) -> Any:
        """The value of one of the host's settings."""
        options = getattr(host_module("modules.shared"), "opts", None)
        try:
            found = getattr(options, key, default)
        except Exception:
            return default
        return default if found is None else found

    def add_options(self, section: tuple[str, str], options: Sequence[HostOption]) -> None:
        """Add a section (id, title) of our options to the host's Settings page, in
        on_ui_settings.
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
        """The host's localization, such as zh_CN; empty for English."""
        chosen = str(self.option("localization", "") or "")
        return "" if chosen == "None" else chosen

    def api_credentials(self) -> dict[str, str]:
        """User -> password, from --api-auth."""
        pairs = (pair.partition(":") for pair in str(self._flag("api_auth") or "").split(","))
        return {user.strip(): password for user, colon, password in pairs if colon}

    # --- the device -------------------------------------------------------------------------------

    @property
    def queue(self) -> QueueLock:
        """The host's queue. Raises HostError if it has none that is known."""
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
        """Hold the host's queue. Yields True; with wait=False, False if another thread holds it."""
        return self.queue.ours(wait=wait)

    def on_generation(
        self,
        before: Callable[[], object],
        after: Callable[[], object],
        *,
        describe: Callable[[LoraTrainerError], str] = str,
    ) -> bool:
        """Call `before` and `after` around everything the host does on its device: images, the API,
        upscaling, loading a checkpoint.

        `before` may block; a LoraTrainerError from it cancels the generation and is shown to the
        user as `describe(error)`. `after` is called however it ends. Returns False if this host
        cannot be watched.
        """

        def guarded() -> None:
            try:
                before()
            except LoraTrainerError as error:
                self._forget_waiting_task()
                raise GenerationRefused(error, describe(error)) from error

        return self.queue.watch(guarded, after)

    def off_generation(self) -> None:
        """Undo on_generation."""
        if self._queue is not None:
            self._queue.unwatch()

    def is_generating(self) -> bool:
        """Whether the host is using its device."""
        if self._queue is not None and self._queue.watched:
            return self._queue.in_use_by_host
        state = getattr(host_module("modules.shared"), "state", None)
        return bool(getattr(state, "job", "")) or _whole(getattr(state, "job_count", 0), 0) != 0

    def release_model(self) -> None:
        """Move the host's model off the device, holding the queue. No-op if it is not there."""
        self._move(
            self._release,
            template="the WebUI's model could not be moved off the graphics card: {reason}",
            hint="Unload it in the WebUI's settings (Actions), or restart the WebUI.",
        )

    def restore_model(self) -> None:
        """Move the model back, holding the queue. Hosts that load on demand do nothing."""
        self._move(
            self._restore,
            template="the WebUI's model could not be moved back to the graphics card: {reason}",
            hint="Choose the checkpoint again in the WebUI's menu, or restart the WebUI.",
        )

    def _move(self, move: Callable[[], None], *, template: str, hint: str) -> None:
        try:
            with self.queue.ours():
                self._on_main_thread(move)
        except Exception as error:
            log.warning("the host's model could not be moved", exc_info=True)
            raise HostError(template, hint=hint, reason=_reason(error)) from error

    def model_on_device(self) -> bool:
        """Whether the host's model occupies device memory."""
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _restore(self) -> None:
        """No-op: this host loads on demand."""

    # --- images -----------------------------------------------------------------------------------

    def generate(
        self,
        request: Txt2ImgRequest,
        *,
        progress: Callable[[int, int], object] | None = None,
        stop_asked: Callable[[], bool] | None = None,
    ) -> GeneratedImage:
        """Generate one image as the host's txt2img would, including LoRA tags. Nothing is saved in
        the host's folders.

        Waits in the host's queue. `progress` receives (step, steps); `stop_asked` is polled and
        leads to GenerationCancelled. Raises HostError with the host's reason.
        """
        stopped = stop_asked or (lambda: False)
        with self.queue.lock:
            if stopped():
                raise GenerationCancelled("the image was cancelled")
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
            with (
                _watching(state, progress, stopped) as was_stopped,
                self._lora_remarks() as remarks,
            ):
                processed = self._process(request)
            if was_stopped():
                raise GenerationCancelled("the image was cancelled")
            return self._made(processed, remarks)
        finally:
            state.end()
            # as `wrap_gradio_call` does for the host's buttons
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
            # named as the WebUI's form names its own: A1111 warns of each None that it corrects
            "sampler_name": request.sampler or next(iter(self.samplers()), None),
            "scheduler": request.scheduler or next(iter(self.schedulers()), None),
        }
        # forge-classic has no `scheduler`
        known = (
            {field.name for field in dataclasses.fields(kind)}
            if dataclasses.is_dataclass(kind)
            else set(asked)
        )
        try:
            made = kind(**{key: value for key, value in asked.items() if key in known})
            # an empty runner runs no other extension's scripts; reForge requires one
            made.scripts = importlib.import_module("modules.scripts").ScriptRunner()
            with contextlib.closing(made):
                return processing.process_images(made)
        except LoraTrainerError:
            raise
        except Exception as error:
            log.warning("the host's pipeline failed", exc_info=True)
            raise _failure(error) from error

    def _made(self, processed: Any, remarks: list[str]) -> GeneratedImage:
        images = list(getattr(processed, "images", None) or [])
        if not images:
            raise HostError(
                "the WebUI generated no image",
                hint=(
                    "Generate one in txt2img with the same checkpoint; the WebUI's console may "
                    "have details."
                ),
            )
        first = min(_whole(getattr(processed, "index_of_first_image", 0), 0), len(images) - 1)
        infotexts = list(getattr(processed, "infotexts", None) or [])
        infotext = infotexts[first] if first < len(infotexts) else getattr(processed, "info", "")
        comments = [
            line.strip() for line in str(getattr(processed, "comments", "") or "").splitlines()
        ]
        return GeneratedImage(
            image=images[first].convert("RGB"),
            infotext=str(infotext),
            comments=tuple(line for line in (*comments, *remarks) if line),
            matched_modules=self._matched_modules(),
        )

    def refresh_loras(self) -> None:
        """Make the host list its LoRA folder again. Pages show it after a reload or their refresh
        button.
        """
        module = host_module("modules.ui_extra_networks")
        for page in getattr(module, "extra_pages", None) or []:
            if str(getattr(page, "name", "")).lower() == "lora":
                try:
                    page.refresh()
                except Exception:
                    log.warning("the host could not list its LoRA folder", exc_info=True)
        _forget_cards(getattr(module, "ExtraNetworksUi", None))

    # --- overridden by hosts ----------------------------------------------------------------------

    def _model(self) -> Any:
        """The model in memory, or None. Not `shared.sd_model`, which loads one on A1111."""
        return getattr(
            getattr(host_module("modules.sd_models"), "model_data", None), "sd_model", None
        )

    def _checkpoint_info(self) -> Any:
        return getattr(self._model(), "sd_checkpoint_info", None) or self._selected_info()

    def _selected_info(self) -> Any:
        """The checkpoint selected in the menu. Not `select_checkpoint()`, which prints or raises if
        it is missing.
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
        """Run `work` on the thread that the host uses for its own."""
        return work()

    @contextlib.contextmanager
    def _lora_remarks(self) -> Iterator[list[str]]:
        """Collects what the host reports of LoRAs outside its comments."""
        yield []

    def _matched_modules(self) -> dict[str, int] | None:
        return None

    def _flag(self, name: str) -> Any:
        """A command-line option, or None if this host has none of that name."""
        return getattr(getattr(host_module("modules.shared"), "cmd_opts", None), name, None)

    def _forget_waiting_task(self) -> None:
        """Remove the refused task from the host's pending tasks, where it would keep the Generate
        button hidden.
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
    """Report progress and interrupt on request, only during our generation: at any other time
    `interrupt` would stop someone else's.
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

    thread = threading.Thread(target=watch, name="lora-trainer-image", daemon=True)
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
    """A module of the host, or None if the fork lacks it or importing it fails."""
    try:
        return importlib.import_module(name)
    except Exception:
        log.debug("%s cannot be imported", name, exc_info=True)
        return None


def _text(ask: Callable[[], Any]) -> str:
    try:
        return str(ask() or "")
    except Exception:
        return ""


def _forget_cards(kind: Any) -> None:
    """Clear the cached cards of pages, held by instances of `kind` that only closures reference."""
    for keeper in gc.get_referrers(kind) if isinstance(kind, type) else []:
        if type(keeper) is kind:
            keeper.pages_contents = []


def _title(info: Any) -> str:
    """A checkpoint's entry in the menu. The file's name where it is empty, as in Forge Neo for the
    file of --ckpt.
    """
    return str(getattr(info, "title", "")) or Path(info.filename).name


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _reason(error: BaseException) -> str:
    """Its type and the beginning of what it says: torch names every layer of a model."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return textwrap.shorten(text, LONGEST_REASON, placeholder=" ...")


def _failure(error: Exception) -> HostError:
    """The host's exception as a HostError, with a hint of its own for out of memory."""
    if "out of memory" in f"{type(error).__name__} {error}".lower():
        return HostError(
            "the graphics card ran out of memory while the WebUI generated the image",
            hint="Choose a smaller width and height, or close other programs.",
        )
    return HostError(
        "the WebUI could not generate the image: {reason}",
        hint="Try the prompt in txt2img; the WebUI's console has details.",
        reason=_reason(error),
    )
