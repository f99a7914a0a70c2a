"""The index says what a fresh look would say, whoever wrote, and asks the folder no more than it
must.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

from lora_trainer.dataset import edits, index
from lora_trainer.dataset.index import Index
from lora_trainer.dataset.listing import list_folder
from lora_trainer.dataset.sources import read_captions
from lora_trainer.settings.training import DatasetSettings
from tests.dataset.pictures import save

OLD = 1.7e9
"""A time that no file of this moment has."""


def make(folder, files, images=("a.png", "b.png", "c.png")):
    for name in images:
        save(folder / name, size=(8, 8))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    settle(folder)
    return Index(folder, follow_links=True)


def settle(folder):
    """All of it was last changed long ago."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (OLD, OLD))


def told(reading):
    return {path.name: caption.text for path, caption in reading.captions.by_image.items()}


def write(known, **captions):
    """{stem: caption} by way of the trainer's own writing."""
    reading = known.refresh()
    images = {image.stem: image for image in reading.listing.images}
    changes = {images[stem]: caption for stem, caption in captions.items()}
    written = edits.write_captions(reading.listing, reading.captions, changes, known.tables)
    return known.apply_write(changes, written)


def fresh(folder):
    return read_captions(list_folder(folder), DatasetSettings(train_data_dir=folder))


