"""A tokenizer.json is found where it lies, and downloaded only if it is nowhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import huggingface_hub
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lora_trainer.checkpoint.parts import TokenizerKind
from lora_trainer.checkpoint.tokenizer_files import (
    add_special_tokens,
    find_tokenizer,
    open_tokenizer,
    require_fitting,
)
from lora_trainer.errors import CheckpointError

KIND = TokenizerKind(
    id="t9",
    name="T9",
    model="Unigram",
    repository="someone/t9",
    other_repositories=("lab/model",),
    diffusers_folder="tokenizer_2",
    host_folders=("lab/model/tokenizer_2",),
)


def write(folder: Path, model: str = "Unigram") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": model}}))
    return folder / "tokenizer.json"


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "webui/models/Stable-diffusion/deep/x.safetensors"


@pytest.mark.parametrize("name", ["t9", "tokenizer_2", "lab/model/tokenizer_2", "."])
def test_in_the_folder_that_was_asked_for(tmp_path, checkpoint, name):
    path = write(tmp_path / "asked" / name)
    assert find_tokenizer(KIND, checkpoint, asked=tmp_path / "asked") == path


def test_what_was_asked_for_has_to_be_there(tmp_path, checkpoint):
    write(tmp_path / "asked", model="BPE")
    with pytest.raises(CheckpointError, match="holds no tokenizer of T9"):
        find_tokenizer(KIND, checkpoint, asked=tmp_path / "asked")


@pytest.mark.parametrize("name", ["t9", "tokenizer_2", "."])
def test_beside_the_text_encoder(tmp_path, checkpoint, name):
    path = write(tmp_path / "text_encoder" / name)
    beside = [tmp_path / "clip/clip.safetensors", tmp_path / "text_encoder/t9.safetensors"]
    assert find_tokenizer(KIND, checkpoint, beside=beside) == path


def test_in_a_diffusers_folder(tmp_path):
    path = write(tmp_path / "whole/tokenizer_2")
    assert find_tokenizer(KIND, tmp_path / "whole") == path


def test_in_the_webui_around_the_checkpoint(tmp_path, checkpoint):
    path = write(tmp_path / "webui/backend/huggingface/lab/model/tokenizer_2")
    assert find_tokenizer(KIND, checkpoint) == path


@pytest.mark.parametrize(
    ("repository", "name"),
    [("someone/t9", "tokenizer.json"), ("lab/model", "tokenizer_2/tokenizer.json")],
)
def test_in_hugging_faces_cache(nothing_cached, checkpoint, repository, name, monkeypatch):
    folder = nothing_cached / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    path = write((folder / "snapshots/abc" / name).parent)
    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda *asked: find(*asked, cache_dir=nothing_cached),
    )
    assert find_tokenizer(KIND, checkpoint) == path


def test_offline_one_sentence_says_what_to_fetch(checkpoint):
    with pytest.raises(CheckpointError, match="tokenizer of T9 is not on this machine") as caught:
        find_tokenizer(KIND, checkpoint)
    assert "tokenizer.json of someone/t9" in str(caught.value.hint)
    assert "\n" not in str(caught.value)


def test_only_the_tokenizers_file_is_downloaded(checkpoint, tmp_path, monkeypatch):
    asked = []

    def download(repository, name, **more):
        asked.append((repository, name))
        return str(write(tmp_path / "there"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_tokenizer(KIND, checkpoint) == tmp_path / "there/tokenizer.json"
    assert asked == [("someone/t9", "tokenizer.json")]


def test_a_webuis_own_folder_need_not_have_it(tmp_path, checkpoint):
    asked = tmp_path / "other" / "backend" / "huggingface"
    asked.mkdir(parents=True)
    path = write(tmp_path / "text_encoder" / "t9")
    beside = [tmp_path / "text_encoder" / "t9xxl.safetensors"]
    assert find_tokenizer(KIND, checkpoint, asked=asked, beside=beside) == path


def test_a_vocabulary_does_where_its_family_reads_it(tmp_path, checkpoint):
    kind = dataclasses.replace(KIND, vocabulary=("vocab.json", "merges.txt"))
    folder = tmp_path / "asked" / "t9"
    folder.mkdir(parents=True)
    (folder / "vocab.json").touch()
    with pytest.raises(CheckpointError, match="holds no tokenizer of T9"):
        find_tokenizer(kind, checkpoint, asked=tmp_path / "asked")
    (folder / "merges.txt").touch()
    assert find_tokenizer(kind, checkpoint, asked=tmp_path / "asked") == folder / "vocab.json"
    assert find_tokenizer(kind, checkpoint, asked=folder) == folder / "vocab.json"
    path = write(folder)
    assert find_tokenizer(kind, checkpoint, asked=tmp_path / "asked") == path


def test_a_damaged_tokenizer_that_was_asked_for_is_named(tmp_path, checkpoint):
    write(tmp_path / "t9").write_text("{cut off")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        find_tokenizer(KIND, checkpoint, asked=tmp_path / "t9")


def test_a_damaged_tokenizer_beside_the_text_encoder_is_not_called_missing(tmp_path, checkpoint):
    write(tmp_path / "text_encoder" / "t9").write_text("{cut off")
    beside = [tmp_path / "text_encoder" / "t9.safetensors"]
    with pytest.raises(CheckpointError, match=r"t9.tokenizer\.json cannot be read: it is damaged"):
        find_tokenizer(KIND, checkpoint, beside=beside)
    # one that is whole goes before it
    path = write(tmp_path / "text_encoder" / "tokenizer_2")
    assert find_tokenizer(KIND, checkpoint, beside=beside) == path


def test_a_folder_that_is_none_is_named(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="there is no folder .*gone"):
        find_tokenizer(KIND, checkpoint, asked=tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"tokenizers is .*tokenizer\.json, which is a file"):
        find_tokenizer(KIND, checkpoint, asked=write(tmp_path / "asked"))


# --- what is opened -------------------------------------------------------------------------------

WITH_SPECIAL = dataclasses.replace(KIND, special=("<|a|>", "<|b|>", "<|c|>"))


def trained(path: Path, *special: str) -> Path:
    """A small tokenizer.json that knows these special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a b"], trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))
    return path


