"""A file's header: what is read, and what each thing that is no checkpoint is called."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from lora_trainer.checkpoint.header import TensorInfo, read_header
from lora_trainer.errors import CheckpointError
from tests.checkpoint.samples import safetensors_bytes

ONE_TENSOR = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_names_types_shapes_and_metadata_are_read(tmp_path: Path) -> None:
    file = tmp_path / "模型 1.safetensors"
    save_file(
        {"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(4)},
        file,
        metadata={"modelspec.title": "标题"},
    )
    header = read_header(file)
    assert header.tensors == {
        "b": TensorInfo("F32", (4,), 0, 16),
        "a": TensorInfo("F16", (2, 3), 16, 28),
    }
    assert header.metadata == {"modelspec.title": "标题"}
    assert header.data_start + 28 == header.file_size == file.stat().st_size
    assert header.shape("a") == (2, 3)
    assert header.shape("c") is None


BAD_FILES = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(1000), "is filled with zeros"),
    "zip pickle": (b"PK\x03\x04" + bytes(600), "is a pickle (.ckpt, .pt)"),
    "bare pickle": (b"\x80\x02}q\x00X\n\x00\x00\x00state_dictq\x01", "is a pickle (.ckpt, .pt)"),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 42\n",
        "is a git-lfs pointer of 67 bytes",
    ),
    "web page": (b"\n<!DOCTYPE html><html><title>Log in</title></html>", "is a web page"),
    "error message": (b'{"error": "Access to this model is restricted"}', "is a JSON text"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "is a GGUF file"),
    "text": (b"just a few words that mean nothing", "is not a .safetensors file"),
    "three bytes": (b"\x08\x00\x00", "is cut off inside its header: 3 bytes are there"),
    "header longer than the file": (
        (5000).to_bytes(8, "little") + b'{"a":',
        "is cut off inside its header: 13 bytes are there",
    ),
    "header length beyond all bounds": (
        (2**50).to_bytes(8, "little") + b'{"a":',
        "is not a .safetensors file",
    ),
    "header is no JSON": (safetensors_bytes(b'{"a": nonsense}'), "the header of"),
    "header is no table": (safetensors_bytes(b'{"a": [1, 2]}'), "the header of"),
    "impossible shape": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        "the header of",
    ),
    "negative offset": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)),
        "the header of",
    ),
    "a shape of half numbers": (
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [2.5], "data_offsets": [0, 8]}}, bytes(8)
        ),
        "the header of",
    ),
    "a shape beyond any float": (
        safetensors_bytes(
            b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}', bytes(8)
        ),
        "the header of",
    ),
    "true for a number": (
        safetensors_bytes(
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, bytes(1)
        ),
        "the header of",
    ),
    "a number of 5,000 digits": (
        safetensors_bytes(
            b'{"a": {"dtype": "F4", "shape": [1' + b"0" * 5000 + b'], "data_offsets": [0, 0]}}'
        ),
        "the header of",
    ),
    "Infinity": (
        safetensors_bytes(
            b'{"__metadata__": {"a": Infinity}, "b": {"dtype": "U8", "shape": [0], "data_offsets":'
            b" [0, 0]}}"
        ),
        "the header of",
    ),
    "NaN as an offset": (
        safetensors_bytes(b'{"b": {"dtype": "U8", "shape": [0], "data_offsets": [NaN, 0]}}'),
        "the header of",
    ),
    "nested brackets": (safetensors_bytes(b'{"a": ' + b"[" * 100_000), "the header of"),
    "metadata is a list": (
        safetensors_bytes({"__metadata__": ["x"], **ONE_TENSOR}, bytes(8)),
        "the header of",
    ),
    "metadata is a text": (
        safetensors_bytes({"__metadata__": "x", **ONE_TENSOR}, bytes(8)),
        "the header of",
    ),
    "metadata of numbers": (
        safetensors_bytes({"__metadata__": {"x": 1}, **ONE_TENSOR}, bytes(8)),
        "the header of",
    ),
    "a name that occurs twice": (
        safetensors_bytes(b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'),
        "the header of",
    ),
    "half a surrogate pair": (
        safetensors_bytes(rb'{"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'),
        "the header of",
    ),
    "UTF-16": (
        safetensors_bytes(
            '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'.encode("utf-16-le")
        ),
        "the header of",
    ),
    "overlapping tensors": (
        safetensors_bytes(
            {**ONE_TENSOR, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
        ),
        "the header of",
    ),
    "a gap between tensors": (
        safetensors_bytes(
            {**ONE_TENSOR, "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, bytes(16)
        ),
        "the header of",
    ),
    "a size for an empty shape": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 8]}}, bytes(8)),
        "the header of",
    ),
    "tensors cut off": (
        safetensors_bytes(ONE_TENSOR, bytes(5)),
        "is cut off: 74 of 77 bytes are there",
    ),
    "no tensors": (safetensors_bytes({"__metadata__": {"format": "pt"}}), "holds no tensors"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_each_bad_file_gets_its_own_sentence(tmp_path: Path, kind: str) -> None:
    content, sentence = BAD_FILES[kind]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)
    assert str(caught.value.hint)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file"):
        read_header(tmp_path / "nothing.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is not a file but a device or a pipe"):
        read_header(tmp_path / "x.safetensors")


def test_a_path_with_a_null_byte_gets_a_sentence() -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(Path("x\0.safetensors"))


def good_content() -> bytes:
    tensors = {
        f"lora_unet_mid_block_attentions_0_proj_{end}.lora_down.weight": torch.ones(2, 3)
        for end in ("in", "out")
    }
    return save(tensors, {"ss_steps": "12", "modelspec.resolution": "512x512"})


NASTY = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"1" * 5000,
    b"null",
    b"true",
    b'"\\ud800"',
    b"\xff",
    b"-1",
    b"2.5",
    b"[]",
    b"{}",
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file with one thing wrong in its header: a flipped bit, an end, a byte too many, a value of
    another kind.
    """
    length = 8 + int.from_bytes(content[:8], "little")
    place = rng.randrange(length)
    kind = rng.randrange(5)
    if kind == 0:
        return (
            content[:place]
            + bytes([content[place] ^ (1 << rng.randrange(8))])
            + content[place + 1 :]
        )
    if kind == 1:
        return content[: rng.randrange(len(content))]
    if kind == 2:
        return content[:place] + content[place + 1 + rng.randrange(20) :]
    header = content[8:length]
    values = list(re.finditer(rb'\d+|\[[^\[\]]*\]|"[^"]*"|\{[^{}]*\}', header))
    chosen = rng.choice(values)
    header = header[: chosen.start()] + rng.choice(NASTY) + header[chosen.end() :]
    return len(header).to_bytes(8, "little") + header + content[length:]


