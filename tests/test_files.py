import json
import os

import pytest

from lora_trainer import files
from lora_trainer.runs.folder import Heartbeat


def refusing(times):
    """os.replace as Windows does it while a reader holds the target."""
    real, calls = os.replace, []

    def replace(partial, target):
        calls.append(target)
        if len(calls) <= times:
            raise PermissionError(13, "Access is denied")
        real(partial, target)

    return replace


def test_on_windows_a_file_that_a_reader_holds_for_an_instant_is_replaced_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(files.os, "replace", refusing(3))
    with monkeypatch.context() as windows:
        windows.setattr(files.os, "name", "nt")
        files.write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_replaced_at_all_is_an_error_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", refusing(1000))
    with pytest.raises(PermissionError):
        files.write_text(tmp_path / "a.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    heartbeat = Heartbeat(tmp_path / "worker.json", {})
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "replace", refusing(1000))
        heartbeat.beat()
    heartbeat.beat()
    assert json.loads((tmp_path / "worker.json").read_text())["pid"] == os.getpid()


def test_a_stamp_is_another_when_the_file_is(tmp_path):
    path = tmp_path / "a.txt"
    assert files.stamp(path) == 0
    path.write_text("a", encoding="utf-8")
    os.utime(path, (1, 1))
    first = files.stamp(path)
    path.write_text("ab", encoding="utf-8")
    os.utime(path, (1, 1))
    assert len({0, first, files.stamp(path)}) == 3, "of one moment, and longer"
    os.utime(path, (2, 2))
    assert files.stamp(path) not in (0, first)
