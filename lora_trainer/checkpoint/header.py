"""Reads the header of a .safetensors file: names, dtypes and shapes, without tensors.

Other files are identified by their first bytes, for an error message each; pickles are never
loaded. Standard library only.

Format: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer import files
from lora_trainer.errors import CheckpointError

MAX_HEADER_SIZE = 100_000_000
"""The safetensors library's limit."""
MAX_DIMENSIONS = 16
BYTES_EACH = {
    **dict.fromkeys(("F64", "C64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys("F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0 I8 U8 BOOL".split(), 1),
}
DOWNLOAD_AGAIN = "Download the file again, and compare its size with the one the site states."


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype as in safetensors ("F16"), shape, and byte range relative to
    `Header.data_start`.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a .safetensors file."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    """Offset of the first tensor's bytes."""
    file_size: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None if there is no such tensor."""
        info = self.tensors.get(name)
        return info.shape if info else None


def read_header(path: Path) -> Header:
    """Read and validate a .safetensors header; all tensors must be inside the file. Raises
    CheckpointError that says what the file is instead.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            "{path} is a folder, not a .safetensors file",
            hint="Name the file inside it.",
            path=path,
        )
    if path.exists() and not path.is_file():
        # reading a named pipe would block
        raise CheckpointError(
            "{path} is not a file but a device or a pipe",
            hint="Name a .safetensors file.",
            path=path,
        )
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            start = file.read(512)
            length = _header_length(path, start, file_size)
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(
            "there is no file {path}",
            hint="Check the spelling; a relative path starts at the working directory.",
            path=path,
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            "{path} cannot be read: {reason}",
            hint="Check the permissions and the disk.",
            path=path,
            reason=reason,
        ) from error
    return _parse(path, text, data_start=8 + length, file_size=file_size)


def _header_length(path: Path, start: bytes, file_size: int) -> int:
    """The length of the JSON part, if the first bytes look like a safetensors file's."""
    length = int.from_bytes(start[:8], "little")
    # before testing for pickles: the length 640 has the same first bytes
    if start[8:9] != b"{" or length > MAX_HEADER_SIZE:
        raise _not_safetensors(path, start, file_size)
    if 8 + length > file_size:
        raise CheckpointError(
            "{path} is cut off inside its header: {size} bytes are there",
            hint=DOWNLOAD_AGAIN,
            path=path,
            size=file_size,
        )
    return length


def _not_safetensors(path: Path, start: bytes, file_size: int) -> CheckpointError:
    """The error for pickles, web pages, git-lfs pointers, GGUF files, and empty or incomplete
    files.
    """
    text = start.lstrip().lower()
    if not start:
        return CheckpointError("{path} is empty", hint=DOWNLOAD_AGAIN, path=path)
    if not any(start):
        return CheckpointError(
            "{path} is filled with zeros",
            hint="The download has not finished. " + DOWNLOAD_AGAIN,
            path=path,
        )
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return CheckpointError(
            "{path} is a pickle (.ckpt, .pt), which can run any program when opened",
            hint=(
                "Use the model's .safetensors version, or convert it in the WebUI: Checkpoint"
                " Merger, No interpolation, safetensors."
            ),
            path=path,
        )
    if text.startswith(b"version https://git-lfs"):
        return CheckpointError(
            "{path} is a git-lfs pointer of {size} bytes, not the model",
            hint="Run `git lfs pull`, or download the file itself.",
            path=path,
            size=file_size,
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return CheckpointError(
            "{path} is a web page, not a model",
            hint="The site asked for a login or refused. Download the file in a browser.",
            path=path,
        )
    if text.startswith(b'{"'):
        return CheckpointError(
            "{path} is a JSON text, not a model",
            hint=(
                "The site may have answered with an error message: open the file in an editor to"
                " read it."
            ),
            path=path,
        )
    if start.startswith(b"GGUF"):
        return CheckpointError(
            "{path} is a GGUF file, whose weights are quantised",
            hint="Training needs the fp16 or bf16 .safetensors version.",
            path=path,
        )
    if file_size < 10:
        return CheckpointError(
            "{path} is cut off inside its header: {size} bytes are there",
            hint=DOWNLOAD_AGAIN,
            path=path,
            size=file_size,
        )
    return CheckpointError(
        "{path} is not a .safetensors file",
        hint="Use a .safetensors checkpoint; renaming another kind of file does not convert it.",
        path=path,
    )


def _parse(path: Path, text: bytes, *, data_start: int, file_size: int) -> Header:
    try:
        entries = files.parse_json(text, unique=True)
        metadata = _metadata(entries.pop("__metadata__", None))
        tensors = {name: _tensor_info(entry) for name, entry in entries.items()}
        needed = data_start + _end_of_data(tensors)
    except files.UNREADABLE as error:
        raise CheckpointError(
            "the header of {path} is damaged", hint=DOWNLOAD_AGAIN, path=path
        ) from error
    if needed > file_size:
        raise CheckpointError(
            "{path} is cut off: {size:,} of {needed:,} bytes are there",
            hint=DOWNLOAD_AGAIN,
            path=path,
            size=file_size,
            needed=needed,
        )
    if not tensors:
        raise CheckpointError(
            "{path} holds no tensors", hint="Choose another checkpoint.", path=path
        )
    return Header(
        path=path, tensors=tensors, metadata=metadata, data_start=data_start, file_size=file_size
    )


def _metadata(entry: Any) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise TypeError("the metadata is not a map of strings")
    return entry


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    # type(), not isinstance(): bool is a subclass of int
    if (
        not isinstance(dtype, str)
        or len(shape) > MAX_DIMENSIONS
        or any(type(number) is not int or number < 0 for number in (*shape, start, end))
    ):
        raise ValueError(f"impossible tensor of type {dtype!r:.40}")
    info = TensorInfo(dtype=dtype, shape=shape, start=start, end=end)
    if end < start or (dtype in BYTES_EACH and prod(shape) * BYTES_EACH[dtype] != end - start):
        raise ValueError("the tensor's size is not that of its shape")
    return info


def _end_of_data(tensors: Mapping[str, TensorInfo]) -> int:
    """The end of the last tensor. Raises ValueError if tensors overlap or leave gaps, which the
    format forbids.
    """
    end = 0
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != end:
            raise ValueError("tensors overlap, or have gaps between them")
        end = info.end
    return end