def test_whatever_is_wrong_in_a_header_it_is_read_or_told(tmp_path: Path) -> None:
    rng, content, file = random.Random(0), good_content(), tmp_path / "x.safetensors"
    told, started = Counter[str](), time.process_time()
    for _ in range(2000):
        file.write_bytes(mutated(content, rng))
        try:
            header = read_header(file)
        except CheckpointError as error:
            told[error.message.template] += 1
        else:
            told["read"] += 1
            json.dumps(
                {**header.metadata, **dict.fromkeys(header.tensors)}, ensure_ascii=False
            ).encode()
    assert {
        "read",
        "the header of {path} is damaged",
        "{path} is cut off inside its header: {size} bytes are there",
    } <= set(told)
    assert time.process_time() - started < 20


def test_a_header_whose_length_looks_like_a_pickle_is_still_read(tmp_path: Path) -> None:
    # 640 is 0x0280: the bytes 80 02 are also how a pickle begins
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(640)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(text, bytes(8)))
    assert list(read_header(tmp_path / "a.safetensors").tensors) == ["a"]


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    trap = (
        b'cbuiltins\nexec\n(S\'open("%s", "w")\'\ntR.'
        % str(tmp_path / "opened").replace("\\", "/").encode()
    )
    for number, start in enumerate((b"\x80\x02", b"")):
        file = tmp_path / f"{number}.ckpt"
        file.write_bytes(start + trap)
        with pytest.raises(CheckpointError):
            read_header(file)
    assert not (tmp_path / "opened").exists()


def test_telling_what_a_file_is_needs_no_torch() -> None:
    modules = ("header", "detect", "architecture", "names", "folder", "parts")
    imports = "; ".join(f"import lora_trainer.checkpoint.{module}" for module in modules)
    code = (
        f"import sys; {imports}; print([name for name in ('torch', 'diffusers', 'transformers') if"
        " name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
