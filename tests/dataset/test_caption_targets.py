from __future__ import annotations

import os
import sys

import pytest

from lora_trainer.dataset.caption_targets import CaptionTargets
from lora_trainer.errors import DatasetError
from tests.dataset.pictures import save


def places(folder, *names, output=None, as_texts=False):
    for name in names:
        save(folder / name, colour=(len(name), 7, len(str(name)) * 3))
    return CaptionTargets(folder, output, as_texts=as_texts)


def write(folder_places, captions):
    root = folder_places.root
    return folder_places.write(
        {root / name: text for name, text in captions.items()}, folder_places.read()
    )


def text_of(path):
    return path.read_text(encoding="utf-8-sig")


def test_without_a_metadata_file_a_new_one_is_made(tmp_path):
    assert (
        write(places(tmp_path, "a.png", "sub/b.png"), {"a.png": "one", "sub/b.png": "two, three"})
        == set()
    )
    assert (
        text_of(tmp_path / "metadata.csv") == 'file_name,text\na.png,one\nsub/b.png,"two, three"\n'
    )


def test_other_rows_and_columns_survive(tmp_path):
    before = "file_name,text,score\nb.png,by hand,0.5\ngone.png,lost,1\na.png,old,0.25\n"
    (tmp_path / "metadata.csv").write_text(before, encoding="utf-8")
    write(places(tmp_path, "a.png", "b.png", "c.png"), {"a.png": "new", "c.png": "third"})
    assert (
        text_of(tmp_path / "metadata.csv") == "file_name,text,score\nb.png,by"
        " hand,0.5\ngone.png,lost,1\na.png,new,0.25\nc.png,third,\n"
    )


def test_a_jsonl_keeps_its_other_keys(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "old", "score": 1}\n', encoding="utf-8"
    )
    write(places(tmp_path, "a.png", "b.png"), {"a.png": "new", "b.png": "two"})
    assert (
        text_of(tmp_path / "metadata.jsonl")
        == '{"file_name": "a.png", "text": "new", "score": 1}\n{"file_name": "b.png", "text":'
        ' "two"}\n'
    )


def test_a_new_jsonl_is_made_where_it_is_asked_for(tmp_path):
    write(places(tmp_path, "a.png", output=tmp_path / "metadata.jsonl"), {"a.png": "one"})
    assert text_of(tmp_path / "metadata.jsonl") == '{"file_name": "a.png", "text": "one"}\n'


def test_text_files_lie_beside_the_images(tmp_path):
    write(places(tmp_path, "a.png", "b.v1.png", as_texts=True), {"a.png": "one", "b.v1.png": "two"})
    assert text_of(tmp_path / "a.txt") == "one\n" and text_of(tmp_path / "b.v1.txt") == "two\n"
    assert not (tmp_path / "metadata.csv").exists()


def test_two_pictures_of_one_name_get_a_text_file_each(tmp_path):
    write(places(tmp_path, "a.png", "a.jpg", as_texts=True), {"a.png": "one", "a.jpg": "two"})
    assert text_of(tmp_path / "a.png.txt") == "one\n" and text_of(tmp_path / "a.jpg.txt") == "two\n"


def test_a_text_target_also_changes_the_row_that_is_read_first(tmp_path):
    (tmp_path / "metadata.csv").write_text("a.png,old\n", encoding="utf-8")
    target = places(tmp_path, "a.png", as_texts=True)
    write(target, {"a.png": "new"})
    assert text_of(tmp_path / "a.txt") == "new\n"
    assert text_of(tmp_path / "metadata.csv") == "a.png,new\n"


