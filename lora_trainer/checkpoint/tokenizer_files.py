"""Finds the tokenizer.json of a text encoder, offline if it is anywhere on this machine.

    find_tokenizer(kind, ...) -> Path

Where it is looked for, first to last: the folder that was asked for, beside the text encoder's
files, in the diffusers folder, in a WebUI around the checkpoint (backend/huggingface), in Hugging
Face's cache. Then it is downloaded: only this file. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE apply,
as in huggingface_hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.checkpoint.parts import TokenizerKind
from lora_trainer.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "tokenizer.json"
OF_HOSTS = Path("backend", "huggingface")
"""Where Forge and its descendants keep tokenizers, below the WebUI's own folder."""
TIMEOUT = 20.0
"""Seconds to wait for an answer."""


def find_tokenizer(
    kind: TokenizerKind,
    checkpoint: Path,
    *,
    asked: Path | None = None,
    beside: Sequence[Path] = (),
) -> Path:
    """The tokenizer.json of this kind, or the first file of its vocabulary. asked: a folder that
    has to have it, unless it is a WebUI's own. beside: the files of the text encoders. Raises
    CheckpointError.
    """
    if asked is not None:
        _require_folder(asked)
        found = next(filter(None, (_in(folder, kind) for folder in _asked(asked, kind))), None)
        if found is not None:
            return found
        _require_whole(_asked(asked, kind))
        if asked.parts[-len(OF_HOSTS.parts) :] != OF_HOSTS.parts:
            raise CheckpointError(
                "{path} holds no tokenizer of {kind}",
                hint="It needs a tokenizer.json, in this folder or in one called {name}.",
                path=asked,
                kind=kind.name,
                name=kind.id,
            )
    places = list(_places(kind, checkpoint, beside))
    for folder in places:
        if (found := _in(folder, kind)) is not None:
            return found
    if (found := _cached(kind)) is not None:
        return found
    _require_whole(places)
    return _downloaded(kind)


def _require_folder(asked: Path) -> None:
    """Raise CheckpointError for a folder that was asked for and is none."""
    if asked.is_dir():
        return
    raise CheckpointError(
        "tokenizers is {path}, which is a file" if asked.exists() else "there is no folder {path}",
        hint="Set tokenizers to the folder that holds the tokenizer.json, or to auto.",
        path=asked,
    )


def _require_whole(folders: Iterable[Path]) -> None:
    """Raise CheckpointError for a tokenizer.json in these folders that is damaged."""
    for folder in folders:
        if (folder / NAME).is_file() and not _model_of(folder / NAME):
            raise _unreadable(folder / NAME, "it is damaged")


def _asked(folder: Path, kind: TokenizerKind) -> Iterator[Path]:
    """A folder may hold one tokenizer, several by name, or be a WebUI's backend/huggingface."""
    yield from (folder / kind.id, folder / kind.diffusers_folder)
    yield from (folder / name for name in kind.host_folders)
    yield folder


def _places(kind: TokenizerKind, checkpoint: Path, beside: Sequence[Path]) -> Iterator[Path]:
    if checkpoint.is_dir():
        yield checkpoint / kind.diffusers_folder
    for file in beside:
        yield from (file.parent / kind.id, file.parent / kind.diffusers_folder, file.parent)
    for parent in Path(checkpoint).absolute().parents:
        if (parent / OF_HOSTS).is_dir():
            yield from (parent / OF_HOSTS / name for name in kind.host_folders)


def _in(folder: Path, kind: TokenizerKind) -> Path | None:
    """The tokenizer.json in a folder, if it is of this kind, or its vocabulary."""
    path = folder / NAME
    if path.is_file() and _model_of(path) == kind.model:
        return path
    vocabulary = [folder / name for name in kind.vocabulary]
    is_there = bool(vocabulary) and all(file.is_file() for file in vocabulary)
    return vocabulary[0] if is_there else None


def _model_of(path: Path) -> str:
    try:
        return str(files.load_json(path)["model"]["type"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _cached(kind: TokenizerKind) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    named = [(one, NAME) for one in (kind.repository, *kind.alike)]
    named += [(one, f"{kind.diffusers_folder}/{NAME}") for one in kind.other_repositories]
    for repository, name in named:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str) and _model_of(Path(found)) == kind.model:
            return Path(found)
    return None


def _downloaded(kind: TokenizerKind) -> Path:
    """Raises CheckpointError if it cannot be downloaded."""
    from huggingface_hub import hf_hub_download

    log.info("downloading the tokenizer of %s from %s", kind.name, kind.repository)
    try:
        return Path(hf_hub_download(kind.repository, NAME, etag_timeout=TIMEOUT))
    # every library below has its own errors
    except Exception as error:
        raise CheckpointError(
            "the tokenizer of {kind} is not on this machine, and could not be downloaded: {reason}",
            hint=(
                "Download {file} of {repository} from Hugging Face into a folder, and set"
                " tokenizers to that folder."
            ),
            kind=kind.name,
            reason=str(error).strip().split("\n")[0] or type(error).__name__,
            file=NAME,
            repository=kind.repository,
        ) from error


def open_tokenizer(path: Path, kind: TokenizerKind) -> Any:
    """A tokenizer of the package tokenizers, without truncation and padding, from what
    find_tokenizer has found. Raises CheckpointError.
    """
    from tokenizers import Tokenizer

    try:
        if kind.read is not None and path.name != NAME:
            return kind.read(path)
        tokenizer = Tokenizer.from_file(str(path))
    # the library raises plain Exceptions
    except Exception as error:
        raise _unreadable(
            path, str(error).strip().split("\n")[0] or type(error).__name__
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        "the tokenizer in {path} cannot be read: {reason}",
        hint="Download it again.",
        path=path,
        reason=reason,
    )


def add_special_tokens(tokenizer: Any, path: Path, kind: TokenizerKind) -> bool:
    """Add the special tokens that the kind has and this file lacks, whose texts would be divided
    into pieces. Returns whether there were any. Raises CheckpointError if they come to stand in
    another order than the text encoder knows.
    """

    def is_whole(token: str) -> bool:
        return len(tokenizer.encode(token, add_special_tokens=False).ids) == 1

    if all(map(is_whole, kind.special)):
        return False
    tokenizer.add_special_tokens(list(kind.special))
    ids = [tokenizer.token_to_id(token) for token in kind.special]
    if ids != sorted(set(ids)):
        raise CheckpointError(
            "the tokenizer in {path} has only some of the special tokens of {kind}",
            hint="Download {file} of {repository} from Hugging Face in its place.",
            path=path,
            kind=kind.name,
            file=NAME,
            repository=kind.repository,
        )
    return True


def require_fitting(tokenizer: Any, path: Path, size: int, encoder: Path) -> None:
    """Raise CheckpointError for a tokenizer with tokens that its text encoder does not know. size:
    how many that knows; encoder: its file.
    """
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest < size:
        return
    raise CheckpointError(
        "the tokenizer in {path} has tokens up to number {highest}, and the text encoder in"
        " {encoder} knows {size}: they do not belong together",
        hint="Set tokenizers to a folder with the tokenizer of this text encoder.",
        path=path,
        highest=highest,
        encoder=encoder,
        size=size,
    )
