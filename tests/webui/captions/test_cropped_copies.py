"""Copies of a selection, as they go on."""

from __future__ import annotations

import os
import sys
import time

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.webui.captions import cropped_copies
from lora_trainer.webui.captions.caption_export import export
from lora_trainer.webui.captions.cropped_copies import Copies, Copy
from lora_trainer.webui.common.data_folder import DataFolder
from lora_trainer.webui.datasets.caption_store import CaptionStore
from lora_trainer.webui.datasets.registry import Datasets
from tests.dataset.pictures import save


@pytest.fixture
def datasets(tmp_path):
    return Datasets(DataFolder(tmp_path / "data"), lambda: False)


def over(copy, seconds=20.0):
    deadline = time.monotonic() + seconds
    while copy.state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return copy


def test_whoever_sees_that_copies_are_made_finds_their_dataset(datasets, tmp_path, monkeypatch):
    seen = []

    class Watched(Copy):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "state" and value != "running":
                seen.append((value, self.dataset))

    monkeypatch.setattr(cropped_copies, "Copy", Watched)
    save(tmp_path / "in" / "a.png", (80, 60))
    over(
        Copies(datasets).start(
            tmp_path / "in", "small", ["a.png"], size=64, buckets=False, subject=False
        )
    )
    assert seen == [("done", "small")] and [
        path.name for path in datasets.find("small").path.glob("*.png")
    ] == ["a.png"]


def test_of_copies_that_came_to_nothing_no_empty_dataset_stays(datasets, tmp_path):
    save(tmp_path / "in" / "a.png", (80, 60))
    copy = over(
        Copies(datasets).start(
            tmp_path / "in", "small", ["gone.png"], size=64, buckets=False, subject=False
        )
    )
    assert (copy.state, copy.dataset, datasets.all()) == ("failed", None, []) and "gone.png" in str(
        copy.error
    )


@pytest.mark.parametrize(("names", "size"), [([], 64), (["a.png"], 16), (["a.png"], 100_000)])
def test_what_makes_no_sense_is_refused_before_there_is_a_dataset(datasets, tmp_path, names, size):
    with pytest.raises(DatasetError):
        Copies(datasets).start(tmp_path, "small", names, size=size, buckets=False, subject=False)
    assert datasets.all() == []


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are Unicode")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_captions_of_pictures_whose_names_are_not_utf8_are_exported_all_the_same(tmp_path, kind):
    save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a fox\nA cat sits.", encoding="utf-8")
    (item,) = CaptionStore(tmp_path, follow_links=True).view().items
    assert item.caption == "a fox\nA cat sits."
    assert b"caf?" in export([item], kind)