@pytest.fixture
def listed(monkeypatch):
    """Counts how often each folder is listed."""
    counts = Counter()
    scandir = os.scandir

    def counting(path):
        counts[str(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    return counts


# --- other programs -------------------------------------------------------------------------------


def test_what_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    known = make(tmp_path, {"a.txt": "one", "metadata.csv": "b.png,two\n"})
    first = known.refresh()
    monkeypatch.setattr(index, "read_caption_file", None)
    monkeypatch.setattr(index, "read_metadata", None)
    monkeypatch.setattr(index, "list_folder", None)
    assert known.refresh() is first is known.refresh_files([tmp_path / "a.png", tmp_path / "a.txt"])


@pytest.mark.parametrize("name", ["a.txt", "deep/metadata.csv"])
def test_an_edit_in_place_is_seen_at_the_next_look(tmp_path, name):
    save(tmp_path / "deep" / "d.png", size=(8, 8))
    known = make(tmp_path, {"a.txt": "one", "deep/metadata.csv": "d.png,one\n"})
    before = known.refresh()
    (tmp_path / name).write_text((tmp_path / name).read_text().replace("one", "four"))
    now = known.refresh()
    assert now.serial != before.serial
    assert list(told(now).values()).count("four") == 1


@pytest.mark.parametrize("name", ["a.txt", "metadata.csv"])
def test_two_edits_of_one_moment_and_one_size_are_two(tmp_path, name):
    known = make(tmp_path, {"a.txt": "one", "metadata.csv": "b.png,one\n"})
    path, now = tmp_path / name, time.time()
    for word in ("two", "six"):
        path.write_text(path.read_text().replace("one", word).replace("two", word))
        os.utime(path, (now, now))  # as on a disk whose times are coarse
        assert word in told(known.refresh()).values()


def test_files_that_come_and_go_are_seen_however_old_they_and_the_folder_look(tmp_path):
    known = make(tmp_path, {"a.txt": "one"})
    known.refresh()
    save(tmp_path / "new" / "d.png", size=(8, 8))
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.png").unlink()
    settle(tmp_path)
    now = known.refresh()
    assert told(now) == {"a.png": "one", "b.png": "two"}
    assert [path.name for path in now.listing.images] == ["a.png", "b.png", "d.png"]


@pytest.mark.parametrize("change", ["b.txt", "a.txt", "a.png"])
def test_a_glance_sees_what_came_and_what_its_own_files_became(tmp_path, change):
    known = make(tmp_path, {"a.txt": "one"})
    before = known.refresh()
    (tmp_path / change).write_bytes(b"another program's")
    assert known.refresh_files([tmp_path / "a.png", tmp_path / "a.txt"]).serial != before.serial


def test_what_a_glance_does_not_ask_about_is_seen_at_the_next_look(tmp_path):
    known = make(tmp_path, {"a.txt": "one", "b.txt": "two"})
    before = known.refresh()
    (tmp_path / "b.txt").write_text("another program's")
    after = write_alone(known, before, tmp_path / "a.png", "mine")
    assert told(after) == {"a.png": "mine", "b.png": "two"}
    assert told(known.refresh()) == {"a.png": "mine", "b.png": "another program's"}


def write_alone(known, reading, image, caption):
    assert known.refresh_files([image, image.with_suffix(".txt")]) is reading
    written = edits.write_captions(reading.listing, reading.captions, {image: caption})
    return known.apply_write({image: caption}, written)


def test_what_another_program_writes_right_after_us_is_seen(tmp_path):
    known = make(tmp_path, {"a.txt": "one", "b.txt": "two"})
    write(known, a="six")
    details = (tmp_path / "a.txt").stat()
    (tmp_path / "a.txt").write_text("ten")
    os.utime(tmp_path / "a.txt", ns=(details.st_atime_ns, details.st_mtime_ns))
    assert told(known.refresh()) == {"a.png": "ten", "b.png": "two"}


# --- our own writing ------------------------------------------------------------------------------

FOLDERS = {
    "texts": {"a.txt": "one", "b.txt": "two", "c.txt": "three"},
    "some texts": {"a.txt": "one", "b.caption": "two"},
    "table": {"metadata.csv": 'file_name,text\na.png,one\nb.png,"two, too"\nc.png,three\n'},
    "table with gaps": {"metadata.csv": "file_name,text\na.png,one\nz.png,nobody\n"},
    "table without a header": {"metadata.csv": "a.png,one\r\nb.png,two\r\n"},
    "table of others": {"metadata.csv": "text;note;image\none;x;a.png\ntwo;y;b.png\n"},
    "json lines": {"metadata.jsonl": '{"file_name": "a.png", "text": "one"}\n'},
    "json": {"captions.json": '[{"file_name": "a.png", "text": "one"}]'},
    "both": {"a.txt": "one", "metadata.csv": "a.png,another\nb.png,two\n"},
    "two rows": {"metadata.csv": "a.png,one\na.png,two\nb.png,three\n"},
    "lines": {
        "a.txt": "one thing.\nanother thing.",
        "metadata.csv": 'b.png,"two\n\nlines"\nc.png,x\n',
    },
    "another encoding": {"a.txt": "one", "b.txt": "two"},
    "nothing": {},
    "unclosed": {"metadata.csv": 'a.png,one\nb.png,two\nc.png,"three\n'},
    "shared": {"a.txt": "one", "b.txt": "two"},
}
CAPTIONS = ["fox", 'a "fox", red', "a fox; a wolf", "", "two\nlines here.", "füchse", "x" * 300]


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("seed", range(4))
def test_after_our_own_writing_it_says_what_reading_again_would(tmp_path, layout, seed):
    images = ("a.png", "b.png", "c.png", *(["a.jpg"] if layout == "shared" else []))
    known = make(tmp_path, FOLDERS[layout], images)
    if layout == "another encoding":
        (tmp_path / "b.txt").write_bytes("ein schöner Fuchs für Jürgen".encode("cp1252"))
    draw = random.Random(seed)
    for _ in range(8):
        stems = draw.sample("abc", draw.choice([1, 1, 1, 2]))
        captions = {stem: draw.choice(CAPTIONS) for stem in stems}
        try:
            reading = write(known, **captions)
        except edits.DatasetError:
            known.forget()
            continue
        expected = fresh(tmp_path)
        assert reading.captions.by_image == expected.by_image
        assert reading.captions.rows == expected.rows
        assert reading.captions.spoiled == expected.spoiled
        assert sorted(map(str, reading.captions.findings)) == sorted(map(str, expected.findings))
        for file, table in known.tables.items():
            assert (table, table.data) == (edits.read_metadata(file), file.read_bytes())


@pytest.mark.parametrize("layout", ["texts", "table", "json lines"])
def test_a_written_caption_makes_nothing_else_be_read(tmp_path, monkeypatch, layout):
    known = make(tmp_path, FOLDERS[layout])
    known.refresh()
    monkeypatch.setattr(index, "read_captions", None)
    monkeypatch.setattr(edits, "read_metadata", None)
    monkeypatch.setattr(edits, "parse_csv", None)
    first = {"texts": "a", "table": "b", "json lines": "b"}[layout]
    assert told(write(known, **{first: "new, too"}))[f"{first}.png"] == "new, too"


@pytest.mark.parametrize("layout", ["texts", "table"])
def test_writing_one_caption_after_the_other_lists_the_folder_once_for_each(
    tmp_path, listed, layout
):
    known = make(tmp_path, FOLDERS[layout])
    reading = known.refresh()
    images = {image.stem: image for image in reading.listing.images}
    listed.clear()
    for number, stem in enumerate("abcabc", 1):
        image = images[stem]
        reading = known.refresh_files([image, *reading.listing.texts_beside(image)])
        changes = {image: f"caption {number}"}
        written = edits.write_captions(reading.listing, reading.captions, changes, known.tables)
        known.apply_write(changes, written)
        # and what replacing a file lists, once a process: whether a dead one left something
        assert listed[str(tmp_path)] <= number + 1
