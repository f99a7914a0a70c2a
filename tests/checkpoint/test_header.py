"""A file's header: what is read, and what each thing that is no checkpoint is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.checkpoint.header import TensorInfo, read_header
from lora_trainer.errors import CheckpointError
from tests.checkpoint.samples import safetensors_bytes

ONE_TENSOR = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_names_types_shapes_and_metadata_are_read(tmp_path: Path) -> None:
    file = tmp_path / "模型 1.safetensors"
    save_file({"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(4)}, file, metadata={"modelspec.title": "标题"})
    header = read_header(file)
    assert header.tensors == {"b": TensorInfo("F32", (4,), 0, 16), "a": TensorInfo("F16", (2, 3), 16, 28)}
    assert header.metadata == {"modelspec.title": "标题"}
    assert header.data_start + 28 == header.file_size == file.stat().st_size
    assert header.shape("a") == (2, 3)
    assert header.shape("c") is None


BAD_FILES = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(1000), "is filled with zeros"),
    "zip pickle": (b"PK\x03\x04" + bytes(600), "is a pickle (.ckpt, .pt)"),
    "bare pickle": (b"\x80\x02}q\x00X\n\x00\x00\x00state_dictq\x01", "is a pickle (.ckpt, .pt)"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 42\n", "is a git-lfs pointer of 67 bytes"),
    "web page": (b"\n<!DOCTYPE html><html><title>Log in</title></html>", "is a web page"),
    "error message": (b'{"error": "Access to this model is restricted"}', "is a JSON text"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "is a GGUF file"),
    "text": (b"just a few words that mean nothing", "is not a .safetensors file"),
    "three bytes": (b"\x08\x00\x00", "is cut off inside its header: 3 bytes are there"),
    "header longer than the file": ((5000).to_bytes(8, "little") + b'{"a":', "is cut off inside its header: 13 bytes are there"),
    "header length beyond all bounds": ((2**50).to_bytes(8, "little") + b'{"a":', "is not a .safetensors file"),
    "header is no JSON": (safetensors_bytes(b'{"a": nonsense}'), "the header of"),
    "header is no table": (safetensors_bytes(b'{"a": [1, 2]}'), "the header of"),
    "impossible shape": (safetensors_bytes({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "the header of"),
    "negative offset": (safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)), "the header of"),
    "tensors cut off": (safetensors_bytes(ONE_TENSOR, bytes(5)), "is cut off: 74 of 77 bytes are there"),
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


def test_a_header_whose_length_looks_like_a_pickle_is_still_read(tmp_path: Path) -> None:
    # 640 is 0x0280: the bytes 80 02 are also how a pickle begins
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(640)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(text, bytes(8)))
    assert list(read_header(tmp_path / "a.safetensors").tensors) == ["a"]


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    trap = b'cbuiltins\nexec\n(S\'open("%s", "w")\'\ntR.' % str(tmp_path / "opened").replace("\\", "/").encode()
    for number, start in enumerate((b"\x80\x02", b"")):
        file = tmp_path / f"{number}.ckpt"
        file.write_bytes(start + trap)
        with pytest.raises(CheckpointError):
            read_header(file)
    assert not (tmp_path / "opened").exists()


def test_telling_what_a_file_is_needs_no_torch() -> None:
    modules = ("header", "detect", "architecture", "names", "folder", "parts")
    imports = "; ".join(f"import lora_trainer.checkpoint.{module}" for module in modules)
    code = f"import sys; {imports}; print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
