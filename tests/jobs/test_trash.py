import json
from pathlib import Path

import pytest

from lora_trainer.errors import RunError
from lora_trainer.jobs.trash import NOTE, contents, discard, restore
from tests.jobs.logs import FINISHED, write_run


def test_what_is_discarded_can_be_restored_as_it_was(tmp_path):
    folder = write_run(tmp_path / "runs" / "水墨 ink", *FINISHED)
    before = sorted(path.name for path in folder.path.iterdir())
    found = discard(folder.path, tmp_path / "trash", kind="run", now=1000.0)
    assert not folder.path.exists() and found.path.parent == tmp_path / "trash" and found.id.endswith("-水墨 ink")
    assert contents(tmp_path / "trash", "run") == [found] and contents(tmp_path / "trash", "dataset") == []
    assert restore(found, tmp_path / "runs") == folder.path
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert contents(tmp_path / "trash", "run") == []


def test_nothing_is_overwritten_in_the_trash_or_by_what_comes_out_of_it(tmp_path):
    for _ in range(2):
        discard(write_run(tmp_path / "runs" / "ink", *FINISHED).path, tmp_path / "trash", kind="run", now=1000.0)
    first, second = contents(tmp_path / "trash", "run")
    write_run(tmp_path / "runs" / "ink")
    assert {restore(found, tmp_path / "runs").name for found in (first, second)} == {"ink-2", "ink-3"}


@pytest.mark.parametrize("name", ["../../outside", "..\\..\\outside", "/etc/outside", ".."])
def test_a_forged_note_leads_nowhere_else(tmp_path, name):
    discard(write_run(tmp_path / "runs" / "ink").path, tmp_path / "trash", kind="run", now=1000.0)
    (found,) = contents(tmp_path / "trash", "run")
    (found.path / NOTE).write_text(json.dumps({"kind": "run", "name": name, "time": 1}), encoding="utf-8")
    (found,) = contents(tmp_path / "trash", "run")
    assert restore(found, tmp_path / "runs").parent.resolve() == (tmp_path / "runs").resolve()


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
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="being used by another process") as caught:
        discard(folder.path, tmp_path / "trash", kind="run", now=1.0)
    assert "Close the programs" in str(caught.value.hint) and sorted(folder.path.iterdir()) == before
