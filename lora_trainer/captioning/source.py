"""Finds a captioner's model: a folder, the WebUI's file, the hub's cache, or a download.

    find(settings, listener) -> Path     a folder from the hub, or the WebUI's BLIP (a .pth file)

Nothing is downloaded that is on the disk already. HF_ENDPOINT (a mirror), HF_HOME, HF_HUB_CACHE and
HF_HUB_OFFLINE apply, as in huggingface_hub. Only required files are downloaded, and one format of
the weights, preferably safetensors. Interrupted downloads are continued.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from lora_trainer import files
from lora_trainer.captioning.captioner import ModelFiles
from lora_trainer.errors import CaptionerError
from lora_trainer.settings.captioning import CaptionSettings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
METADATA_TIMEOUT = 20.0
"""Timeout for the hub's metadata."""


class Listener(Protocol):
    """Receives a download's progress, and may cancel it."""

    def fetching(self, model: str, total: int) -> None: ...

    def fetched(self, done: int) -> None: ...

    def stop_asked(self) -> bool: ...


class DownloadStopped(Exception):
    """A stop was requested; the next download continues from here."""


def find(settings: CaptionSettings, listener: Listener) -> Path:
    """The model in the settings, downloaded if needed. Raises CaptionerError; DownloadStopped."""
    named = settings.model_name
    info = settings.info
    needs = info.files
    local = Path(named)
    if local.is_file() and info.takes_file:
        return local
    if local.is_dir():
        return _complete(local, needs)
    if not _is_hub_id(named):
        raise CaptionerError(
            "there is no model folder {model}",
            model=named,
            hint="Give the folder that holds config.json, or a model's id such as {id}.",
            id=info.model,
        )
    cached = cached_folder(named, needs)
    if cached is not None:
        return cached
    if info.host_file and not settings.model:
        hosts = hosts_file(info.host_file, settings.host_models)
        if hosts is not None:
            return hosts
    return fetch(named, needs, info.download_bytes if not settings.model else 0, listener)


def hosts_file(name: str, host_models: Path | None) -> Path | None:
    """The WebUI's file of a model, if it exists."""
    folder = host_models or _models_around()
    path = folder / name if folder is not None else None
    return path if path is not None and path.is_file() else None


def _models_around() -> Path | None:
    """The models folder of the WebUI that contains this extension: <webui>/extensions/<this>."""
    extension = Path(__file__).resolve().parent.parent.parent
    return extension.parent.parent / "models" if extension.parent.name == "extensions" else None


def cached_folder(model: str, needs: ModelFiles) -> Path | None:
    """A model's folder in the hub's cache, if complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if not missing_files(folder, needs) else None


def cached_file(model: str, name: str) -> Path | None:
    """A model's file in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) else None


def missing_files(folder: Path, needs: ModelFiles) -> list[str]:
    """Missing files of a model's folder, including parts of sharded weights."""
    missing = [name for name in needs.needed if not (folder / name).is_file()]
    if any((folder / name).is_file() for name in needs.weights):
        return missing
    for name in needs.weights:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return missing + [part for part in _parts(index) if not (folder / part).is_file()]
    return [*missing, needs.weights[0]]


def weight_bytes(folder: Path) -> int:
    """Size of a model's weights, a folder or a file."""
    if folder.is_file():
        return folder.stat().st_size
    for pattern in ("*.safetensors", "*.bin", "*.onnx"):
        found = [path.stat().st_size for path in folder.glob(pattern) if path.is_file()]
        if found:
            return sum(found)
    return 0


def _parts(index: Path) -> list[str]:
    return files.read_json(
        index, lambda content: sorted(set(content["weight_map"].values())), [index.name]
    )


def _complete(folder: Path, needs: ModelFiles) -> Path:
    missing = missing_files(folder, needs)
    if missing:
        raise CaptionerError(
            "{folder} is not a complete model of this kind: {missing} is missing",
            folder=folder,
            missing=" and ".join(missing),
            hint="Give the folder of a model with all its files, as on Hugging Face.",
        )
    return folder


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(
        part and set(part) <= _ID_LETTERS and not part.startswith((".", "-")) for part in parts
    )


_ID_LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


# --- downloading ----------------------------------------------------------------------------------


