from __future__ import annotations

import json
import threading

import pytest

from lora_trainer import files
from lora_trainer.dataset.caption_provenance import (
    PERSON,
    Authors,
    CaptionRecord,
    changing_captions,
    read_authors,
    record,
    settle,
)
from lora_trainer.errors import DatasetError

BLIP, WD = "blip 0123", "wd 4567"


def test_what_a_captioner_wrote_is_a_machines_until_someone_changes_it(tmp_path):
    record(tmp_path, {"aa": CaptionRecord(text="a red fox", by=BLIP)})
    known = read_authors(tmp_path)
    assert known.author("aa", "a red  fox\n") == "machine"
    assert known.author("aa", "a red fox in snow") == "person"
    assert known.author("aa", " ") == "nobody"
    assert known.author("bb", "a red fox") == "person"


def test_what_a_person_wrote_in_the_tab_is_theirs_even_where_it_equals_the_machines(tmp_path):
    record(tmp_path, {"aa": CaptionRecord(text="a red fox", by=BLIP)})
    record(tmp_path, {"aa": CaptionRecord(text="a red fox", by=PERSON)})
    assert read_authors(tmp_path).author("aa", "a red fox") == "person"


def test_a_caption_is_done_only_by_the_same_captioner_with_the_same_settings_and_unchanged(
    tmp_path,
):
    record(tmp_path, {"aa": CaptionRecord(text="a red fox", by=BLIP)})
    known = read_authors(tmp_path)
    assert known.is_done("aa", "a red fox", BLIP)
    assert not known.is_done("aa", "a red fox", WD)
    assert not known.is_done("aa", "", BLIP)
    assert not known.is_done("bb", "a red fox", BLIP)


def test_a_worker_that_died_before_the_caption_was_written_leaves_a_machines_caption(tmp_path):
    record(tmp_path, {"aa": CaptionRecord(text="a fox", by=BLIP)})
    record(tmp_path, {"aa": CaptionRecord(text="fox, snow", by=WD)})
    # the caption file still says what BLIP wrote
    known = read_authors(tmp_path)
    assert known.author("aa", "a fox") == "machine"
    assert not known.is_done("aa", "a fox", WD)
    # recorded again by the next worker, it is still known
    record(tmp_path, {"aa": CaptionRecord(text="fox, snow", by=WD)})
    assert read_authors(tmp_path).author("aa", "a fox") == "machine"


def test_who_puts_an_older_caption_back_once_the_new_one_is_written_is_a_person(tmp_path):
    record(
        tmp_path,
        {"aa": CaptionRecord(text="a fox", by=BLIP), "bb": CaptionRecord(text="a dog", by=BLIP)},
    )
    record(
        tmp_path,
        {"aa": CaptionRecord(text="fox, snow", by=WD), "bb": CaptionRecord(text="dog", by=WD)},
    )
    settle(tmp_path, ["aa", "cc"])
    known = read_authors(tmp_path)
    assert (
        known.author("aa", "a fox"),
        known.author("aa", "fox, snow"),
        known.author("bb", "a dog"),
    ) == ("person", "machine", "machine")


def test_other_images_are_remembered_when_one_is_recorded(tmp_path):
    record(
        tmp_path,
        {"aa": CaptionRecord(text="one", by=BLIP), "bb": CaptionRecord(text="二", by=PERSON)},
    )
    record(tmp_path, {"cc": CaptionRecord(text="three", by=BLIP)})
    assert {digest: one.text for digest, one in read_authors(tmp_path).by_digest.items()} == {
        "aa": "one",
        "bb": "二",
        "cc": "three",
    }
    assert json.loads((tmp_path / ".lora_trainer" / "captions.json").read_text(encoding="utf-8"))[
        "images"
    ]["bb"] == {"text": "二", "by": "person"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": []}', '{"images": {"aa": 1}}'])
def test_a_damaged_sidecar_makes_every_caption_a_persons(tmp_path, content):
    (tmp_path / ".lora_trainer").mkdir()
    (tmp_path / ".lora_trainer" / "captions.json").write_text(content, encoding="utf-8")
    assert read_authors(tmp_path) == Authors()
    assert read_authors(tmp_path).author("aa", "a fox") == "person"


def test_two_processes_do_not_change_captions_at_once(tmp_path):
    with (
        files.lock(tmp_path / ".lora_trainer" / "captions.lock"),
        pytest.raises(DatasetError, match="another process is changing"),
        changing_captions(tmp_path, patience=0.05),
    ):
        pass
    with changing_captions(tmp_path):
        pass


def test_recording_waits_for_the_other_one(tmp_path):
    order = []

    def other():
        with changing_captions(tmp_path):
            order.append("other")

    with changing_captions(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / ".lora_trainer").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"), changing_captions(tmp_path):
        pass
    with pytest.raises(DatasetError, match="cannot be written"):
        record(tmp_path, {"aa": CaptionRecord(text="one", by=BLIP)})
