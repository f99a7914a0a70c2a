"""Encoded images and captions that a dataset keeps for later trainings."""

from __future__ import annotations

import json
import os

import pytest
import torch

from lora_trainer.checkpoint.load import Checkpoint
from lora_trainer.runs.folder import RunFolder
from lora_trainer.training import batches
from lora_trainer.training.encoded_cache import EncodedCache
from lora_trainer.worker import job
from tests.families import tiny_flux
from tests.made import begin, losses


def kept_files(dataset):
    return sorted((dataset / ".lora_trainer" / "encoded").glob("*.safetensors"))


def test_what_was_put_is_there_until_it_is_damaged(tmp_path):
    cache = EncodedCache(tmp_path, "bf16")
    cache.put("one", {"moments": torch.arange(4.0)})
    assert torch.equal(cache.get("one")["moments"], torch.arange(4.0))
    assert cache.get("two") is None
    [file] = kept_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert cache.get("one") is None


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    cache = EncodedCache(tmp_path, "")
    for name in ("first", "second", "third"):
        cache.put(name, {"moments": torch.zeros(1000)})
    for hours, file in enumerate(kept_files(tmp_path)):
        os.utime(file, (3600 * hours, 3600 * hours))
    cache.get("first")  # the oldest, and used now
    size = kept_files(tmp_path)[0].stat().st_size
    cache.trim(2 * size)
    assert [file.stem for file in kept_files(tmp_path)] == ["first", "third"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / ".lora_trainer").write_text("a file where the folder would be")
    cache = EncodedCache(tmp_path, "")
    cache.put("one", {"moments": torch.zeros(1)})
    assert cache.get("one") is None
    cache.trim()


@pytest.fixture
def loaded(monkeypatch):
    """Which models a run loads, and when it reads all weights only to check them."""
    found = []

    def noted(name):
        real = getattr(Checkpoint, name)

        def load(self, *values, **named):
            found.append(name)
            return real(self, *values, **named)

        monkeypatch.setattr(Checkpoint, name, load)

    noted("load_vae")
    noted("load_text_encoders")
    noted("require_usable")
    return found


QUIET = {"sample_every": 1000, "validation_split": 0}
"""Without prompts of its own, for which text encoders would be loaded: the first caption is the
default.
"""


def run(place, name, **changes):
    folder = begin(place, name, **{"images": 2, **QUIET, **changes})
    assert job.run(folder.path) == job.FINISHED
    return losses(folder)


def phases(path):
    """Those that a run has told."""
    return [event.phase for event in RunFolder(path).read_events() if event.kind == "phase"]


def test_a_second_training_on_the_same_images_encodes_nothing(tmp_path, loaded):
    first = run(tmp_path, "first", images=5, cache_latents="memory")
    check, reads, *others = loaded
    assert (check, reads) == ("require_usable", "load_text_encoders") and "load_vae" in others
    begins = ["checking", "checking", "encoding", "loading", "encoding", "loading"]
    assert phases(tmp_path / "first")[:6] == begins
    loaded.clear()
    on_disk = run(tmp_path, "second", images=5, cache_latents="disk")
    in_memory = run(tmp_path, "third", images=5, cache_latents="memory")
    # the pictures of the LoRA's card need the VAE, after the training
    assert not {"load_text_encoders", "require_usable"} & {*loaded}
    assert phases(tmp_path / "second")[:4] == begins[:4]
    assert phases(tmp_path / "second").count("encoding") == 1
    assert first == on_disk == in_memory


def test_what_encoding_depends_on_is_encoded_anew(tmp_path, loaded):
    run(tmp_path, "first", max_train_steps=1)
    kept = kept_files(tmp_path / "images")
    assert kept
    for number, changes in enumerate(
        [
            {"keep_encoded": False},
            {"resolution": 128},
            {"background": "black"},
            {"vae_tiling": True},
        ]
    ):
        loaded.clear()
        run(tmp_path, f"with {number}", max_train_steps=1, **changes)
        assert loaded[1] in ("load_vae", "load_text_encoders"), changes
        assert (kept_files(tmp_path / "images") == kept) == ("keep_encoded" in changes)
        kept = kept_files(tmp_path / "images")


def test_captions_are_encoded_anew_with_another_tokenizer(tmp_path, loaded):
    base_model = str(tiny_flux.write(tmp_path / "models"))
    flux = {"base_model": base_model, "device": "cpu", "max_train_steps": 1}
    run(tmp_path, "first", **flux)
    loaded.clear()
    run(tmp_path, "second", **flux)
    assert "load_text_encoders" not in loaded
    made = json.loads(tiny_flux.tokenizer().to_str())
    made["model"]["vocab"].reverse()
    made["model"]["unk_id"] = len(made["model"]["vocab"]) - 3
    asked = tmp_path / "t5"
    asked.mkdir()
    (asked / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    run(tmp_path, "third", **flux, tokenizers=str(asked))
    assert "load_text_encoders" in loaded


def test_a_folders_key_changes_with_a_file_in_it(tmp_path):
    inner = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    inner.parent.mkdir()
    inner.write_bytes(b"1")
    before = batches.file_key(tmp_path)
    assert batches.file_key(tmp_path) == before
    inner.write_bytes(b"12")
    assert batches.file_key(tmp_path) != before


def test_a_dataset_too_large_to_be_kept_is_not_kept_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "LIMIT", 1000)
    run(tmp_path, "first", max_train_steps=1)
    assert kept_files(tmp_path / "images") == []
