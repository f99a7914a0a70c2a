"""Reads single tensors from a safetensors file, in any dtype that torch supports.

The safetensors library raises for dtypes that its version does not support, without the file's
name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import TYPE_CHECKING

from lora_trainer.checkpoint.header import Header, TensorInfo
from lora_trainer.errors import LoraFileError

if TYPE_CHECKING:
    import torch

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
}
PACKED = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f"}
"""dtype -> `struct` format, for reading single numbers without torch."""


def read_tensor(header: Header, info: TensorInfo) -> torch.Tensor | None:
    """The tensor as float32; None for an unsupported dtype. Raises LoraFileError."""
    import torch

    dtype = getattr(torch, DTYPES.get(info.dtype, ""), None)
    if dtype is None:
        return None
    content = bytearray(read_bytes(header, info))
    values = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0)
    return values.float().reshape(info.shape)


def read_rows(header: Header, info: TensorInfo, numbers: torch.Tensor) -> torch.Tensor | None:
    """These rows of a tensor, as a matrix in float32: (rows, width). Only their bytes are read.
    None for an unsupported dtype. Raises LoraFileError.
    """
    import torch

    dtype = getattr(torch, DTYPES.get(info.dtype, ""), None)
    if dtype is None:
        return None
    each = (info.end - info.start) // info.shape[0]
    content = bytearray(each * len(numbers))
    view = memoryview(content)
    with _opened(header) as stream:
        for place, number in enumerate(numbers.tolist()):
            stream.seek(header.data_start + info.start + number * each)
            if stream.readinto(view[place * each : (place + 1) * each]) < each:
                raise _changed(header)
    return torch.frombuffer(content, dtype=dtype).float().reshape(len(numbers), -1)


def read_number(header: Header, info: TensorInfo) -> float | None:
    """The first element of a tensor; None if there is none or it is not finite. Without torch for
    the dtypes of PACKED. Raises LoraFileError.
    """
    if 0 in info.shape:
        return None
    if info.dtype in PACKED:
        content = read_bytes(header, info, {"F64": 8, "F32": 4}.get(info.dtype, 2))
        # bfloat16 is the upper half of float32
        content = b"\0\0" * (info.dtype == "BF16") + content
        (value,) = struct.unpack(PACKED[info.dtype], content)
    else:
        tensor = read_tensor(header, info)
        value = math.nan if tensor is None else float(tensor.flatten()[0])
    # 2.7 in float32 is 2.7000000476...; it has seven significant digits
    number = float(f"{value:.7g}")
    return number if math.isfinite(number) else None


def read_bytes(header: Header, info: TensorInfo, count: int | None = None) -> bytes:
    """A tensor's bytes, or the first `count` of them. Raises LoraFileError."""
    length = info.end - info.start if count is None else count
    with _opened(header) as stream:
        stream.seek(header.data_start + info.start)
        content = stream.read(length)
    if len(content) < length:
        raise _changed(header)
    return content


@contextmanager
def _opened(header: Header) -> Iterator[BufferedReader]:
    try:
        with header.path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise LoraFileError(
            "{path} cannot be read: {reason}",
            hint="Check the permissions and the disk.",
            path=header.path,
            reason=error.strerror or error,
        ) from error


def _changed(header: Header) -> LoraFileError:
    return LoraFileError(
        "{path} has changed while it was read",
        hint="Wait until it is whole, then try again.",
        path=header.path,
    )
