import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_trainer import files
from lora_trainer.runs.folder import Heartbeat
from tests.killed import ended_process, killed_at


def refusing(times):
    """os.replace as Windows does it while a reader holds the target."""
    real, calls = os.replace, []

    def replace(partial, target):
        calls.append(target)
        if len(calls) <= times:
            raise PermissionError(13, "Access is denied")
        real(partial, target)

    return replace


def test_on_windows_a_file_that_a_reader_holds_for_an_instant_is_replaced_all_the_same(
    tmp_path, monkeypatch
):
    files.write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(files.os, "replace", refusing(3))
    with monkeypatch.context() as windows:
        windows.setattr(files.os, "name", "nt")
        files.write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new" and [
        path.name for path in tmp_path.iterdir()
    ] == ["a.json"]


def test_a_file_that_cannot_be_replaced_at_all_is_an_error_and_leaves_nothing_beside_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files.os, "replace", refusing(1000))
    with pytest.raises(PermissionError):
        files.write_text(tmp_path / "a.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_threads_may_write_one_file_at_once(tmp_path):
    target, at_once = tmp_path / "a.json", threading.Barrier(4)

    def write(letter):
        def fill(partial):
            at_once.wait(120)
            partial.write_text(letter * 1000)
            at_once.wait(120)
            assert partial.read_text() == letter * 1000

        for _ in range(5):
            files.replace_file(target, fill)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert target.read_text() in [letter * 1000 for letter in "abcd"] and list(
        tmp_path.iterdir()
    ) == [target]


def test_who_looks_at_a_lock_is_not_taken_for_its_holder(tmp_path):
    path = tmp_path / "lock"
    assert not files.is_locked(path) and not path.exists()
    with files.lock(path):
        assert files.is_locked(path) and files.is_locked(path, shared=True)
    assert not files.is_locked(path) and not files.is_locked(path, shared=True)
    fcntl = pytest.importorskip("fcntl", reason="Windows has no shared locks")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not files.is_locked(path) and files.is_locked(path, shared=True)


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


DEEP = "[" * 2000 + "]" * 2000
NOT_JSON = {
    "": "Expecting value",
    "{": "Expecting property name",
    DEEP: "nested more than 100 deep",
    '["]",' * 2000 + "1" + "]" * 2000: "nested more than 100 deep",
    '{"a":' * 2000 + "1" + "}" * 2000: "nested more than 100 deep",
    "7" * 5000: "5,000 digits",
    '{"step": -' + "7" * 5000 + "}": "digits",
    "1e999": "too large",
    "1" * 400 + ".0": "too large",
    "NaN": "NaN is no number",
    '{"loss": -Infinity}': "-Infinity is no number",
    '"\\ud800"': "lone surrogate",
    '{"\\uDFFF": 1}': "lone surrogate",
    b'"\xff"': "utf-8",
    b"\x00\x01": "Expecting value",
    "1 2": "Extra data",
}


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: repr(text[:12]))
def test_what_is_no_json_is_told_as_that_whatever_it_is(text, tmp_path):
    with pytest.raises(files.NotJson, match=NOT_JSON[text]):
        files.parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert files.read_json(tmp_path / "a.json", dict, {"nothing": 1}) == {"nothing": 1}


def test_what_is_json_is_read(tmp_path):
    values = {
        "name": "Füchse 🦊 \\ud800",
        "parts": [1, -2.5, 1e300, None, True, int("9" * 300)],
        "deep": json.loads("[" * 90 + "]" * 90),
    }
    assert files.parse_json(json.dumps(values)) == values
    assert files.parse_json(json.dumps(values, ensure_ascii=False).encode("utf-8-sig")) == values
    assert files.parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(files.NotJson, match="occurs twice"):
        files.parse_json('[{"a": 1, "a": 2}]', unique=True)
    assert files.parse_json('{"a": [1, 2.5]}', unique=True) == {"a": [1, 2.5]}
    name = os.fsdecode(b"caf\xe9.png")
    assert files.parse_json(json.dumps(name), names=True) == name
    assert files.parse_json("[-Infinity]", infinite=True) == [float("-inf")]


def test_a_json_file_of_another_shape_or_none_is_the_default(tmp_path):
    def number(told):
        return int(told["parts"][0]) // told["by"]

    path = tmp_path / "a.json"
    assert files.read_json(path, number, -1) == -1
    for text in (
        "[]",
        "7",
        "null",
        "{}",
        '{"parts": 3}',
        '{"parts": []}',
        '{"parts": [1], "by": 0}',
        '{"parts": ["x"], "by": 1}',
    ):
        path.write_text(text, encoding="utf-8")
        assert files.read_json(path, number, -1) == -1, text
    path.write_text('{"parts": [9], "by": 2}', encoding="utf-8")
    assert files.read_json(path, number, -1) == 4
    path.unlink()
    path.mkdir()
    assert files.read_json(path, number, -1) == -1


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders")
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    assert files.read_json(tmp_path / "a.json", dict, None) is None


def test_a_large_json_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_SIZE", 2 << 20)
    (tmp_path / "a.json").write_text(" " * (2 << 20) + "1", encoding="utf-8")
    with pytest.raises(files.NotJson, match="larger than 2 MB"):
        files.load_json(tmp_path / "a.json")


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
def test_what_a_killed_process_left_is_cleared_by_the_next_that_writes_there(tmp_path, monkeypatch):
    step = 1
    while killed_at(step, tmp_path, lambda: files.write_text(tmp_path / "captions.json", "half")):
        step += 1
        monkeypatch.setattr(files, "_cleaned_folders", set())  # the next process
        files.write_text(tmp_path / "other.json", "whole")
        assert {path.name for path in tmp_path.iterdir()} <= {"captions.json", "other.json"}
    assert step > 3


def test_what_a_living_process_or_another_machine_is_writing_is_let_be_for_a_day(tmp_path):
    machine = files.writer_id().partition("-")[0]
    half = {
        "own": f"a.json.{machine}-{os.getpid()}.part",
        "dead": f"b.json.{machine}-{ended_process()}.part",
        "elsewhere": "c.json.00c0ffee-1.part",
        "no number": f"d.json.{machine}-99999999999.part",
        "a claim": "cat.safetensors.part",
        "older": "e.json.77.part",
        "own, one of many": f"a.json.{machine}-{os.getpid()}-12.part",
        "dead, one of many": f"b.json.{machine}-{ended_process()}-3.part",
    }
    for name in half.values():
        (tmp_path / name).touch()
    files.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        name for what, name in half.items() if not what.startswith("dead")
    }
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 90000, time.time() - 90000))
    files.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {half["no number"], half["a claim"]}
