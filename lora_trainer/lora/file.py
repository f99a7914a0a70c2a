"""The bytes of a LoRA file: a safetensors header, then the tensors, and the hashes that the hosts
look for in the header.

Called by export, deliver and describe. Standard library only, so that a file can be renamed without
the worker's packages. Written here rather than by the safetensors library because that one writes
metadata in a random order: the same LoRA would give different bytes.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.checkpoint.header import read_header as read_safetensors_header
from lora_trainer.errors import CheckpointError, LoraFileError

LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
"""The 64 KiB at the first MiB: all that the WebUI's first model hash looked at."""
CHUNK = 1 << 20


def read_header(path: Path) -> Header:
    """Names, types, shapes and metadata of a LoRA file. LoraFileError says what the file is
    instead.
    """
    try:
        return read_safetensors_header(path)
    except CheckpointError as error:
        hint = "Choose a LoRA in .safetensors format, or download or export it again."
        raise LoraFileError(error.message.template, hint=hint, **error.message.values) from error


IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder of theirs."""


def find_in_folder(path: Path) -> Path:
    """The LoRA file that a folder stands for: PEFT's, the only one, or diffusers'. Any other path
    is given back as it is. Raises LoraFileError.
    """
    if not path.is_dir():
        return path
    try:
        found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".safetensors")
    except OSError as error:
        reason = error.strerror or str(error)
        raise LoraFileError(
            "{path} cannot be read: {reason}",
            hint="Check the permissions and the disk.",
            path=path,
            reason=reason,
        ) from error
    usual = [path / name for name in IN_FOLDER if path / name in found]
    if len(found) == 1 or usual:
        return found[0] if len(found) == 1 else usual[0]
    if found:
        names = ", ".join(file.name for file in found[:5])
        raise LoraFileError(
            "{path} holds {count} files: {names} ...",
            hint="Name one of them.",
            path=path,
            count=len(found),
            names=names,
        )
    hint = (
        "Name a LoRA file, or the folder that PEFT or diffusers has saved one in. A pickle (.bin)"
        " is not opened: it can run any program."
    )
    raise LoraFileError("there is no .safetensors file in {path}", hint=hint, path=path)


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The bytes in front of the tensors: length, JSON, spaces up to a multiple of 8. Metadata is
    sorted: the same values, the same bytes.
    """
    entries: dict[str, object] = (
        {"__metadata__": {_clean(key): _clean(metadata[key]) for key in sorted(metadata)}}
        if metadata
        else {}
    )
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        entries[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _clean(text: str) -> str:
    # half a surrogate pair, from a file name that is not UTF-8, would make the whole file
    # unreadable to the safetensors library
    return text.encode("utf-8", "replace").decode("utf-8")


def with_hashes(
    metadata: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    content: Iterable[bytes],
    read: Callable[[int, int], bytes],
) -> dict[str, str]:
    """The metadata with the hashes of the tensors in it, as kohya writes them.

    sshs_model_hash: sha256 of all bytes after the header; it stays the same when metadata is
    edited. modelspec.hash_sha256: the same, as ModelSpec writes it. sshs_legacy_hash: the WebUI's
    first hash, of the file as it would be with the ss_ keys alone. content: the bytes after the
    header, in order. read(start, length): some of those bytes.
    """
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
    header = encode_header(
        tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}
    )
    sample = header[LEGACY_START : LEGACY_START + LEGACY_LENGTH]
    sample += read(max(0, LEGACY_START - len(header)), LEGACY_LENGTH - len(sample))
    return {
        **metadata,
        "sshs_model_hash": digest.hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(sample).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest.hexdigest()}",
    }


def copy_with_metadata(source: Path, target: Path, changes: Mapping[str, str]) -> None:
    """Copy a LoRA file, some metadata changed and the hashes that depend on it made right. Raises
    LoraFileError or OSError.
    """
    header = read_header(source)
    metadata = {**header.metadata, **changes}
    with source.open("rb") as stream:

        def read(start: int, length: int) -> bytes:
            stream.seek(header.data_start + start)
            return stream.read(length)

        def content() -> Iterable[bytes]:
            stream.seek(header.data_start)
            while chunk := stream.read(CHUNK):
                yield chunk

        if "sshs_model_hash" in metadata:
            metadata = with_hashes(metadata, header.tensors, content(), read)
        with target.open("wb") as out:
            out.write(encode_header(header.tensors, metadata))
            stream.seek(header.data_start)
            shutil.copyfileobj(stream, out, CHUNK)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two LoRA files hold the same tensors, whatever their metadata. False where one cannot
    be read.
    """
    try:
        first, second = read_header(one), read_header(other)
        if first.tensors != second.tensors:
            return False
        with one.open("rb") as left, other.open("rb") as right:
            left.seek(first.data_start)
            right.seek(second.data_start)
            while chunk := left.read(CHUNK):
                if chunk != right.read(CHUNK):
                    return False
            return not right.read(1)
    except (OSError, LoraFileError):
        return False


def file_hashes(path: Path) -> tuple[str, str]:
    """(sha256, first-generation hash) of a whole file, such as the base model: seconds for
    gigabytes; hashing lets other threads run.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
        stream.seek(LEGACY_START)
        legacy = hashlib.sha256(stream.read(LEGACY_LENGTH)).hexdigest()[:8]
    return digest.hexdigest(), legacy
