from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from lora_trainer.captioning import source
from lora_trainer.captioning.captioner import TRANSFORMERS
from lora_trainer.captioning.source import DownloadStopped, find, missing_files
from lora_trainer.errors import CaptionerError
from lora_trainer.settings.captioning import from_mapping
from tests.captioning.hub import serve
from tests.captioning.tiny_captioners import sharded, tiny_blip, tiny_qwen, tiny_tagger


class Listener:
    def __init__(self, stop=False):
        self.totals, self.done, self.stop = [], [], stop

    def fetching(self, model, total):
        self.totals.append(total)

    def fetched(self, done):
        self.done.append(done)

    def stop_asked(self):
        return self.stop


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A hub's cache of this test's own; the network is on unless a test says otherwise."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    return tmp_path / "hub"


def settings(captioner="blip", **changes):
    return from_mapping({"input": "x", "captioner": captioner, **changes})


def test_a_folder_is_used_as_it_is():
    assert find(settings(model=str(tiny_blip())), Listener()) == tiny_blip()
    assert find(settings("wd", model=str(tiny_tagger())), Listener()) == tiny_tagger()


def test_a_folder_that_lacks_something_is_named_with_it(tmp_path):
    folder = shutil.copytree(tiny_blip(), tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CaptionerError, match=r"config\.json and model\.safetensors is missing"):
        find(settings(model=str(folder)), Listener())


def test_weights_in_parts_are_counted_one_by_one(tmp_path):
    folder = sharded(tiny_qwen(), tmp_path / "parts")
    assert missing_files(folder, TRANSFORMERS) == []
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert missing_files(folder, TRANSFORMERS) == ["model-00002-of-00002.safetensors"]


def test_what_is_neither_a_folder_nor_an_id_gets_a_sentence():
    with pytest.raises(CaptionerError, match="there is no model folder"):
        find(settings(model="C:\\models\\my blip"), Listener())


def test_a_model_is_fetched_once_and_then_found_in_the_cache(monkeypatch):
    listener = Listener()
    with serve("me/tiny-blip", tiny_blip()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = find(settings(model="me/tiny-blip"), listener)
        assert sorted(hub.asked) == sorted(path.name for path in tiny_blip().iterdir())
        fetched = len(hub.asked)
        assert find(settings(model="me/tiny-blip"), Listener()) == folder
        assert len(hub.asked) == fetched
    assert (folder / "model.safetensors").read_bytes() == (
        tiny_blip() / "model.safetensors"
    ).read_bytes()
    total = sum(path.stat().st_size for path in tiny_blip().iterdir())
    assert listener.totals == [0, total] and listener.done[-1] == total
    # the hub is gone now
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find(settings(model="me/tiny-blip"), Listener()) == folder


def test_only_what_is_read_is_fetched_and_the_weights_once(tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_blip(), tmp_path / "model")
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "flax_model.msgpack"):
        (folder / name).write_bytes(b"1")
    with serve("me/blip", folder) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        find(settings(model="me/blip"), Listener())
    assert sorted(hub.asked) == sorted(path.name for path in tiny_blip().iterdir())


def test_a_tagger_is_a_model_and_its_table(monkeypatch):
    with serve("me/tagger", tiny_tagger()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert (find(settings("wd", model="me/tagger"), Listener()) / "model.onnx").is_file()
    assert sorted(hub.asked) == ["model.onnx", "selected_tags.csv"]


def test_a_half_fetched_model_is_completed(monkeypatch, empty_cache):
    with serve("me/tiny-blip", tiny_blip()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = find(settings(model="me/tiny-blip"), Listener())
        (folder / "model.safetensors").resolve().unlink()
        (folder / "model.safetensors").unlink()
        hub.asked.clear()
        assert find(settings(model="me/tiny-blip"), Listener()) == folder
    assert hub.asked == ["model.safetensors"]


def test_a_stop_ends_the_fetch(monkeypatch):
    monkeypatch.setattr(source, "POLL_SECONDS", 0.0)
    with serve("me/tiny-blip", tiny_blip()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(DownloadStopped):
            find(settings(model="me/tiny-blip"), Listener(stop=True))


def test_offline_the_sentence_says_which_model_how_large_and_where_it_belongs(
    monkeypatch, empty_cache
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CaptionerError) as caught:
        find(settings("qwen"), Listener())
    assert (
        str(caught.value)
        == "the model Qwen/Qwen2-VL-2B-Instruct (4.4 GB) is not on this disk, and "
        "HF_HUB_OFFLINE forbids the download"
    )
    assert str(empty_cache) in str(caught.value.hint)


def test_a_model_that_does_not_exist_gets_a_sentence(monkeypatch):
    with serve("me/tiny-blip", tiny_blip()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(CaptionerError, match="has no model me/tinyblip"):
            find(settings(model="me/tinyblip"), Listener())


def test_a_hub_that_cannot_be_reached_gets_a_sentence(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CaptionerError) as caught:
        find(settings("blip-large"), Listener())
    start = (
        "the model Salesforce/blip-image-captioning-large (1.9 GB) cannot be downloaded from "
        "http://127.0.0.1:1: Failed to establish a new connection: "
    )
    assert str(caught.value).startswith(start)


def test_a_disk_without_room_is_noticed_before_the_fetch(monkeypatch):
    # there is room for the model, but then there would be hardly any left
    monkeypatch.setattr(source.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with serve("me/tiny-blip", tiny_blip()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(
            CaptionerError,
            match=(
                "needs 1 MB, but the disk with .* has 1.1 GB free, of which 1.1 GB are reserved"
            ),
        ):
            find(settings(model="me/tiny-blip"), Listener())
    assert hub.asked == []


def test_the_webuis_own_blip_is_used_before_anything_is_fetched(tmp_path, monkeypatch):
    file = tmp_path / "models" / "BLIP" / "model_base_caption_capfilt_large.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find(settings(host_models=str(tmp_path / "models")), Listener()) == file
    assert find(settings(model=str(file)), Listener()) == file
    with pytest.raises(CaptionerError):
        find(settings("blip-large", host_models=str(tmp_path / "models")), Listener())
