"""The list of runs: quick, whole, and undisturbed by broken folders."""

import json
import os
import random
import time

import pytest

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.jobs import history
from lora_trainer.jobs.history import Curve, EventLog, History, thinned
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import Failed, read_events, to_line
from lora_trainer.runs.requests import send_request
from lora_trainer.runs.state import fold
from tests.jobs.logs import BEGUN, FINISHED, TRAINED, append, steps, write_run
from tests.settings.test_training import BROKEN_YAML


def test_runs_are_listed_newest_first(tmp_path):
    for name, start in (("old", 1000.0), ("newest", 3000.0), ("新", 2000.0)):
        write_run(tmp_path / name, *FINISHED, start=start)
    assert [(entry.id, entry.state.status) for entry in History(tmp_path).listing()] == [
        ("newest", "finished"),
        ("新", "finished"),
        ("old", "finished"),
    ]


def test_broken_folders_are_shown_with_a_sentence(tmp_path):
    write_run(tmp_path / "good", *FINISHED)
    for name, text in (
        ("torn", b"train_data_dir: [a"),
        ("list", b"- a\n- b\n"),
        ("bytes", b"name: \xff\xfe\n"),
    ):
        write_run(tmp_path / name, *FINISHED)
        (tmp_path / name / "config.yaml").write_bytes(text)
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "notes.txt").write_text("mine")
    (tmp_path / "folder as config" / "config.yaml").mkdir(parents=True)
    write_run(tmp_path / "noise", *BEGUN)
    (tmp_path / "noise" / "events.jsonl").write_bytes(
        b"\x00\xff{}\n[1]\n" + b'{"event":"progress","step":"x"}\n' * 3
    )
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / ".hidden", *FINISHED)
    (tmp_path / "file").write_text("")
    found = {entry.id: entry for entry in History(tmp_path).listing()}
    assert set(found) == {"good", "torn", "list", "bytes", "stray", "folder as config", "noise"}
    assert found["good"].problem is None and found["noise"].problem is None
    assert "has no config.yaml" in str(found["stray"].problem)
    assert all(str(found[name].problem) for name in ("torn", "list", "bytes", "folder as config"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_itself_hides_no_other_run(tmp_path):
    write_run(tmp_path / "good", *FINISHED)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert [entry.id for entry in History(tmp_path).listing()] == ["good"]


def test_a_curve_passes_over_lines_that_are_no_steps(tmp_path):
    folder = write_run(tmp_path / "ink", *BEGUN)
    noise = [
        '"step":"x","loss":1',
        '"step":1e400,"loss":1',
        '"step":1,"loss":"low"',
        '"step":2,"loss":1' + "0" * 400,
        '"step":' + "[" * 100_000,
    ]
    with folder.events.open("a", encoding="utf-8") as stream:
        stream.writelines(
            '{"event":"progress",' + line + "}\n" for line in [*noise, '"step":3,"loss":0.5']
        )
    assert History(tmp_path).curve("ink").since(0)[0] == [(3, 0.5, None)]


def test_an_unknown_run_gets_a_sentence(tmp_path):
    with pytest.raises(RunError, match="there is no run nothing"):
        History(tmp_path).entry("nothing")


def test_a_folder_that_is_gone_is_no_longer_listed_and_its_successor_is_read_anew(tmp_path):
    runs = History(tmp_path)
    folder = write_run(tmp_path / "ink", *FINISHED)
    assert runs.entry("ink").state.step == 10
    folder.path.rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    assert runs.listing() == []
    write_run(tmp_path / "ink", *BEGUN)
    assert runs.entry("ink").state.status == "running" and runs.entry("ink").state.step == 0


def test_a_run_that_is_being_created_is_not_listed_as_damaged(tmp_path, monkeypatch):
    runs, seen, replace = History(tmp_path), [], os.replace

    def listed_before(source, target):
        seen.append([path.name.split(".")[0] for path in (tmp_path / "ink").iterdir()])
        seen.append(runs.listing())
        replace(source, target)

    monkeypatch.setattr(os, "replace", listed_before)
    folders.begin(tmp_path / "ink", "name: ink\n", new=True)
    assert (sorted(seen[0]), seen[1:]) == (["begin", "config"], [[]])
    assert [entry.problem for entry in runs.listing()] == [None]


def test_a_run_that_is_deleted_while_all_are_read_is_not_listed_as_damaged(tmp_path, monkeypatch):
    write_run(tmp_path / "ink", *FINISHED)
    monkeypatch.setattr(history, "_is_empty", lambda path: path.rename(tmp_path / ".trash") is None)
    assert History(tmp_path).listing() == []


def test_a_longer_run_that_takes_the_folder_is_read_from_its_beginning(tmp_path):
    runs = History(tmp_path)
    write_run(tmp_path / "ink", *FINISHED)
    assert (runs.entry("ink").state.step, len(runs.curve("ink").since(0)[0])) == (10, 10)
    (tmp_path / "ink").rename(tmp_path / "elsewhere")
    write_run(tmp_path / "ink", *BEGUN, *steps(1, 40))
    assert (runs.entry("ink").state.status, runs.entry("ink").state.step) == ("running", 40)
    assert [point[0] for point in runs.curve("ink").since(0)[0]] == list(range(1, 41))


def test_a_torn_line_hides_no_step_before_it(tmp_path):
    folder = write_run(tmp_path / "ink", *BEGUN, *steps(1, 5))
    with folder.events.open("ab") as stream:
        stream.write(b'{"event":"progress","step":6,"loss":0.\n')
    assert EventLog(folder.events).read_on().step == 5


def random_log(draw):
    """Anything a worker may write, and some things it does not."""
    made = []
    for _ in range(draw.randrange(5, 60)):
        made += draw.choice(
            [
                lambda: [events.Started(resumed_from=draw.choice([None, 3]))],
                lambda: [
                    events.Phase(
                        phase=draw.choice(["training", "encoding", "saving"]),
                        total=draw.randrange(9),
                    )
                ],
                lambda: [
                    events.Progress(
                        step=draw.randrange(50), loss=draw.random(), seconds_left=draw.random()
                    )
                    for _ in range(draw.randrange(9))
                ],
                lambda: [
                    events.Progress(step=draw.randrange(50)) for _ in range(draw.randrange(4))
                ],
                lambda: [
                    events.Saved(step=draw.randrange(9), file=f"{draw.randrange(3)}.safetensors")
                ],
                lambda: [events.Previewed(step=draw.randrange(9), file="a.png")],
                lambda: [events.Paused(step=1), events.Resumed(step=1)],
                lambda: [events.Finished(step=9, file="x")],
            ]
        )()
    return made


@pytest.mark.parametrize("seed", range(20))
def test_reading_in_pieces_and_skipping_gives_the_state_of_reading_everything(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "events.jsonl"
    text = b"".join(to_line(event).encode() + b"\n" for event in random_log(draw))
    log, whole = EventLog(path), b""
    cuts = sorted(draw.randrange(len(text)) for _ in range(4))
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        whole += text[begin:end]
        path.write_bytes(whole) if not path.exists() else _append(path, text[begin:end])
        read = log.read_on()
    assert read == fold(read_events(path)[0])


def _append(path, piece):
    with path.open("ab") as stream:
        stream.write(piece)


def test_a_look_at_a_run_of_100000_events_reads_only_what_is_new(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "long")
    lines = [
        to_line(event)
        for event in (*BEGUN, events.Phase(phase="training", total=100_000), *steps(1, 100_000))
    ]
    folder.events.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runs = History(tmp_path)
    began = time.thread_time()
    assert runs.entry("long").state.step == 100_000
    points, whole = runs.curve("long").since(0)
    assert whole and len(points) == 100_000 and time.thread_time() - began < 5.0
    read = []
    real = history._whole_lines

    def counted(path, offset, end=None):
        lines, after = real(path, offset, end)
        read.append(after - offset)
        return lines, after

    monkeypatch.setattr(history, "_whole_lines", counted)
    offset = runs.curve("long").offset
    runs.entry("long")
    assert read == []
    append(folder, *steps(100_001, 100_002))
    assert runs.entry("long").state.step == 100_002
    curve = runs.curve("long")
    assert curve.since(offset) == (
        [(100_001, 1000.01, 2000.02), (100_002, 1000.02, 2000.04)],
        False,
    )
    assert sum(read) < 1000


def test_300_runs_are_listed_in_an_instant(tmp_path):
    text = "".join(
        to_line(event) + "\n"
        for event in (*BEGUN, events.Phase(phase="training", total=500), *steps(1, 500))
    )
    for number in range(300):
        write_run(tmp_path / f"run-{number:03d}").events.write_text(text, encoding="utf-8")
    runs = History(tmp_path)
    began = time.thread_time()
    assert len(runs.listing()) == 300
    first = time.thread_time() - began
    began = time.thread_time()
    runs.listing()
    again = time.thread_time() - began
    # measured 0.35 s and 0.05 s on one busy core
    assert first < 5.0 and again < 1.0


def test_the_curve_of_a_resumed_run_goes_back_to_the_resume_point(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED, events.Stopped(step=10))
    curve = Curve(folder.events)
    curve.read_on()
    offset = curve.offset
    append(folder, events.Started(resumed_from=4), *steps(5, 6))
    curve.read_on()
    assert [point[0] for point in curve.since(0)[0]] == [1, 2, 3, 4, 5, 6]
    assert curve.since(offset) == (
        curve.since(0)[0],
        True,
    ), "a browser in the middle is given all of it"
    assert curve.since(curve.offset) == ([], False)
    assert curve.since(10**9)[1] is True, "an offset of another file"


def test_a_curve_tells_nothing_beyond_the_byte_up_to_which_it_was_read(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    curve = Curve(folder.events)
    curve.read_on()
    offset = curve.offset
    append(folder, *steps(11, 12))
    curve.read_on()
    append(folder, *steps(13, 13))
    assert [point[0] for point in curve.since(offset)[0]] == [11, 12]


def test_a_curve_keeps_its_ends_when_it_is_thinned():
    points = [(step, 1.0, None) for step in range(1, 10_001)]
    thin = thinned(points, 600)
    assert len(thin) == 600 and thin[0] == points[0] and thin[-1] == points[-1]
    assert [point[0] for point in thin] == sorted({point[0] for point in thin})
    assert thinned(points[:600], 600) == points[:600]


def test_a_noted_death_ends_the_run_until_something_is_heard_of_it_again(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    runs = History(tmp_path)
    assert runs.entry("ink").state.status == "running"
    folder.write_death(Failed(time=2000.0, error="WorkerDied", message="it died 水", hint="again"))
    assert (runs.entry("ink").state.status, runs.entry("ink").state.failure.message) == (
        "failed",
        "it died 水",
    )
    assert folder.read_state().status == "failed"
    append(folder, events.Started(resumed_from=4), start=3000.0)
    assert runs.entry("ink").state.status == "running"
    folder.death.write_bytes(b"\xff{")
    assert runs.entry("ink").state.status == "running"


def test_a_worker_that_has_not_spoken_yet_is_told_apart_from_the_one_before(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED, events.Stopped(step=10))
    runs = History(tmp_path)
    with files.lock(folder.lock):
        folder.worker.write_text(json.dumps({"pid": 1, "started": 1500.0}), encoding="utf-8")
        send_request(folder.requests, "stop")
        entry = runs.entry("ink")
        assert (entry.alive, entry.heard, entry.asked) == (
            True,
            False,
            ("stop",),
        ) and runs.alive() == ("ink",)
        append(folder, events.Started(), start=1501.0)
        assert runs.entry("ink").heard
    assert not runs.entry("ink").alive and runs.alive() == ()


def test_a_caption_job_is_a_run_too(tmp_path):
    folder = write_run(tmp_path / "captions", events.Started(job="caption"), events.Finished())
    folder.config.rename(folder.path / "caption.yaml")
    assert [
        (entry.job, entry.state.status, entry.problem) for entry in History(tmp_path).listing()
    ] == [("caption", "finished", None)]


def test_the_resume_point_is_the_newest_state(tmp_path):
    folder = write_run(tmp_path / "ink", *TRAINED)
    assert History(tmp_path).entry("ink").resume_step is None
    folder.state.mkdir()
    for name in ("step00000004.pt", "step00000008.pt", "step00000009.pt.77.part", "notes.txt"):
        (folder.state / name).write_bytes(b"")
    assert History(tmp_path).entry("ink").resume_step == 8


def test_one_broken_run_never_hides_the_others(tmp_path):
    write_run(tmp_path / "good", *FINISHED)
    for what, text in BROKEN_YAML.items():
        write_run(tmp_path / what.replace(",", ""), *FINISHED).config.write_text(
            text, encoding="utf-8"
        )
    entries = {entry.id: entry for entry in History(tmp_path).listing()}
    assert len(entries) == len(BROKEN_YAML) + 1
    assert [name for name, entry in entries.items() if entry.problem is None] == ["good"]
    for entry in entries.values():
        json.dumps(
            [dict(entry.settings), str(entry.problem)], default=str, ensure_ascii=False
        ).encode("utf-8")
