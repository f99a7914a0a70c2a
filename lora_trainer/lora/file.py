"""LoRA files: header, tensors' bytes, and the hashes that hosts read.

Standard library only, so that files can be renamed without the worker's packages. The safetensors
library is not used for writing because it orders metadata randomly: equal LoRAs would give
different bytes. Format: https://huggingface.co/docs/safetensors/index#format
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
"""The 64 KiB at 1 MiB that the WebUI's legacy model hash covers."""
CHUNK = 1 << 20


def read_header(path: Path) -> Header:
    """A LoRA file's header. Raises LoraFileError that says what the file is instead."""
    try:
        return read_safetensors_header(path)
    except CheckpointError as error:
        hint = "Choose a LoRA in .safetensors format, or download or export it again."
        raise LoraFileError(error.message.template, hint=hint, **error.message.values) from error


IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""The file names used by PEFT and diffusers."""


def find_in_folder(path: Path) -> Path:
    """The LoRA file in a folder: PEFT's, the only one, or diffusers'. Files are returned unchanged.
    Raises LoraFileError.
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
    """The bytes before the tensors: length, JSON, padded to a multiple of 8. Metadata is sorted."""
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
    # lone surrogates, from a file name that is not UTF-8, would make the file invalid
    return text.encode("utf-8", "replace").decode("utf-8")


def with_hashes(
    metadata: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    content: Iterable[bytes],
    read: Callable[[int, int], bytes],
) -> dict[str, str]:
    """The metadata with hashes of the tensors, as written by kohya.

    sshs_model_hash: SHA-256 of all bytes after the header, independent of metadata.
    modelspec.hash_sha256: the same for ModelSpec. sshs_legacy_hash: the WebUI's legacy hash of the
    file with only the ss_ keys. content: the bytes after the header, in order. read(start, length):
    a range of them.
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
    """Copy a LoRA file with changed metadata, updating its hashes. Raises LoraFileError or
    OSError.
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
    """Whether two LoRA files have the same tensors. False if one is unreadable."""
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
    """(SHA-256, legacy hash) of a file. hashlib releases the GIL."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
        stream.seek(LEGACY_START)
        legacy = hashlib.sha256(stream.read(LEGACY_LENGTH)).hexdigest()[:8]
    return digest.hexdigest(), legacy
