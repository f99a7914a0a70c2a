"""The dataset's trash: an image with its caption is in its place or in the trash, as a whole,
whatever comes in between; and notes are only text.
"""

from __future__ import annotations

import json
import shutil
import sys
import time

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.webui.datasets import image_trash
from lora_trainer.webui.datasets.caption_store import CaptionChange, CaptionStore, key_of
from tests.dataset.pictures import save
from tests.hardening import faults
from tests.hardening.harness import in_child

CAPTIONS = {"a.png": "one", "b.png": "two", "c.png": "three"}


def make(folder):
    """Captions in a table and in a text, and one image with a mask."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(CAPTIONS):
        save(folder / name, size=(40, 30), colour=("red", "green", "blue")[number])
    (folder / "metadata.csv").write_text("file_name,text\na.png,one\nb.png,two\n", encoding="utf-8")
    (folder / "c.txt").write_text("three", encoding="utf-8")
    save(folder / "masks" / "a.png", size=(40, 30), colour="white")
    return CaptionStore(folder, follow_links=True)


def remove_all(store):
    store.remove([item.key for item in store.view().items if item.name != "b.png"])


def standing(store):
    return {item.name: item.caption for item in store.view().items}


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_at_any_moment_an_image_is_in_its_place_or_in_the_trash_with_its_caption(tmp_path):
    def act(at=None):
        watching = faults.watch(tmp_path, at)
        remove_all(store)
        return watching.noted

    store = make(tmp_path / "set")
    operations = len(in_child(act).value)
    assert operations > 20
    for at in range(1, operations + 1):
        store = make(tmp_path / "set")
        assert in_child(lambda at=at: act(at)).how == "killed"
        after = CaptionStore(tmp_path / "set", follow_links=True)
        in_place, removed = (
            standing(after),
            {entry.name: entry.caption for entry in after.removed()},
        )
        assert in_place | removed == CAPTIONS and not set(in_place) & set(removed), at
        assert in_place == {name: CAPTIONS[name] for name in in_place}, at
        after.restore([entry.key for entry in after.removed()])
        assert standing(after) == CAPTIONS and (tmp_path / "set" / "masks" / "a.png").exists(), at
        assert not list((tmp_path / "set" / ".lora_trainer" / "removed").glob("*")), at


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_where_the_disk_is_full_nothing_is_half_removed(tmp_path):
    def act(at):
        faults.watch(tmp_path, at, faults.full)
        remove_all(store)

    for at in range(1, 16, 3):
        store = make(tmp_path / "set")
        outcome = in_child(lambda at=at: act(at))
        assert outcome.how == "sentence" and (
            "disk is full" in outcome.text or "free space" in outcome.text
        ), at
        after = CaptionStore(tmp_path / "set", follow_links=True)
        assert standing(after) == CAPTIONS and after.removed() == []


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../elsewhere.png"},
        {"name": ""},
        {"name": "x" * 400 + ".png"},
        {"rows": "none"},
        {"time": "soon"},
        {"name": "a\0.png"},
    ],
    ids=str,
)
def test_a_note_that_is_none_hides_no_other(tmp_path, change):
    store = make(tmp_path / "set")
    remove_all(store)
    note = next(entry.folder for entry in store.removed() if entry.name == "a.png") / "removed.json"
    note.write_text(
        json.dumps({**json.loads(note.read_text(encoding="utf-8")), **change}), encoding="utf-8"
    )
    assert [entry.name for entry in store.removed()] == ["c.png"]
    store.restore([store.removed()[0].key])
    assert standing(store) == {"b.png": "two", "c.png": "three"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sub/a.png"},
        {"masks": ["/mask.png"]},
        {"rows": [{"file": "../table.csv", "text": "x"}]},
    ],
    ids=str,
)
def test_a_note_that_leads_out_of_the_dataset_brings_nothing_back(tmp_path, change):
    store = CaptionStore(make(tmp_path / "set").path, follow_links=False)
    remove_all(store)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set" / "sub").symlink_to(tmp_path / "elsewhere")
    entry = next(entry for entry in store.removed() if entry.name == "a.png")
    note = entry.folder / "removed.json"
    note.write_text(
        json.dumps({**json.loads(note.read_text(encoding="utf-8")), **change}), encoding="utf-8"
    )
    with pytest.raises(DatasetError, match="recorded path is outside the folder"):
        store.restore([entry.key])
    assert list((tmp_path / "elsewhere").iterdir()) == [] and len(list(entry.folder.iterdir())) > 1


def test_an_image_that_took_the_place_meanwhile_stays(tmp_path):
    store = make(tmp_path / "set")
    remove_all(store)
    key = next(entry.key for entry in store.removed() if entry.name == "a.png")
    save(tmp_path / "set" / "a.png", size=(8, 8), colour="black")
    with pytest.raises(DatasetError, match="there is another a.png"):
        store.restore([key])
    assert len(store.removed()) == 2


def test_an_entry_that_another_process_takes_out_while_it_is_looked_at_is_passed_over(
    tmp_path, monkeypatch
):
    remove_all(make(tmp_path / "set"))
    folders = image_trash._folders
    monkeypatch.setattr(
        image_trash, "_folders", lambda parent: [parent / "taken", *folders(parent)]
    )
    assert standing(CaptionStore(tmp_path / "set", follow_links=True)) == {"b.png": "two"}


def test_captions_are_written_at_once_where_a_removal_waits_to_be_taken_back(tmp_path):
    store = make(tmp_path / "set")
    remove_all(store)
    folder = next(entry.folder for entry in store.removed() if entry.name == "a.png")
    shutil.copy(folder / "a.png", tmp_path / "set" / "a.png")
    (folder / "a.png").unlink()  # as if the image had not moved yet
    after = CaptionStore(tmp_path / "set", follow_links=True)
    began = time.monotonic()
    after.write_captions([CaptionChange(key=key_of("b.png"), caption="four", was="two")])
    assert time.monotonic() - began < 5 and standing(after) == {"a.png": "one", "b.png": "four"}
