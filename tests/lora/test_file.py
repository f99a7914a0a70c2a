from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.errors import LoraFileError
from lora_trainer.lora.file import (
    copy_with_metadata,
    encode_header,
    file_hashes,
    read_header,
    with_hashes,
)


def kohyas_hashes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """As kohya's trainer computes them: of the file with the ss_ keys alone, its bytes after the
    header, and 64 KiB at the first MiB.
    """
    content = safetensors.torch.save(
        tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}
    )
    after_header = content[8 + int.from_bytes(content[:8], "little") :]
    return (
        hashlib.sha256(after_header).hexdigest(),
        hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    )


def lora_file(path: Path, metadata: dict[str, str], size: int = 400_000) -> dict[str, torch.Tensor]:
    tensors = {
        "b": torch.arange(size, dtype=torch.float32),
        "a": torch.arange(10, dtype=torch.float16),
    }
    safetensors.torch.save_file(tensors, path, metadata)
    return tensors


def hashed(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    content, header = path.read_bytes(), read_header(path)
    after_header = content[header.data_start :]
    return with_hashes(
        metadata,
        header.tensors,
        [after_header[:7], after_header[7:]],
        lambda start, length: after_header[start : start + length],
    )


@pytest.mark.parametrize(
    "size",
    [10, 262_000, 400_000],
    ids=["ends before the sample", "ends inside it", "ends after it"],
)
def test_hashes_are_kohyas(size: int, tmp_path: Path) -> None:
    metadata = {
        "ss_output_name": "雪",
        "ss_steps": "100",
        "modelspec.title": "left out",
        "sshs_model_hash": "stale",
    }
    tensors = lora_file(tmp_path / "x.safetensors", metadata, size)
    result = hashed(tmp_path / "x.safetensors", metadata)
    assert (result["sshs_model_hash"], result["sshs_legacy_hash"]) == kohyas_hashes(
        tensors, metadata
    )
    assert result["modelspec.hash_sha256"] == "0x" + result["sshs_model_hash"]


def test_a_header_longer_than_a_mebibyte_is_sampled_too(tmp_path: Path) -> None:
    metadata = {"ss_tag_frequency": "t" * 1_100_000}
    tensors = lora_file(tmp_path / "x.safetensors", metadata, 10)
    assert (
        hashed(tmp_path / "x.safetensors", metadata)["sshs_legacy_hash"]
        == kohyas_hashes(tensors, metadata)[1]
    )


def test_the_header_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    lora_file(tmp_path / "x.safetensors", {}, 10)
    header = read_header(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()[header.data_start :]
    encoded = encode_header(header.tensors, {"z": '{"quoted": "雪"}\n', "a": "1"})
    assert len(encoded) % 8 == 0
    (tmp_path / "y.safetensors").write_bytes(encoded + content)
    with safetensors.safe_open(tmp_path / "y.safetensors", framework="pt") as stored:
        assert stored.metadata() == {"a": "1", "z": '{"quoted": "雪"}\n'}
        assert torch.equal(stored.get_tensor("a"), torch.arange(10, dtype=torch.float16))


def test_a_copy_has_new_metadata_the_same_weights_and_right_hashes(tmp_path: Path) -> None:
    source, target = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    tensors = lora_file(
        source, {"ss_output_name": "x", "sshs_model_hash": "stale", "other": "kept"}
    )
    copy_with_metadata(source, target, {"ss_output_name": "a much longer name"})
    copied = safetensors.torch.load_file(target)
    assert set(copied) == set(tensors)
    assert all(torch.equal(copied[name], tensors[name]) for name in tensors)
    metadata = read_header(target).metadata
    assert (metadata["ss_output_name"], metadata["other"]) == ("a much longer name", "kept")
    assert (metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]) == kohyas_hashes(
        tensors, dict(metadata)
    )


def test_a_copy_of_a_file_without_hashes_gets_none(tmp_path: Path) -> None:
    lora_file(tmp_path / "x.safetensors", {"ss_output_name": "x"})
    copy_with_metadata(
        tmp_path / "x.safetensors", tmp_path / "y.safetensors", {"ss_output_name": "y"}
    )
    assert read_header(tmp_path / "y.safetensors").metadata == {"ss_output_name": "y"}


def test_the_base_models_hashes_are_those_the_webui_shows(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "base.safetensors").write_bytes(content)
    assert file_hashes(tmp_path / "base.safetensors") == (
        hashlib.sha256(content).hexdigest(),
        hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 600, "is a pickle"),
        (b"\x10\0\0\0\0\0\0\0{}", "cut off"),
        (b"<html>" + b" " * 600, "web page"),
    ],
)
def test_what_is_not_a_safetensors_file_gets_a_sentence(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LoraFileError, match=sentence) as caught:
        read_header(tmp_path / "x.safetensors")
    assert "Choose a LoRA" in str(caught.value.hint)