def test_special_tokens_that_a_file_lacks_are_added_after_its_own(tmp_path):
    path = trained(tmp_path / "tokenizer.json")
    tokenizer = open_tokenizer(path, WITH_SPECIAL)
    assert len(tokenizer.encode("<|a|>").ids) == 5
    assert add_special_tokens(tokenizer, path, WITH_SPECIAL)
    assert tokenizer.encode("<|b|>a<|c|>").ids == [257, tokenizer.token_to_id("a"), 258]
    assert not add_special_tokens(tokenizer, path, WITH_SPECIAL)


def test_a_file_with_the_first_ones_is_completed_and_one_with_others_refused(tmp_path):
    path = trained(tmp_path / "tokenizer.json", "<|a|>", "<|b|>")
    tokenizer = open_tokenizer(path, WITH_SPECIAL)
    assert add_special_tokens(tokenizer, path, WITH_SPECIAL)
    assert tokenizer.encode("<|c|>").ids == [258]
    tokenizer = open_tokenizer(trained(path, "<|b|>"), WITH_SPECIAL)
    with pytest.raises(CheckpointError, match="only some of the special tokens of T9"):
        add_special_tokens(tokenizer, path, WITH_SPECIAL)


def test_a_tokenizer_with_more_tokens_than_its_encoder_knows_is_refused(tmp_path):
    path, encoder = trained(tmp_path / "tokenizer.json", "<|a|>"), tmp_path / "enc.safetensors"
    tokenizer = open_tokenizer(path, WITH_SPECIAL)
    require_fitting(tokenizer, path, 257, encoder)
    with pytest.raises(CheckpointError, match="up to number 256, .* in .*enc.* knows 256"):
        require_fitting(tokenizer, path, 256, encoder)
