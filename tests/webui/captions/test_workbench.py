"""The workbench: every change compared, written once, undone from the disk; what others changed
meanwhile is left alone.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer import files
from lora_trainer.dataset import caption_provenance
from lora_trainer.dataset.caption_provenance import CaptionRecord
from lora_trainer.dataset.findings import warning
from lora_trainer.dataset.images import digest
from lora_trainer.dataset.template import FIELDS, VOCABULARY_FILE, Vocabulary
from lora_trainer.errors import DatasetError, Message
from lora_trainer.runs import events
from lora_trainer.runs.folder import begin_captioning
from lora_trainer.webui.captions import image_edits, journal
from lora_trainer.webui.captions.check import CheckSettings, IdentifiedFinding
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.datasets import image_query
from lora_trainer.webui.datasets.caption_store import CaptionStore, key_of
from tests.dataset.pictures import corners, save
from tests.jobs.logs import append

COLOURS = ("red", "green", "blue", "white", "black", "orange")


def make(folder: Path, captions: dict[str, str], name: str = "metadata.csv") -> Workbench:
    """A dataset of images in different colours, with its captions in a table; or in .txt files,
    for name=".txt".
    """
    for image, colour in zip(captions, COLOURS, strict=False):
        save(folder / image, size=(40, 30), colour=colour)
    if name == ".txt":
        for image, caption in captions.items():
            (folder / image).with_suffix(".txt").write_text(caption, encoding="utf-8")
    else:
        rows = "".join(f'{image},"{caption}"\n' for image, caption in captions.items())
        (folder / name).write_text("file_name,text\n" + rows, encoding="utf-8")
    return again(folder)


def again(folder: Path) -> Workbench:
    """As after a restart."""
    return Workbench(CaptionStore(folder, follow_links=True))


def captions(bench: Workbench) -> dict[str, str]:
    return {item.name: item.caption for item in bench.store.view().items}


def keys(bench: Workbench) -> list[str]:
    return [item.key for item in bench.store.view().items]


def bulk(bench: Workbench, **action):
    return bench.apply(bench.preview(keys(bench), action))


def told(folder: Path, name: str, **fix) -> IdentifiedFinding:
    return IdentifiedFinding(
        warning("wide-border", "{name}", path=folder / name, fix=fix, name=name)
    )


# --- one caption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["texts", "table"])
def test_a_saved_caption_lists_the_folder_at_most_once_and_reads_none_again(
    tmp_path, monkeypatch, kind
):
    bench = make(tmp_path, {f"{letter}.png": f"fox {letter}" for letter in "abcdef"})
    if kind == "texts":
        (tmp_path / "metadata.csv").unlink()
        for letter in "abcdef":
            (tmp_path / f"{letter}.txt").write_text(f"fox {letter}", encoding="utf-8")
    bench.save(key_of("a.png"), "an earlier one", "fox a")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    for letter in "bcd":
        listed.clear()
        bench.save(key_of(f"{letter}.png"), f"a wolf {letter}", f"fox {letter}")
        assert listed.count(str(tmp_path)) <= 1
    monkeypatch.undo()
    fresh = CaptionStore(tmp_path, follow_links=True).view()
    for view in (bench.store.latest(), bench.store.view()):
        assert (view.items, view.findings) == (fresh.items, fresh.findings)
        assert view.captions.by_image == fresh.captions.by_image


@pytest.mark.parametrize("kind", ["texts", "table"])
def test_captions_written_for_the_first_time_are_what_a_fresh_look_finds(tmp_path, kind):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "", "c.png": "", "d.png": ""})
    if kind == "texts":
        (tmp_path / "metadata.csv").unlink()
        (tmp_path / "a.txt").write_text("fox", encoding="utf-8")
    for name in ("b.png", "d.png", "c.png"):
        assert bench.save(key_of(name), f"a wolf, {name}", "").changed == 1
        fresh = CaptionStore(tmp_path, follow_links=True).view()
        view = bench.store.latest()
        assert (view.items, view.findings) == (fresh.items, fresh.findings)


def test_a_row_that_another_program_added_meanwhile_is_a_conflict(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    (tmp_path / "metadata.csv").write_text("a.png,fox\n", encoding="utf-8")
    bench.store.view()
    (tmp_path / "metadata.csv").write_text("a.png,fox\nb.png,theirs\n", encoding="utf-8")
    outcome = bench.save(key_of("b.png"), "mine", "")
    assert [conflict.current for conflict in outcome.conflicts] == ["theirs"]
    assert (tmp_path / "metadata.csv").read_text("utf-8") == "a.png,fox\nb.png,theirs\n"


# --- bulk edits -----------------------------------------------------------------------------------


def test_a_preview_shows_what_will_change_and_writes_nothing(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "fox, ink"})
    before = (tmp_path / "metadata.csv").read_bytes()
    plan = bench.preview(keys(bench), {"do": "add", "text": "ink", "at": "end"})
    assert (plan.selected, [(change.was, change.caption) for change in plan.changes]) == (
        2,
        [("fox", "fox, ink")],
    )
    assert (tmp_path / "metadata.csv").read_bytes() == before and bench.journal.lines() == []
    outcome = bench.apply(plan)
    assert (outcome.changed, outcome.unchanged, outcome.conflicts) == (1, 1, ())
    assert captions(bench) == {"a.png": "fox, ink", "b.png": "fox, ink"}
    assert bench.plan(plan.id) is None


def test_a_bulk_edit_replaces_the_table_once(tmp_path, monkeypatch):
    bench = make(tmp_path, {f"{letter}.png": f"fox {letter}" for letter in "abcdef"})
    written = []
    replace = os.replace
    monkeypatch.setattr(
        "os.replace",
        lambda source, target: (written.append(Path(target).name), replace(source, target)),
    )
    bulk(bench, do="add", text="ink", at="front")
    assert written.count("metadata.csv") == 1
    assert captions(bench)["f.png"] == "ink, fox f"


def test_an_outcome_names_its_edit_by_which_it_is_undone_and_redone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    first, second, third = (
        bulk(bench, do="add", text=text, at="end").edit for text in ("ink", "hill", "dusk")
    )
    assert bulk(bench, do="add", text="ink", at="end").edit is None
    assert bench.undo(third).edit == third and bench.undo(second).edit == second
    assert captions(bench) == {"a.png": "fox, ink"}
    assert bench.redo(second).edit == second and captions(bench) == {"a.png": "fox, ink, hill"}
    outcome = bench.undo(first)
    assert (outcome.edit, outcome.changed, len(outcome.conflicts)) == (first, 0, 1)
    removed = bench.remove(keys(bench))
    assert bench.undo(removed.edit).changed == 1


def test_captions_changed_since_the_preview_are_told_and_left_alone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "fox", "c.png": "fox"})
    plan = bench.preview(keys(bench), {"do": "add", "text": "ink", "at": "end"})
    (tmp_path / "metadata.csv").write_text(
        'file_name,text\na.png,fox\nb.png,"a wolf, theirs"\nc.png,fox\n', encoding="utf-8"
    )
    (tmp_path / "c.png").unlink()
    outcome = bench.apply(plan)
    assert outcome.changed == 1
    assert [(conflict.name, conflict.current) for conflict in outcome.conflicts] == [
        ("b.png", "a wolf, theirs"),
        ("", ""),
    ]
    assert captions(bench) == {"a.png": "fox, ink", "b.png": "a wolf, theirs"}


@pytest.mark.parametrize(
    ("encoding", "ends"),
    [("gbk", "\r\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\n")],
    ids=["GBK", "BOM", "UTF-16"],
)
def test_a_spreadsheets_file_keeps_its_encoding_its_ends_and_its_other_columns(
    tmp_path, encoding, ends
):
    save(tmp_path / "甲.png", colour="red")
    save(tmp_path / "乙.png", colour="blue")
    rows = ["file_name,author,text", "甲.png,王,红狐狸的画像", '乙.png,李,"雪地里的狐狸, 水墨"']
    (tmp_path / "metadata.csv").write_bytes((ends.join(rows) + ends).encode(encoding))
    bench = again(tmp_path)
    bulk(bench, do="add", text="国画", at="front")
    after = (tmp_path / "metadata.csv").read_bytes().decode(encoding)
    assert after.split(ends) == [
        "file_name,author,text",
        '甲.png,王,"国画, 红狐狸的画像"',
        '乙.png,李,"国画, 雪地里的狐狸, 水墨"',
        "",
    ]
    bench.undo()
    assert captions(bench) == {"乙.png": "雪地里的狐狸, 水墨", "甲.png": "红狐狸的画像"}
    assert (tmp_path / "metadata.csv").read_bytes().startswith(rows[0].encode(encoding)[:6])


# --- undo -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metadata.csv", ".txt"])
def test_everything_is_undone_step_by_step_after_a_restart(tmp_path, name):
    start = {"a.png": "fox", "b.png": "wolf, snow"}
    bench = make(tmp_path, start, name)
    bench.save(key_of("a.png"), "a red fox", "fox")
    bulk(bench, do="add", text="ink", at="end")
    bulk(bench, do="clear")
    bench.remove([key_of("b.png")])
    assert captions(bench) == {"a.png": ""}
    bench = again(tmp_path)
    assert [str(line.title) for line in bench.journal.lines()] == [
        "Removed: 1 image",
        "Captions cleared",
        "Added: ink",
        "Caption of a.png",
    ]
    seen = [captions(bench) for _ in range(4) if bench.undo()]
    assert seen == [
        {"a.png": "", "b.png": ""},
        {"a.png": "a red fox, ink", "b.png": "wolf, snow, ink"},
        {"a.png": "a red fox", "b.png": "wolf, snow"},
        start,
    ]
    with pytest.raises(DatasetError, match="nothing to undo"):
        bench.undo()
    bench = again(tmp_path)
    for _ in range(4):
        bench.redo()
    assert captions(bench) == {"a.png": ""}
    with pytest.raises(DatasetError, match="nothing to undo"):
        bench.redo()


def test_undo_leaves_alone_what_was_changed_since_and_undoes_the_rest(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf", "c.png": "bear"})
    bulk(bench, do="add", text="ink", at="end")
    text = (tmp_path / "metadata.csv").read_text(encoding="utf-8").replace("wolf, ink", "wolf, oil")
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    (tmp_path / "c.png").unlink()
    outcome = bench.undo()
    assert outcome.changed == 1
    assert [(conflict.name, conflict.current) for conflict in outcome.conflicts] == [
        ("b.png", "wolf, oil"),
        ("c.png", ""),
    ]
    assert captions(bench) == {"a.png": "fox", "b.png": "wolf, oil"}


def test_what_another_program_changes_while_undo_writes_is_not_counted(tmp_path, monkeypatch):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    bulk(bench, do="add", text="ink", at="end")
    real, key = bench.store.write_captions, key_of("b.png")

    def write(changes):
        return real([one for one in changes if one.key != key]) | {key: "wolf, oil"}

    monkeypatch.setattr(bench.store, "write_captions", write)
    outcome = bench.undo()
    assert outcome.changed == 1
    assert [(one.name, one.current) for one in outcome.conflicts] == [("b.png", "wolf, oil")]


def test_an_older_edit_can_be_undone_alone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    bench.save(key_of("a.png"), "a red fox", "fox")
    bench.save(key_of("b.png"), "a grey wolf", "wolf")
    bench.undo(1)
    assert captions(bench) == {"a.png": "fox", "b.png": "a grey wolf"}
    assert [line.undone for line in bench.journal.lines()] == [False, True]


def test_a_new_edit_ends_what_could_be_redone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    bench.save(key_of("a.png"), "one", "fox")
    bench.undo()
    bench.save(key_of("a.png"), "two", "fox")
    assert bench.journal.redoable is None and len(bench.journal.lines()) == 1


def test_undoing_a_caption_where_the_folder_names_it_leaves_the_folders_name(tmp_path):
    save(tmp_path / "10_red fox" / "a.png")
    bench = again(tmp_path)
    assert captions(bench) == {"10_red fox/a.png": "red fox"}
    bulk(bench, do="add", text="ink", at="end")
    assert captions(bench) == {"10_red fox/a.png": "red fox, ink"}
    bench.undo()
    item = bench.store.view().items[0]
    assert (item.caption, item.source) == ("red fox", "folder_name")
    bench.redo()
    assert captions(bench) == {"10_red fox/a.png": "red fox, ink"}


def test_an_import_that_replaces_captions_can_be_undone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    with bench.recording(Message("Imported: {name}", {"name": "x.csv"})):
        (tmp_path / "metadata.csv").write_text(
            "file_name,text\na.png,imported\nb.png,wolf\n", encoding="utf-8"
        )
        save(tmp_path / "c.png", colour="blue")
    assert (bench.journal.undoable.count, str(bench.journal.undoable.title)) == (
        1,
        "Imported: x.csv",
    )
    bench.undo()
    assert captions(bench) == {"a.png": "fox", "b.png": "wolf", "c.png": ""}


@pytest.mark.parametrize(("also_new", "after"), [(True, ""), (False, "imported")])
def test_an_import_of_captions_where_there_were_none_can_be_undone_unless_told_otherwise(
    tmp_path, also_new, after
):
    save(tmp_path / "a.png")
    bench = again(tmp_path)
    with bench.recording(Message("Imported"), also_new=also_new):
        (tmp_path / "a.txt").write_text("imported", encoding="utf-8")
    if bench.journal.undoable:
        bench.undo()
    assert captions(bench) == {"a.png": after}


def test_a_write_that_failed_leaves_nothing_to_undo(tmp_path, monkeypatch):
    bench = make(tmp_path, {"a.png": "fox"})
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "metadata.csv":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(DatasetError, match="No space left"):
        bulk(bench, do="add", text="ink", at="end")
    assert bench.journal.lines() == [] and captions(bench) == {"a.png": "fox"}


def test_old_edits_go_and_the_newest_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_EDITS", 3)
    bench = make(tmp_path, {"a.png": "0"})
    for number in range(5):
        bench.save(key_of("a.png"), str(number + 1), str(number))
    assert [line.id for line in bench.journal.lines()] == [5, 4, 3]
    monkeypatch.setattr(journal, "MOST_BYTES", 1)
    bench.save(key_of("a.png"), "6", "5")
    assert [line.id for line in bench.journal.lines()] == [6]


def test_two_webuis_on_one_folder_never_give_one_number_to_two_edits(tmp_path):
    make(tmp_path, {"a.png": "0"})
    journals = [journal.Journal(tmp_path) for _ in range(4)]

    def write(number):
        return [
            journals[number]
            .add(
                journal.Edit(
                    title=Message(f"{number} {turn}"), time=0.0, removed=(f"{number}{turn}",)
                )
            )
            .id
            for turn in range(8)
        ]

    with ThreadPoolExecutor(4) as pool:
        given = [identity for identities in pool.map(write, range(4)) for identity in identities]
    assert sorted(given) == list(range(1, 33))
    kept = {journal.Journal(tmp_path).read(line.id).removed for line in journals[0].lines()}
    assert len(kept) == 32


def test_a_torn_edit_keeps_its_number(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    bench.save(key_of("a.png"), "one", "fox")
    (tmp_path / ".lora_trainer" / "edits" / "00000002.json").write_text("{", encoding="utf-8")
    bench.save(key_of("a.png"), "two", "one")
    assert [line.id for line in bench.journal.lines()] == [3, 1]


def test_a_torn_journal_is_no_obstacle(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    bench.save(key_of("a.png"), "one", "fox")
    (tmp_path / ".lora_trainer" / "edits" / "00000002.json").write_text(
        '{"version": 1', encoding="utf-8"
    )
    (tmp_path / ".lora_trainer" / "edits" / "note.json").write_text("{}", encoding="utf-8")
    bench = again(tmp_path)
    bench.undo()
    assert captions(bench) == {"a.png": "fox"}


# --- who wrote it, who looked at it ---------------------------------------------------------------


def machine(bench: Workbench, **captions: str) -> None:
    news = {
        digest(bench.root / f"{stem}.png"): CaptionRecord(text=caption, by="blip 0123")
        for stem, caption in captions.items()
    }
    caption_provenance.record(bench.root, news)


def by(bench: Workbench, name: str) -> str:
    view = bench.store.view()
    return bench.known(view).author(view.item(key_of(name)))


def test_a_captioners_words_are_a_captioners_again_after_undo(tmp_path):
    bench = make(tmp_path, {"a.png": "a fox", "b.png": "a wolf"})
    machine(bench, a="a fox", b="something else")
    assert (by(bench, "a.png"), by(bench, "b.png")) == ("machine", "person")
    bulk(bench, do="add", text="ink", at="end")
    assert (by(bench, "a.png"), by(bench, "b.png")) == ("person", "person")
    bench.undo()
    assert (by(bench, "a.png"), by(bench, "b.png")) == ("machine", "person")
    bench.redo()
    assert by(bench, "a.png") == "person"


def reviewed(bench: Workbench) -> list[str]:
    view = bench.store.view()
    return [
        item.name
        for item in image_query.matching(
            view.items, image_query.ImageFilter(which="reviewed"), bench.known(view)
        )
    ]


def test_a_mark_is_of_one_image_though_another_says_the_same(tmp_path):
    bench = make(tmp_path, {"a.png": "a fox", "b.png": "a fox"})
    bench.mark([key_of("a.png")], reviewed=True)
    assert reviewed(bench) == reviewed(again(tmp_path)) == ["a.png"]


def test_the_mark_stays_with_the_picture_and_goes_when_others_write(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf", "c.png": "bear"})
    assert bench.mark(keys(bench)[:2], reviewed=True) == 2
    bench.save(key_of("c.png"), "a bear", "bear")
    assert reviewed(bench) == ["a.png", "b.png", "c.png"]
    bulk(bench, do="add", text="ink", at="end")
    assert reviewed(again(tmp_path)) == ["a.png", "b.png", "c.png"]
    text = (tmp_path / "metadata.csv").read_text(encoding="utf-8")
    (tmp_path / "metadata.csv").write_text(
        text.replace("wolf, ink", "wolf, theirs").replace("a.png", "z.png"), encoding="utf-8"
    )
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    assert reviewed(bench) == ["c.png", "z.png"]
    bench.mark([key_of("z.png")], reviewed=False)
    assert reviewed(bench) == ["c.png"]


# --- filters --------------------------------------------------------------------------------------


def found(
    bench: Workbench, trigger: str = "", tokens: int = 75, order: str = "name", **where
) -> list[str]:
    view = bench.store.view()
    query = image_query.PageQuery(trigger=trigger, order=order, **where)
    return [
        item.name
        for item in image_query.page(view, query, bench.known(view, trigger, tokens)).items
    ]


def test_every_filter_lets_pass_what_it_says(tmp_path):
    bench = make(
        tmp_path,
        {
            "a.png": "",
            "b.png": "sks, a fox",
            "c.png": "tree " * 90,
            "d.png": "a fox in the snow, red fur, ink wash",
        },
    )
    assert found(bench, which="missing") == ["a.png"]
    assert found(bench, which="short") == ["b.png"]
    assert found(bench, which="long") == ["c.png"] and found(bench, which="long", tokens=150) == []
    assert found(bench, which="no-trigger", trigger="sks") == ["a.png", "c.png", "d.png"]
    assert found(bench, text="FOX") == ["b.png", "d.png"] and found(bench, text="c.png") == [
        "c.png"
    ]
    assert found(bench, text="fox", lacks="snow") == ["b.png"]
    assert found(bench, tag="Red Fur") == ["d.png"] and found(bench, tag="fur") == []
    assert found(bench, which="findings") == ["a.png"] == found(bench, finding="no-caption")
    assert found(bench, which="person") == ["b.png", "c.png", "d.png"]
    assert found(bench, order="tokens") == ["a.png", "b.png", "d.png", "c.png"]
    view = bench.store.view()
    counts = image_query.counts(
        view.items, image_query.ImageFilter(trigger="sks"), bench.known(view, "sks")
    )
    assert counts == {
        "missing": 1,
        "short": 1,
        "long": 1,
        "no-trigger": 3,
        "unreviewed": 4,
        "person": 3,
        "machine": 0,
        "findings": 1,
    }


def test_several_tags_are_all_asked_for_or_one_is_enough_and_others_are_kept_away(tmp_path):
    bench = make(
        tmp_path,
        {
            "a.png": "1girl, red hair, hat",
            "b.png": "1girl, Red  Hair",
            "c.png": "1boy, hat",
            "d.png": "saber \\(fate\\), red hairband",
        },
    )
    assert found(bench, tag="1girl, red hair") == ["a.png", "b.png"]
    assert found(bench, tag="red hair, hat") == ["a.png"]
    assert found(bench, tag="RED HAIR，hat", match="any") == ["a.png", "b.png", "c.png"]
    assert found(bench, tag="1girl", without="hat") == ["b.png"]
    assert found(bench, without="hat, 1girl") == ["d.png"]
    assert found(bench, tag="saber \\(fate\\)") == ["d.png"]
    assert found(bench, tag=" , ", without=",") == ["a.png", "b.png", "c.png", "d.png"]


# --- fixes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fox.png", "fox.jpg", "fox.webp", "fox.bmp"])
def test_a_crop_keeps_the_name_the_caption_and_the_original(tmp_path, name):
    corners((64, 32)).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{name},a fox\n", encoding="utf-8")
    original = (tmp_path / name).read_bytes()
    bench = again(tmp_path)
    outcome = bench.fix([told(tmp_path, name, do="crop", box=[32, 0, 64, 16])])
    assert (outcome.changed, outcome.conflicts) == (1, ())
    with Image.open(tmp_path / name) as cropped:
        assert cropped.size == (32, 16)
        red, green, blue = cropped.convert("RGB").getpixel((16, 8))
        assert green > 240 and red < 15 and blue < 15
    assert captions(bench) == {name: "a fox"}
    kept = [
        path for path in (tmp_path / ".lora_trainer" / "originals").rglob("*") if path.is_file()
    ]
    assert [path.read_bytes() for path in kept] == [original]
    again(tmp_path).undo()
    assert (tmp_path / name).read_bytes() == original
    again(tmp_path).redo()
    with Image.open(tmp_path / name) as cropped:
        assert cropped.size == (32, 16)


def test_what_was_cropped_before_the_process_died_can_be_undone(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        corners((64, 32)).save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    real = image_edits.crop_in_place

    def dying(root, path, *arguments):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return real(root, path, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(image_edits, "crop_in_place", dying)
        again(tmp_path).fix(
            [told(tmp_path, name, do="crop", box=[0, 0, 8, 8]) for name in ("a.png", "b.png")]
        )
    assert (tmp_path / "a.png").read_bytes() != before
    assert again(tmp_path).undo().changed == 1
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_crop_that_was_painted_over_stays_at_undo(tmp_path):
    corners((64, 32)).save(tmp_path / "a.png")
    bench = again(tmp_path)
    bench.fix([told(tmp_path, "a.png", do="crop", box=[0, 0, 8, 8])])
    save(tmp_path / "a.png", size=(9, 9), colour="black")
    outcome = bench.undo()
    assert [str(conflict.message) for conflict in outcome.conflicts] == [
        "a.png was changed elsewhere, and was left as it is"
    ]
    assert list(bench.journal.read(bench.journal.redoable.id).swaps) == ["a.png"], "where it lies"
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (9, 9)


@pytest.mark.parametrize("mask", ["a_mask.png", "masks/a.png"])
def test_a_mask_is_cropped_with_its_picture_and_goes_back_with_it(tmp_path, mask):
    corners((64, 32)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    white = Image.new("L", (32, 16))
    white.paste(255, (16, 0, 32, 8))
    white.save(tmp_path / mask)
    before = [(tmp_path / name).read_bytes() for name in ("a.png", mask)]
    bench = again(tmp_path)
    outcome = bench.fix([told(tmp_path, "a.png", do="crop", box=[32, 0, 64, 16])])
    assert (outcome.changed, outcome.conflicts) == (1, ())
    with Image.open(tmp_path / mask) as cut:
        assert (cut.size, cut.getcolors()) == ((32, 16), [(512, 255)])
    assert [line.count for line in bench.journal.lines()] == [1]
    assert again(tmp_path).undo().changed == 1
    assert [(tmp_path / name).read_bytes() for name in ("a.png", mask)] == before
    again(tmp_path).redo()
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / mask) as cut:
        assert image.size == cut.size == (32, 16)
    # painted over: neither goes back without the other
    save(tmp_path / "a.png", size=(9, 9), colour="black")
    assert [conflict.name for conflict in bench.undo().conflicts] == ["a.png"]
    with Image.open(tmp_path / mask) as cut:
        assert (cut.size, cut.getcolors()) == ((32, 16), [(512, 255)])


def test_a_strip_is_cut_where_its_mask_says(tmp_path):
    Image.new("RGB", (400, 40), "grey").save(tmp_path / "a.png")
    white = Image.new("L", (400, 40))
    white.paste(255, (300, 0, 330, 40))
    white.save(tmp_path / "a_mask.png")
    bench = again(tmp_path)
    bench.fix([told(tmp_path, "a.png", do="crop_subject", ratio=2.0)])
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "a_mask.png") as cut:
        assert image.size == cut.size == (80, 40)
        assert cut.getcolors() == [(2000, 0), (1200, 255)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_caption_that_a_fix_sets_is_without_backslashes_where_another_takes_them_away(
    tmp_path, order
):
    bench = make(tmp_path, {"a.png": "fox"})
    fixes = [{"do": "unescape"}, {"do": "set_caption", "caption": "fox \\(red\\)"}]
    bench.fix([told(tmp_path, "a.png", **fix) for fix in fixes[::order]])
    assert captions(bench) == {"a.png": "fox (red)"}


def test_several_fixes_are_one_edit(tmp_path):
    bench = make(tmp_path, {"a.png": "a fox", "b.png": "sks, a wolf", "c.png": "bear"})
    outcome = bench.fix(
        [
            told(tmp_path, "a.png", do="set_caption", caption="lab, a fox"),
            told(tmp_path, "a.png", do="crop_subject", ratio=1.2),
            told(tmp_path, "b.png", do="leave_out"),
            told(tmp_path, "b.png", do="crop", box=[0, 0, 4, 4]),
            told(tmp_path, "c.png", do="crop", box=[50, 50, 60, 60]),
        ]
    )
    assert [str(conflict.message) for conflict in outcome.conflicts] == [
        "the crop box of c.png lies outside the image"
    ]
    assert captions(bench) == {"a.png": "lab, a fox", "c.png": "bear"}
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (36, 30)
    outcome = again(tmp_path).undo()
    assert outcome.conflicts == ()
    assert captions(bench) == {"a.png": "a fox", "b.png": "sks, a wolf", "c.png": "bear"}
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (40, 30)


def test_removed_images_come_back_with_undo_even_if_one_is_gone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    bench.remove(keys(bench))
    save(tmp_path / "a.png", colour="white")
    outcome = bench.undo()
    assert [str(conflict.message) for conflict in outcome.conflicts] == [
        "there is another a.png in the folder now"
    ]
    assert captions(bench) == {"a.png": "", "b.png": "wolf"}


@pytest.mark.parametrize("mask", ["a_mask.png", "masks/a.png"])
def test_a_removed_image_takes_its_mask_along_and_brings_it_back(tmp_path, mask):
    bench = make(tmp_path, {"a.png": "fox", "b.png": "wolf"})
    (tmp_path / "masks").mkdir()
    save(tmp_path / mask, size=(40, 30), colour="white")
    before = (tmp_path / mask).read_bytes()
    bench.remove([key_of("a.png")])
    # left behind, the mask would be an image of its own
    assert captions(bench) == {"b.png": "wolf"}
    bench.undo()
    assert captions(bench) == {"a.png": "fox", "b.png": "wolf"}
    assert (tmp_path / mask).read_bytes() == before
    assert bench.store.removed() == []


# --- vocabulary and template are undone, too ------------------------------------------------------


def test_a_vocabulary_and_the_order_of_the_fields_are_undone(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    file, order = (
        tmp_path / VOCABULARY_FILE,
        [
            "style",
            "subject",
            "action",
            "features",
            "scene",
            "light",
            "colour",
        ],
    )
    bench.set_vocabulary(Vocabulary(opening="old lab", fields={}))
    bench.set_vocabulary(Vocabulary(opening="new lab", fields={"light": ("neon",)}))
    # nothing has changed, so there is nothing to undo
    bench.set_vocabulary(Vocabulary(opening="new lab", fields={"light": ("neon",)}))
    bench.set_template_order(order)
    assert [(str(line.title), line.count) for line in bench.journal.lines()] == [
        ("Order of the fields changed", 0),
        ("Vocabulary changed", 0),
        ("Vocabulary changed", 0),
    ]
    bench = again(tmp_path)
    assert (bench.undo().changed, bench.template_order()) == (1, FIELDS)
    bench.undo()
    assert bench.vocabulary() == Vocabulary(opening="old lab", fields={})
    bench.undo()
    assert not file.exists()
    for _ in range(3):
        bench.redo()
    assert (bench.vocabulary(), list(bench.template_order())) == (
        Vocabulary(opening="new lab", fields={"light": ("neon",)}),
        order,
    )


def test_a_vocabulary_that_somebody_edited_since_stays_at_undo(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    file = tmp_path / VOCABULARY_FILE
    file.write_bytes("opening: 实验室\n".encode("gb18030"))
    theirs = file.read_bytes()
    bench.set_vocabulary(Vocabulary(opening="lab", fields={}))
    bench.undo()
    assert file.read_bytes() == theirs
    bench.redo()
    file.write_text("opening: attic\n", encoding="utf-8")
    assert [(conflict.name, str(conflict.message)) for conflict in bench.undo().conflicts] == [
        (VOCABULARY_FILE, "this file was changed elsewhere, and was left as it is")
    ]
    assert file.read_text(encoding="utf-8") == "opening: attic\n"


# --- template -------------------------------------------------------------------------------------


def test_a_datasets_own_order_of_fields_is_kept(tmp_path):
    bench = make(tmp_path, {"a.png": "fox"})
    order = ["style", "subject", "action", "features", "scene", "light", "colour"]
    bench.set_template_order(order)
    assert list(again(tmp_path).template_order()) == order
    with pytest.raises(DatasetError, match="must contain each field once"):
        bench.set_template_order(order[1:])
    (tmp_path / ".lora_trainer" / "template.json").write_text(
        json.dumps({"order": ["mood"]}), encoding="utf-8"
    )
    assert bench.template_order()[0] == "subject"


# --- captioners -----------------------------------------------------------------------------------


def test_what_a_captioner_wrote_is_undone_once_its_run_has_ended(tmp_path):
    bench = make(tmp_path / "fox", {"a.png": "draft", "b.png": "", "c.png": "mine"})
    machine(bench, a="draft")
    run = begin_captioning(tmp_path / "run", "captioner: blip\n")
    bench.expect(run, Message("Captioned with {captioner}", {"captioner": "BLIP base"}))
    text = (tmp_path / "fox" / "metadata.csv").read_text(encoding="utf-8")
    (tmp_path / "fox" / "metadata.csv").write_text(
        text.replace("draft", "a fox").replace('b.png,""', "b.png,a wolf"), encoding="utf-8"
    )
    machine(bench, a="a fox", b="a wolf")
    bench.save(key_of("c.png"), "mine, too", "mine")
    bench.settle()
    assert [str(line.title) for line in bench.journal.lines()] == ["Caption of c.png"]
    append(run, events.Started(job="caption"), events.Finished(step=2))
    bench = again(tmp_path / "fox")
    # its process is still there for a moment
    with files.lock(run.lock):
        bench.settle()
    bench.settle()
    assert [(str(line.title), line.count) for line in bench.journal.lines()] == [
        ("Captioned with BLIP base", 2),
        ("Caption of c.png", 1),
    ]
    bench.undo()
    assert captions(bench) == {"a.png": "draft", "b.png": "", "c.png": "mine, too"}
    assert by(bench, "a.png") == "machine"
    bench.redo()
    assert (captions(bench)["b.png"], by(bench, "b.png")) == ("a wolf", "machine")


def test_caption_runs_that_ended_unseen_are_recorded_in_their_order(tmp_path):
    bench = make(tmp_path / "fox", {"a.png": ""})
    runs = [
        begin_captioning(tmp_path / name, "captioner: blip\n")
        for name in ("run", "run-2", "run-10")
    ]
    for run in runs:
        bench.expect(run, Message(run.path.name))
    for run in runs:
        append(run, events.Started(job="caption"), events.Finished(step=1))
    (tmp_path / "fox" / "metadata.csv").write_text("file_name,text\na.png,a fox\n", "utf-8")
    machine(bench, a="a fox")
    bench = again(tmp_path / "fox")
    bench.settle()
    assert [str(line.title) for line in bench.journal.lines()] == ["run-10", "run-2", "run"]


def test_what_a_resumed_captioner_wrote_is_undone_by_itself(tmp_path):
    bench = make(tmp_path / "fox", {"a.png": "", "b.png": ""})
    run, title = begin_captioning(tmp_path / "run", "captioner: blip\n"), Message("By a captioner")

    def write(**texts: str) -> None:
        table = "".join(f"{name}.png,{text}\n" for name, text in texts.items())
        (tmp_path / "fox" / "metadata.csv").write_text("file_name,text\n" + table, "utf-8")
        machine(bench, **texts)

    bench.expect(run, title)
    write(a="a fox")
    append(run, events.Started(job="caption"), events.Stopped(step=1))
    for _ in range(2):
        bench.expect(run, title)
        bench.settle()
        assert [line.count for line in bench.journal.lines()] == [1]
    write(a="a fox", b="a wolf")
    bench.settle()
    assert len(bench.journal.lines()) == 1
    append(run, events.Started(job="caption"), events.Finished(step=1), start=2000.0)
    bench.settle()
    bench.undo()
    assert captions(bench) == {"a.png": "a fox", "b.png": ""}
    bench.undo()
    assert captions(bench) == {"a.png": "", "b.png": ""}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is made of characters")
def test_a_name_that_is_no_text_can_be_worked_on(tmp_path):
    save(tmp_path / "a.png", colour="red")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    bench = again(tmp_path)
    bulk(bench, do="set", caption="a fox")
    bench.mark(keys(bench), reviewed=True)
    bench.checker.start(CheckSettings(resolution=256))
    bench.checker.wait()
    assert bench.checker.status(bench.store.view()).state == "done"
    bench.remove(keys(bench))
    again(tmp_path).undo()
    assert list(captions(bench).values()) == ["a fox"] and len(reviewed(bench)) == 1
    again(tmp_path).undo()
    assert list(captions(bench).values()) == [""]


# --- captions of several lines, and other programs' signs -----------------------------------------


def test_bulk_edits_keep_the_lines_of_a_caption_file(tmp_path):
    bench = make(
        tmp_path,
        {
            "a.png": "zorbl, a red boat\r\nzorbl, the boat lies still.\r\n",
            "b.png": "1girl\nred hair\n",
        },
        ".txt",
    )
    bulk(bench, do="remove", tags=["zorbl"])
    bulk(bench, do="add", text="sun", at="end")
    assert (tmp_path / "a.txt").read_bytes() == b"a red boat, sun\r\nthe boat lies still., sun\r\n"
    assert (tmp_path / "b.txt").read_bytes() == b"1girl\nred hair\nsun\n"
    bench.undo()
    bench.undo()
    assert captions(bench) == {
        "a.png": "zorbl, a red boat\nzorbl, the boat lies still.",
        "b.png": "1girl\nred hair",
    }


def test_escaped_brackets_are_fixed_at_a_click(tmp_path):
    bench = make(tmp_path, {"a.png": r"miku \(vocaloid\), snow"}, ".txt")
    bench.fix([told(tmp_path, "a.png", do="unescape")])
    assert captions(bench) == {"a.png": "miku (vocaloid), snow"}


def test_an_edit_of_a_journal_that_leads_outside_is_not_undone(tmp_path):
    root = tmp_path / "set"
    bench = make(root, {"a.png": "fox"})
    bench.save(key_of("a.png"), "wolf", "fox")
    (file,) = (root / ".lora_trainer" / "edits").glob("*.json")
    values = json.loads(file.read_text("utf-8"))
    values["files"] = {"../evil.yaml": ["x", None]}
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DatasetError):
        again(root).undo()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_edit_whose_title_lacks_a_value_hides_no_other(tmp_path):
    bench = make(tmp_path, {"a.png": "one", "b.png": "two"})
    bulk(bench, do="add", text="ink", at="end")
    bulk(bench, do="add", text="wash", at="end")
    file = tmp_path / ".lora_trainer" / "edits" / "00000001.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), "values": {"other": 1}}),
        encoding="utf-8",
    )
    assert [str(line.title) for line in again(tmp_path).journal.lines()] == ["Added: wash"]
