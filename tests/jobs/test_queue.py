"""The line of waiting runs: its order, its memory of clicks, and many hands on it at once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lora_trainer.errors import RunError
from lora_trainer.jobs.queue import REMEMBERED_CLICKS, Queue, QueueState

ROOT = Path(__file__).resolve().parents[2]


def waiting(queue):
    return list(queue.read().waiting)


def test_runs_wait_in_the_order_they_came_and_another_process_sees_it(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    for run in ("ink", "水墨", "neon"):
        queue.add(run)
    queue.add("ink")
    queue.add("first", first=True)
    assert waiting(Queue(tmp_path / "queue.json")) == ["first", "ink", "水墨", "neon"]


@pytest.mark.parametrize(
    ("position", "order"), [(0, "cabd"), (1, "acbd"), (3, "abdc"), (99, "abdc"), (-5, "cabd")]
)
def test_a_run_moves_to_the_position_asked_for(tmp_path, position, order):
    queue = Queue(tmp_path / "queue.json")
    for run in "abcd":
        queue.add(run)
    queue.move("c", position)
    assert "".join(waiting(queue)) == order


def test_what_does_not_wait_can_neither_move_nor_leave(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    queue.add("a")
    for change in (lambda: queue.move("b", 0), lambda: queue.remove("b")):
        with pytest.raises(RunError, match="b is not in the queue"):
            change()
    queue.remove("a")
    assert waiting(queue) == []


def test_a_run_that_is_taken_is_neither_waiting_nor_forgotten(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    queue.add("a")
    queue.add("b")
    assert queue.take(7.0) == "a"
    assert queue.read() == QueueState(waiting=("b",), starting="a", taken=7.0)
    assert queue.take(8.0) == "a", "only one is started at a time"
    queue.put_back()
    assert waiting(queue) == ["a", "b"] and queue.read().starting is None
    queue.take(9.0)
    queue.drop("a")
    assert queue.take(10.0) == "b"
    queue.drop("b")
    assert queue.take(11.0) is None


def test_a_run_that_waits_again_is_still_waiting_when_its_start_is_settled(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    queue.add("a")
    queue.take(7.0)
    queue.settle("b")
    assert queue.read().starting == "a"
    queue.settle("a")
    queue.add("a")
    queue.settle("a")
    assert queue.read() == QueueState(waiting=("a",), starting=None, taken=7.0)


def once(queue, token, make):
    with queue.once(token) as click:
        click.run_id = click.run_id or make()
    return click.run_id


def test_one_click_makes_one_run_however_often_its_request_arrives(tmp_path):
    made = []

    def make():
        made.append(1)
        return f"run-{len(made)}"

    def click():
        answers.append(once(Queue(tmp_path / "queue.json"), "token-1", make))

    answers = []
    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["run-1"] * 8 and made == [1]
    assert once(Queue(tmp_path / "queue.json"), "token-2", make) == "run-2"
    assert waiting(Queue(tmp_path / "queue.json")) == ["run-1", "run-2"]


def test_a_click_may_put_its_run_in_front(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    queue.add("a")
    with queue.once("token", first=True) as click:
        click.run_id = "b"
    assert waiting(queue) == ["b", "a"]


def test_a_run_that_leaves_the_line_while_it_is_being_taken_is_not_taken(tmp_path, monkeypatch):
    queue = Queue(tmp_path / "queue.json")
    looks = [QueueState(waiting=("a",))]
    real = queue.read
    monkeypatch.setattr(queue, "read", lambda: looks.pop() if looks else real())
    assert queue.take(7.0) is None


def test_a_click_that_failed_may_be_repeated(tmp_path):
    queue = Queue(tmp_path / "queue.json")

    def fail():
        raise RunError("no images")

    with pytest.raises(RunError, match="no images"):
        once(queue, "token", fail)
    assert once(queue, "token", lambda: "run") == "run"


def test_a_click_is_remembered_when_its_run_has_long_ended(tmp_path):
    queue = Queue(tmp_path / "queue.json")
    once(queue, "token", lambda: "run")
    queue.drop("run")
    assert once(queue, "token", lambda: "another") == "run" and waiting(queue) == []


def test_old_clicks_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_trainer.jobs.queue.REMEMBERED_CLICKS", 3)
    queue = Queue(tmp_path / "queue.json")
    for number in range(5):
        once(queue, f"token-{number}", lambda number=number: f"run-{number}")
    assert list(queue.read().clicks) == ["token-2", "token-3", "token-4"]
    assert REMEMBERED_CLICKS >= 100


def test_changes_from_many_processes_are_all_kept(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from lora_trainer.jobs.queue import Queue\n"
        "queue = Queue(Path(sys.argv[2]))\n"
        "for number in range(10): queue.add(f'{sys.argv[3]}-{number}')\n"
    )
    path = tmp_path / "queue.json"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(path), name])
        for name in "abcd"
    ]
    assert [process.wait(300) for process in processes] == [0, 0, 0, 0]
    found = waiting(Queue(path))
    assert sorted(found) == sorted(f"{name}-{number}" for name in "abcd" for number in range(10))
    assert [run for run in found if run.startswith("a")] == [f"a-{number}" for number in range(10)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"waiting": 3}', "\udce4"])
def test_a_damaged_file_is_an_empty_queue(tmp_path, text):
    path = tmp_path / "queue.json"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    queue = Queue(path)
    assert queue.read() == QueueState()
    queue.add("a")
    assert waiting(queue) == ["a"]


def test_half_a_character_in_the_file_does_not_keep_a_run_out_of_the_queue(tmp_path):
    (tmp_path / "queue.json").write_text('{"waiting": ["b\\ud800"]}', encoding="utf-8")
    queue = Queue(tmp_path / "queue.json")
    queue.add("a")
    assert waiting(queue)[1:] == ["a"]


def test_a_damaged_file_is_told_once_and_not_every_second(tmp_path, caplog):
    (tmp_path / "queue.json").write_text("{", encoding="utf-8")
    queue = Queue(tmp_path / "queue.json")
    assert [queue.read() for _ in range(5)] == [QueueState()] * 5
    assert len(caplog.records) == 1
