import json
import shutil
from pathlib import Path

import pytest

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.jobs.trash import (
    NOTE,
    Discarded,
    TrashSize,
    contents,
    discard,
    empty,
    measure,
    restore,
)
from tests.jobs.logs import FINISHED, write_run


@pytest.mark.parametrize("name", ["水墨 ink", "dataset=ink"])
def test_what_is_discarded_can_be_restored_as_it_was(tmp_path, name):
    runs, trash = tmp_path / "mine" / "runs", tmp_path / "data" / "trash"
    folder = write_run(runs / name, *FINISHED)
    before = sorted(path.name for path in folder.path.iterdir())
    found = discard(folder.path, trash, kind="run", now=1000.0, title="Ink, 水墨")
    assert not folder.path.exists() and found.path.parent == trash and found.id.endswith("-" + name)
    assert contents(trash, "run") == [found] and contents(trash, "dataset") == []
    shutil.rmtree(runs.parent)
    assert restore(found, runs) == folder.path
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert contents(trash, "run") == []


def test_nothing_is_overwritten_in_the_trash_or_by_what_comes_out_of_it(tmp_path):
    for _ in range(2):
        discard(
            write_run(tmp_path / "runs" / "ink", *FINISHED).path,
            tmp_path / "trash",
            kind="run",
            now=1000.0,
        )
    first, second = contents(tmp_path / "trash", "run")
    write_run(tmp_path / "runs" / "ink")
    assert {restore(found, tmp_path / "runs").name for found in (first, second)} == {
        "ink-2",
        "ink-3",
    }


@pytest.mark.parametrize("name", ["../../outside", "..\\..\\outside", "/etc/outside", ".."])
def test_a_forged_note_leads_nowhere_else(tmp_path, name):
    discard(write_run(tmp_path / "runs" / "ink").path, tmp_path / "trash", kind="run", now=1000.0)
    (found,) = contents(tmp_path / "trash", "run")
    (found.path / NOTE).write_text(
        json.dumps({"kind": "run", "name": name, "time": 1}), encoding="utf-8"
    )
    (found,) = contents(tmp_path / "trash", "run")
    assert found.title == ""
    assert restore(found, tmp_path / "runs").parent.resolve() == (tmp_path / "runs").resolve()


@pytest.mark.parametrize("name", ["水墨 ink", "a=b"])
def test_what_is_deleted_because_the_disk_is_full_goes_to_the_trash_without_a_note_and_comes_back(
    tmp_path, monkeypatch, name
):
    folder = write_run(tmp_path / "runs" / name, *FINISHED)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(files, "write_text", full)
        found = discard(folder.path, tmp_path / "trash", kind="run", now=1000.0)
    assert not folder.path.exists() and contents(tmp_path / "trash", "dataset") == []
    (again,) = contents(tmp_path / "trash", "run")
    assert (again.id, again.name) == (found.id, name)
    assert restore(again, tmp_path / "runs") == folder.path


def test_strangers_in_the_trash_are_left_alone(tmp_path):
    (tmp_path / "trash" / "other").mkdir(parents=True)
    (tmp_path / "trash" / "torn").mkdir()
    (tmp_path / "trash" / "torn" / NOTE).write_text("{")
    (tmp_path / "trash" / "file").write_text("")
    assert contents(tmp_path / "trash", "run") == [] and contents(tmp_path / "none", "run") == []


def test_what_cannot_be_moved_says_why_and_stays(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="ink cannot be moved to the trash: No such file"):
        discard(tmp_path / "ink", tmp_path / "trash", kind="run", now=1.0)
    assert not (tmp_path / "ink").exists()
    folder = write_run(tmp_path / "ink", *FINISHED)
    before = sorted(folder.path.iterdir())

    def refuse(self, target):
        raise PermissionError(
            13, "The process cannot access the file because it is being used by another process"
        )

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="being used by another process") as caught:
        discard(folder.path, tmp_path / "trash", kind="run", now=1.0)
    assert (
        "Close the programs" in str(caught.value.hint) and sorted(folder.path.iterdir()) == before
    )


def test_the_trash_can_be_measured_and_emptied_for_good(tmp_path):
    trash = tmp_path / "trash"
    assert measure(trash) == empty(trash) == TrashSize()
    (tmp_path / "runs" / "ink").mkdir(parents=True)
    discard(tmp_path / "runs" / "ink", trash, kind="run", now=1000.0)
    (trash / "dataset-fox" / "deep").mkdir(parents=True)
    (trash / "dataset-fox" / "deep" / "a.png").write_bytes(bytes(1000))
    note = next(trash.glob("*/" + NOTE)).stat().st_size
    assert measure(trash) == TrashSize(count=2, size=1000 + note)
    assert empty(trash) == TrashSize() and list(trash.iterdir()) == []


def test_what_a_link_in_the_trash_points_to_stays(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "picture.png").write_bytes(b"kept")
    trash = tmp_path / "trash"
    (trash / "run").mkdir(parents=True)
    (trash / "run" / "link").symlink_to(outside, target_is_directory=True)
    (trash / "link").symlink_to(outside, target_is_directory=True)
    empty(trash)
    assert list(trash.iterdir()) == [] and (outside / "picture.png").read_bytes() == b"kept"


def test_what_is_in_use_stays_and_is_told(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "open.png").write_bytes(b"12")
    discard(tmp_path / "run", tmp_path / "trash", kind="run", now=1000.0)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    assert empty(tmp_path / "trash") == TrashSize(count=1, size=2)
    assert contents(tmp_path / "trash", "run") == [], "half a run is nothing to restore"


def test_a_name_that_no_folder_can_have_is_a_sentence(tmp_path):
    found = Discarded(path=tmp_path / "trash" / "x", kind="run", name="n" * 400, time=1.0)
    found.path.mkdir(parents=True)
    with pytest.raises(RunError, match="cannot be taken out of the trash"):
        restore(found, tmp_path / "runs")
    assert found.path.is_dir()
