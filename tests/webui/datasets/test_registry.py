"""The datasets the tab knows, and the images and captions in one: what lies on disk is the truth,
and nobody's change is lost.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lora_trainer.dataset import caption_provenance
from lora_trainer.dataset.caption_provenance import CaptionRecord
from lora_trainer.dataset.images import digest
from lora_trainer.errors import DatasetError, LoraTrainerError
from lora_trainer.webui.captions.workbench import Workbench
from lora_trainer.webui.common.data_folder import DataFolder, NotFound
from lora_trainer.webui.datasets import image_query
from lora_trainer.webui.datasets.caption_store import CaptionChange, CaptionStore, key_of
from lora_trainer.webui.datasets.registry import Datasets
from tests.dataset.pictures import save


def make(
    folder: Path, files: dict[str, str], images: tuple[str, ...] = ("a.png", "b.png")
) -> CaptionStore:
    for name in images:
        save(folder / name, size=(40, 30))
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return CaptionStore(folder, follow_links=True)


def captions(store: CaptionStore) -> dict[str, str]:
    return {item.name: item.caption for item in store.view().items}


def change(name: str, caption: str, was: str) -> CaptionChange:
    return CaptionChange(key=key_of(name), caption=caption, was=was)


# --- reading --------------------------------------------------------------------------------------


def test_the_caption_shown_is_the_one_that_is_trained(tmp_path):
    files = {
        "metadata.csv": "a.png,from the table\nb.png,\n",
        "a.txt": "from the text",
        "b.txt": "only text",
    }
    view = make(tmp_path, files, ("a.png", "b.png", "10_red fox/c.png", "d.png")).view()
    found = {item.name: (item.caption, item.source, item.caption_file) for item in view.items}
    assert found == {
        "10_red fox/c.png": ("red fox", "folder_name", ""),
        "a.png": ("from the table", "metadata", "metadata.csv"),
        "b.png": ("only text", "text", "b.txt"),
        "d.png": ("", None, ""),
    }
    assert [finding.kind for finding in view.item(key_of("d.png")).findings] == ["no-caption"]
    assert [finding.kind for finding in view.item(key_of("a.png")).findings] == ["captions-differ"]


def test_images_come_in_the_natural_order_of_their_names_without_masks(tmp_path):
    store = make(
        tmp_path,
        {"metadata.csv": "img2.png,a\n"},
        ("img10.png", "img2.png", "Img1.png", "img2_mask.png"),
    )
    assert list(captions(store)) == ["Img1.png", "img2.png", "img10.png"]


def test_a_caption_saved_by_another_program_is_seen_at_the_next_look(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\n", "b.txt": "two"})
    before = store.view().revision
    assert store.view() is store.view()
    (tmp_path / "metadata.csv").write_text("a.png,another one\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("another two", encoding="utf-8")
    assert captions(store) == {"a.png": "another one", "b.png": "another two"}
    assert store.view().revision != before


def test_an_empty_folder_is_an_empty_dataset_and_a_missing_one_is_said(tmp_path):
    assert CaptionStore(tmp_path, follow_links=True).view().items == ()
    with pytest.raises(DatasetError, match="no longer exists"):
        CaptionStore(tmp_path / "gone", follow_links=True).view()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_out_of_an_uploaded_dataset_are_left_out(tmp_path):
    save(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "elsewhere" / "metadata.csv").write_text("a.png,stolen\n", encoding="utf-8")
    make(tmp_path / "own", {}, ("a.png",))
    (tmp_path / "own" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "own" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "metadata.csv").symlink_to(tmp_path / "elsewhere" / "metadata.csv")
    assert captions(CaptionStore(tmp_path / "own", follow_links=False)) == {"a.png": ""}
    assert len(captions(CaptionStore(tmp_path / "own", follow_links=True))) == 3


@pytest.mark.parametrize(
    "key", ["", "../a.png", "a.png", "/etc/passwd", "..%2f", key_of("c.png"), "\0"]
)
def test_a_key_is_looked_up_and_never_a_path(tmp_path, key):
    with pytest.raises(NotFound):
        make(tmp_path, {}).view().item(key)


# --- captions -------------------------------------------------------------------------------------


def test_a_caption_is_written_where_it_stands(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\n", "b.txt": "two"})
    assert (
        store.write_captions(
            [change("a.png", "first, new", "one"), change("b.png", "second", "two")]
        )
        == {}
    )
    assert captions(store) == {"a.png": "first, new", "b.png": "second"}
    assert (tmp_path / "metadata.csv").read_text("utf-8") == 'a.png,"first, new"\n'
    assert (tmp_path / "b.txt").read_text("utf-8") == "second"


def test_of_two_browsers_the_second_is_told_and_nothing_is_lost(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\nb.png,two\n"})
    assert store.write_captions([change("a.png", "theirs", "one")]) == {}
    conflicts = store.write_captions(
        [change("a.png", "mine", "one"), change("b.png", "mine too", "two")]
    )
    assert conflicts == {key_of("a.png"): "theirs"}
    assert captions(store) == {"a.png": "theirs", "b.png": "mine too"}


def test_the_same_change_twice_is_no_conflict(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\n"})
    assert (
        store.write_captions([change("a.png", "new", "one")])
        == store.write_captions([change("a.png", "new", "one")])
        == {}
    )


def test_rows_changed_and_moved_in_a_spreadsheet_are_merged_row_by_row(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\nb.png,two\n"})
    store.view()
    (tmp_path / "metadata.csv").write_text(
        "file_name;text;note\nb.png;two, theirs;x\na.png;one;y\n", encoding="utf-8"
    )
    assert store.write_captions(
        [change("a.png", "mine", "one"), change("b.png", "mine", "two")]
    ) == {key_of("b.png"): "two, theirs"}
    assert (tmp_path / "metadata.csv").read_text(
        "utf-8"
    ) == "file_name;text;note\nb.png;two, theirs;x\na.png;mine;y\n"


def test_a_file_changed_unnoticed_in_its_size_and_time_is_not_clobbered(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\n"})
    # a file of this very moment would be read again
    os.utime(tmp_path / "metadata.csv", (1.7e9, 1.7e9))
    details = (tmp_path / "metadata.csv").stat()
    store.view()
    (tmp_path / "metadata.csv").write_text("a.png,two\n", encoding="utf-8")
    os.utime(tmp_path / "metadata.csv", ns=(details.st_atime_ns, details.st_mtime_ns))
    assert captions(store) == {
        "a.png": "one",
        "b.png": "",
    }  # the stamp is the same: the view cannot know
    assert store.write_captions([change("a.png", "mine", "one")]) == {key_of("a.png"): "two"}
    assert (tmp_path / "metadata.csv").read_text("utf-8") == "a.png,two\n"


def test_a_captioners_caption_edited_in_the_tab_is_a_persons_from_then_on(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,drafted\n"})
    caption_provenance.record(
        tmp_path, {digest(tmp_path / "a.png"): CaptionRecord(text="drafted", by="blip 1")}
    )
    store.write_captions([change("a.png", "written", "drafted")])
    store.write_captions([change("a.png", "drafted", "written")])
    assert (
        caption_provenance.read_authors(tmp_path).author(digest(tmp_path / "a.png"), "drafted")
        == "person"
    )


# --- the trash ------------------------------------------------------------------------------------


def test_a_removed_image_leaves_with_its_captions_and_comes_back_with_them(tmp_path):
    store = make(
        tmp_path,
        {"metadata.csv": "file_name,text,note\na.png,one,5\nb.png,two,6\n", "a.txt": "other"},
    )
    store.remove([key_of("a.png")])
    assert captions(store) == {"b.png": "two"}
    assert (tmp_path / "metadata.csv").read_text("utf-8") == "file_name,text,note\nb.png,two,6\n"
    assert not (tmp_path / "a.txt").exists()
    assert [(entry.name, entry.caption, entry.image.exists()) for entry in store.removed()] == [
        ("a.png", "one", True)
    ]
    assert store.view().findings == ()
    store.restore([key_of("a.png")])
    assert captions(store) == {"a.png": "one", "b.png": "two"}
    assert (tmp_path / "metadata.csv").read_text(
        "utf-8"
    ) == "file_name,text,note\nb.png,two,6\na.png,one,5\n"
    assert (tmp_path / "a.txt").read_text("utf-8") == "other"
    assert store.removed() == []


def test_a_text_file_that_another_image_uses_stays(tmp_path):
    store = make(tmp_path, {"a.txt": "shared"}, ("a.png", "a.jpg"))
    store.remove([key_of("a.png")])
    assert captions(store) == {"a.jpg": "shared"}


def test_restoring_does_not_overwrite_an_image_of_the_same_name(tmp_path):
    store = make(tmp_path, {"metadata.csv": "a.png,one\nb.png,two\n"})
    store.remove([key_of("a.png")])
    save(tmp_path / "a.png", colour="blue")
    with pytest.raises(DatasetError, match=r"another a\.png"):
        store.restore([key_of("a.png")])
    (tmp_path / "a.png").unlink()
    store.restore([key_of("a.png")])
    assert captions(store)["a.png"] == "one"


def test_an_image_that_cannot_be_moved_keeps_its_caption(tmp_path, monkeypatch):
    store = make(tmp_path, {"metadata.csv": "a.png,one\nb.png,two\n"})

    def refuse(source, target):
        raise PermissionError(13, "in use")

    monkeypatch.setattr("lora_trainer.webui.datasets.image_trash.shutil.move", refuse)
    with pytest.raises(DatasetError, match=r"a\.png cannot be moved: in use"):
        store.remove([key_of("a.png")])
    assert captions(store) == {"a.png": "one", "b.png": "two"}
    assert store.removed() == []


# --- pages ----------------------------------------------------------------------------------------


def test_pages_filters_and_orders(tmp_path):
    store = make(
        tmp_path,
        {"metadata.csv": "a.png,a Fox\nb.png,\nc.png,an apple\n"},
        ("a.png", "b.png", "c.png"),
    )
    os.utime(tmp_path / "b.png", (time.time() + 60, time.time() + 60))

    def names(**request):
        found = image_query.page(
            store.view(),
            image_query.PageQuery(**request),
            Workbench(store).known(store.view()),
        )
        return [item.name for item in found.items], found.matching

    assert names() == (["a.png", "b.png", "c.png"], 3)
    assert names(offset=1, limit=1) == (["b.png"], 3)
    assert names(which="missing") == (["b.png"], 1)
    assert names(which="captioned", text="fox") == (["a.png"], 1)
    assert names(text="C.PNG") == (["c.png"], 1)
    assert names(order="changed")[0][0] == "b.png"
    assert names(order="caption")[0] == ["b.png", "a.png", "c.png"]


# --- the list of datasets -------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path):
    remote = []
    found = Datasets(DataFolder(tmp_path / "data"), lambda: bool(remote))
    found.remote = remote  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("Red fox", "Red fox"),
        ("水墨", "水墨"),
        ("a/b:c", "a_b_c"),
        ("../..", "_"),
        ("CON", "_CON"),
        (".hidden", "hidden"),
        ("x" * 300, "x" * 100),
        ("fox, red", "fox_ red"),
    ],
)
def test_a_dataset_may_have_any_name_and_its_folder_a_safe_one(datasets, tmp_path, name, identity):
    dataset = datasets.create(name)
    assert (dataset.id, dataset.path) == (identity, tmp_path / "data" / "datasets" / identity)
    assert dataset.name == name[:100]
    assert dataset.path.is_dir()


def test_two_datasets_of_one_name_are_two(datasets):
    assert [datasets.create("Fox").id, datasets.create("fox").id, datasets.create("fox").id] == [
        "Fox",
        "fox-2",
        "fox-3",
    ]


def test_a_new_name_leaves_the_folder_where_runs_find_it(datasets):
    dataset = datasets.create("fox")
    assert datasets.rename("fox", "Red fox").name == "Red fox"
    assert datasets.find("fox").path == dataset.path
    with pytest.raises(DatasetError, match="needs a name"):
        datasets.rename("fox", " \n")


def test_a_folder_of_this_machine_is_opened_where_it_is_and_only_forgotten(datasets, tmp_path):
    make(tmp_path / "my fox", {"metadata.csv": "a.png,one\n"})
    dataset = datasets.open(f'"{tmp_path / "my fox"}"')
    assert (dataset.name, dataset.external, datasets.open(str(tmp_path / "my fox")).id) == (
        "my fox",
        True,
        dataset.id,
    )
    card = datasets.card(dataset, "en")
    assert (card["count"], card["captioned"], card["path"]) == (2, 1, str(tmp_path / "my fox"))
    datasets.delete(dataset.id)
    assert datasets.all() == []
    assert (tmp_path / "my fox" / "a.png").exists()


def test_visitors_from_elsewhere_see_no_folder_of_this_machine(datasets, tmp_path):
    make(tmp_path / "private", {})
    dataset = datasets.open(str(tmp_path / "private"))
    datasets.create("shared")
    datasets.remote.append(True)
    assert [found.id for found in datasets.all()] == ["shared"]
    assert datasets.listing("en")[0]["path"] == ""
    for ask in (
        datasets.find,
        datasets.store,
        datasets.delete,
        lambda identity: datasets.rename(identity, "x"),
    ):
        with pytest.raises(NotFound):
            ask(dataset.id)


@pytest.mark.parametrize("folder", ["", "relative/path", "no such folder", "\0"])
def test_a_folder_that_is_not_there_is_refused(datasets, folder):
    with pytest.raises(DatasetError, match="there is no folder"):
        datasets.open(folder)


def test_a_deleted_dataset_goes_to_the_trash(datasets, tmp_path):
    make(datasets.create("fox").path, {})
    first = datasets.delete("fox")
    assert datasets.all() == []
    assert (tmp_path / "data" / "trash" / first / "a.png").exists()
    datasets.create("fox")
    second = datasets.delete("fox")
    assert first != second and {found.id for found in datasets.deleted()} == {first, second}


def test_a_deleted_dataset_comes_back_with_its_name_and_what_is_in_it(datasets, tmp_path):
    made = datasets.create("Rotfuchs: rot").path
    make(made, {"metadata.csv": "a.png,one\n"})
    before = sorted(path.relative_to(made).as_posix() for path in made.rglob("*"))
    identity = made.name
    trashed = datasets.delete(identity)
    # somebody made another one meanwhile
    datasets.create("Rotfuchs: rot")
    back = datasets.restore(trashed)
    assert (back.name, back.id, datasets.deleted()) == ("Rotfuchs: rot", f"{identity}-2", [])
    assert sorted(path.relative_to(back.path).as_posix() for path in back.path.rglob("*")) == before
    for wrong in (trashed, "../datasets", "", "x" * 300):
        with pytest.raises(NotFound):
            datasets.restore(wrong)


def test_a_folder_that_is_gone_says_so_on_its_card_and_the_others_are_there(datasets, tmp_path):
    make(tmp_path / "away", {})
    datasets.open(str(tmp_path / "away"))
    datasets.create("here")
    (tmp_path / "away").rename(tmp_path / "moved")
    cards = {card["name"]: card["problem"] for card in datasets.listing("en")}
    assert cards["here"] is None
    assert "no longer exists" in cards["away"]["message"]


def test_a_dataset_is_deleted_on_a_full_disk_too(tmp_path, monkeypatch):
    datasets = Datasets(DataFolder(tmp_path / "data"), lambda: False)
    identity = datasets.create("fox: red").id

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_trainer.files.write_text", full)
    trashed = datasets.delete(identity)
    assert datasets.all() == [] and len(list((tmp_path / "data" / "trash").iterdir())) == 1
    monkeypatch.undo()
    assert datasets.restore(trashed).id == identity


@pytest.mark.parametrize("place", ["name", "mask", "row"])
def test_what_the_trash_tells_leads_nowhere_outside_of_the_dataset(tmp_path, place):
    root = tmp_path / "set"
    store = make(root, {"metadata.csv": "a.png,one\nb.png,two\n"})
    store.remove([key_of("a.png")])
    (note,) = (root / ".lora_trainer" / "removed").glob("*/removed.json")
    told = json.loads(note.read_text("utf-8"))
    if place == "name":
        told["name"] = "../../a.png"
    elif place == "mask":
        told["masks"] = ["../mask.png"]
    else:
        told["rows"] = [{"file": "../evil.csv", "text": "a.png,x"}]
    note.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(LoraTrainerError):
        store.restore([key_of("a.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert not (tmp_path.parent / "a.png").exists()
    assert list(captions(store)) == ["b.png"]