def test_a_row_that_is_written_leaves_no_stale_text_file_behind(tmp_path):
    for name, text in (("a.txt", "old\n"), ("a.caption", "older\n"), ("b.txt", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    write(places(tmp_path, "a.png", "b.png"), {"a.png": "new", "b.png": "two"})
    assert text_of(tmp_path / "metadata.csv") == "file_name,text\na.png,new\nb.png,two\n"
    assert (
        text_of(tmp_path / "a.txt"),
        text_of(tmp_path / "a.caption"),
        text_of(tmp_path / "b.txt"),
    ) == ("new\n", "new\n", "")


@pytest.mark.parametrize("as_texts", [True, False])
def test_a_text_file_that_two_pictures_share_is_left_alone(tmp_path, as_texts):
    (tmp_path / "a.txt").write_text("both\n", encoding="utf-8")
    assert (
        write(
            places(tmp_path, "a.png", "a.jpg", as_texts=as_texts), {"a.png": "one", "a.jpg": "two"}
        )
        == set()
    )
    assert text_of(tmp_path / "a.txt") == "both\n"


def test_a_new_csv_beside_a_jsonl_loses_no_caption_from_sight(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "by hand"}\n', encoding="utf-8"
    )
    target = places(tmp_path, "a.png", "b.png", output=tmp_path / "metadata.csv")
    write(target, {"b.png": "two"})
    assert {image.name: current.caption for image, current in target.read().items()} == {
        "a.png": "by hand",
        "b.png": "two",
    }


def test_an_output_elsewhere_counts_alone(tmp_path):
    images = tmp_path / "images"
    (tmp_path / "out").mkdir()
    target = places(images, "a.png", output=tmp_path / "out" / "captions.csv")
    (images / "a.txt").write_text("by hand", encoding="utf-8")
    assert target.read()[images / "a.png"].caption == ""
    write(target, {"a.png": "one"})
    assert text_of(tmp_path / "out" / "captions.csv") == "file_name,text\n../images/a.png,one\n"
    assert target.read()[images / "a.png"].caption == "one"
    assert (images / "a.txt").read_text() == "by hand"


@pytest.mark.parametrize("as_texts", [False, True])
def test_what_was_changed_since_it_was_seen_is_left_alone(tmp_path, as_texts):
    target = places(tmp_path, "a.png", "b.png", as_texts=as_texts)
    write(target, {"a.png": "one", "b.png": "two"})
    seen = target.read()
    file = tmp_path / ("a.txt" if as_texts else "metadata.csv")
    file.write_text(text_of(file).replace("one", "mine"), encoding="utf-8")
    refused = target.write({tmp_path / "a.png": "machine", tmp_path / "b.png": "machine"}, seen)
    assert refused == {tmp_path / "a.png"}
    assert {image.name: current.caption for image, current in target.read().items()} == {
        "a.png": "mine",
        "b.png": "machine",
    }


def test_all_captions_of_an_image_are_seen_the_trained_one_first(tmp_path):
    (tmp_path / "metadata.csv").write_text("a.png,row\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("beside", encoding="utf-8")
    current = places(tmp_path, "a.png").read()[tmp_path / "a.png"]
    assert current.texts == ("row", "beside") and current.caption == "row"


def test_an_unreadable_text_file_is_said_to_be(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert "a.txt" in places(tmp_path, "a.png").read()[tmp_path / "a.png"].unreadable


def test_nothing_is_written_into_a_metadata_file_that_cannot_be_read(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"a\0b")
    with pytest.raises(DatasetError, match=r"metadata\.csv"):
        places(tmp_path, "a.png").read()


def test_an_image_removed_meanwhile_needs_no_caption(tmp_path):
    target = places(tmp_path, "a.png", "b.png")
    seen = target.read()
    (tmp_path / "a.png").unlink()
    assert target.write({tmp_path / "a.png": "one", tmp_path / "b.png": "two"}, seen) == set()
    assert text_of(tmp_path / "metadata.csv") == "file_name,text\nb.png,two\n"


def test_masks_are_not_captioned(tmp_path):
    assert [image.name for image in places(tmp_path, "fox.png", "fox_mask.png").images] == [
        "fox.png"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is made of characters")
def test_an_image_whose_name_no_table_can_hold_gets_a_text_file(tmp_path):
    save(tmp_path / "a.png")
    odd = save(tmp_path / "b.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    places = CaptionTargets(tmp_path, None)
    assert places.write({tmp_path / "a.png": "one", odd: "two"}, places.read()) == set()
    assert {image: current.caption for image, current in places.read().items()} == {
        tmp_path / "a.png": "one",
        odd: "two",
    }
    assert odd.with_suffix(".txt").read_text(encoding="utf-8") == "two\n"