def fetch(
    model: str, needs: ModelFiles, expected_bytes: int, listener: Listener, only: Sequence[str] = ()
) -> Path:
    """Download a model into the hub's cache. Returns its folder there. Raises CaptionerError;
    DownloadStopped.

    only: just these files.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise _not_here(model, expected_bytes, constants.HF_HUB_CACHE)
    listener.fetching(model, 0)
    try:
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None).model_info(
            model, files_metadata=True, timeout=METADATA_TIMEOUT
        )
    except Exception as error:
        _explain(error, model, expected_bytes)
    sizes = {entry.rfilename: int(entry.size or 0) for entry in info.siblings or ()}
    wanted = list(only) or _wanted(sizes, needs)
    total = sum(sizes.get(name, 0) for name in wanted)
    _require_room(model, total, Path(constants.HF_HUB_CACHE))
    listener.fetching(model, total)
    folder = _download(model, wanted, expected_bytes, total, listener)
    return folder if only else _complete(folder, needs)


def _wanted(names: Iterable[str], needs: ModelFiles) -> list[str]:
    """The small files and one format of the weights."""
    names = list(names)
    small = [
        name
        for name in names
        if "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in needs.small)
    ]
    for whole in needs.weights:
        stem, _, suffix = whole.rpartition(".")
        for pattern in (whole, f"{stem}-*-of-*.{suffix}"):
            weights = fnmatch.filter(names, pattern)
            if weights:
                return [*small, *weights]
    return [*small, needs.weights[0]]


def _download(
    model: str, names: Sequence[str], expected_bytes: int, total: int, listener: Listener
) -> Path:
    """Download the files in a thread, reporting progress and polling for a stop."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    failure: list[Exception] = []
    paths: list[Path] = []

    def run() -> None:
        try:
            for name in names:
                paths.append(
                    Path(
                        hf_hub_download(model, name, endpoint=os.environ.get("HF_ENDPOINT") or None)
                    )
                )
        except Exception as error:
            failure.append(error)

    blobs = (
        Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model") / "blobs"
    )
    # a daemon thread does not keep the process alive; the partial file stays for the next time
    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    reported = -1
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        # includes earlier downloads, and maybe another revision's files
        done = min(total, _size_of(blobs))
        if done != reported:
            reported = done
            listener.fetched(done)
        if listener.stop_asked():
            raise DownloadStopped
    if failure:
        _explain(failure[0], model, expected_bytes)
    listener.fetched(total)
    # all files are in the snapshot's folder
    return paths[0].parent


def _size_of(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0


def _require_room(model: str, needed: int, cache: Path) -> None:
    existing = next((folder for folder in (cache, *cache.parents) if folder.exists()), None)
    free = shutil.disk_usage(existing).free if existing is not None else needed
    if free < needed + files.RESERVED_DISK_SPACE:
        raise CaptionerError(
            "{model} needs {needed}, but the disk with {cache} has {free} free, of which {kept}"
            " are reserved",
            model=model,
            needed=gigabytes(needed),
            cache=cache,
            free=gigabytes(free),
            kept=gigabytes(files.RESERVED_DISK_SPACE),
            hint="Free some space, or set HF_HOME to a folder on another disk.",
        )


def _not_here(model: str, expected_bytes: int, cache: str) -> CaptionerError:
    size = f" ({gigabytes(expected_bytes)})" if expected_bytes else ""
    return CaptionerError(
        "the model {model}{size} is not on this disk, and HF_HUB_OFFLINE forbids the download",
        model=model,
        size=size,
        cache=cache,
        hint=(
            "Unset HF_HUB_OFFLINE. Or download the model on another computer and set the model "
            "to its folder, or copy that computer's Hugging Face cache to {cache}."
        ),
    )


def _explain(error: Exception, model: str, expected_bytes: int) -> NoReturn:
    """Raise CaptionerError for an exception of huggingface_hub or the network."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    size = f" ({gigabytes(expected_bytes)})" if expected_bytes else ""
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if isinstance(error, hub.GatedRepoError):
        raise CaptionerError(
            "the model {model} is gated: its terms must be accepted before the download",
            model=model,
            hint=(
                "Accept them on its page, set HF_TOKEN to your token, and start again; or choose"
                " another model."
            ),
        ) from error
    if isinstance(
        error, (hub.RepositoryNotFoundError, hub.EntryNotFoundError, hub.RevisionNotFoundError)
    ) and not isinstance(error, hub.LocalEntryNotFoundError):
        raise CaptionerError(
            "{endpoint} has no model {model}, or not all of its files",
            endpoint=endpoint,
            model=model,
            hint=(
                "Check the spelling: it is OWNER/NAME, as in Salesforce/blip-image-captioning-base."
            ),
        ) from error
    if files.is_disk_full(error):
        raise CaptionerError(
            "the disk is full: the model {model}{size} does not fit",
            model=model,
            size=size,
            hint=(
                "Free some space, or set HF_HOME to a folder on another disk; what has arrived"
                " stays."
            ),
        ) from error
    log.warning("fetching %s failed", model, exc_info=error)
    raise CaptionerError(
        "the model {model}{size} cannot be downloaded from {endpoint}: {reason}",
        model=model,
        size=size,
        endpoint=endpoint,
        reason=_first_line(_innermost(error)),
        cache=constants.HF_HUB_CACHE,
        hint=(
            "Check the connection, or set HF_ENDPOINT to a mirror, or HTTPS_PROXY. Or set the "
            "model to the folder of one that was downloaded elsewhere."
        ),
    ) from error


def _innermost(error: BaseException) -> BaseException:
    """The innermost cause: requests wraps urllib3's error, which wraps another."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # without urllib3's prefix: HTTPSConnection(host='huggingface.co', port=443): Failed to resolve
    # ...
    return re.sub(r"^\w+\(host=.*?\): ", "", lines[0])[:300] if lines else type(error).__name__


def gigabytes(count: int) -> str:
    """ "4.4 GB", "467 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
