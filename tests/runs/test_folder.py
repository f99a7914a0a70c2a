import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_trainer import files
from lora_trainer.errors import RunError
from lora_trainer.runs import folder as folders
from lora_trainer.runs import requests
from lora_trainer.runs.requests import (
    RunRequest,
    forget_requests,
    send_request,
    take_requests,
    waiting_requests,
)
from tests.killed import ended_process

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_never_begins_over_another(tmp_path):
    path = tmp_path / "my style 水墨"
    folder = folders.begin(path, "lora_rank: 8\n")
    folder.state.mkdir()
    (folder.state / "step00000001.pt").write_bytes(b"")
    with pytest.raises(RunError) as caught:
        folders.begin(path, "lora_rank: 4\n")
    assert (
        "already holds a run" in str(caught.value)
        and "resume" in str(caught.value.hint)
        and "水墨-2" in str(caught.value.hint)
    )
    assert folders.RunFolder(path).config.read_text(encoding="utf-8") == "lora_rank: 8\n"


def test_a_run_that_failed_before_it_learned_anything_makes_way_for_the_corrected_one(tmp_path):
    folders.begin(tmp_path / "run", "lora_rank: 8\n")
    assert (
        folders.begin(tmp_path / "run", "lora_rank: 4\n").config.read_text(encoding="utf-8")
        == "lora_rank: 4\n"
    )


def test_a_folder_with_other_files_can_become_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    folders.begin(tmp_path, "")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_as_output_dir_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="is a file"):
        folders.begin(tmp_path / "out", "")


def test_a_folder_in_which_no_lock_can_be_made_gets_a_sentence(tmp_path):
    (tmp_path / "run" / "begin.lock").mkdir(parents=True)
    with pytest.raises(RunError, match="output_dir .* cannot be written: "):
        folders.begin(tmp_path / "run", "")
    with pytest.raises(RunError, match="run cannot be written: ") as told:
        folders.begin_captioning(tmp_path / "run", "")
    assert "output_dir" not in str(told.value)


def test_two_workers_cannot_occupy_one_folder_and_the_lock_dies_with_its_holder(tmp_path):
    folder = folders.begin(tmp_path / "run", "")
    code = (
        "import sys, os; sys.path.insert(0, '.')\nfrom pathlib import Path; from lora_trainer.runs"
        " import folder\nwith folder.occupy(folder.RunFolder(Path(sys.argv[1])), {}): print('held',"
        " flush=True); sys.stdin.readline(); os._exit(1)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    assert folder.is_alive
    assert json.loads(folder.worker.read_text())["pid"] == holder.pid
    with pytest.raises(RunError, match="already training"), folders.occupy(folder, {}):
        pass
    (folder.path / "config.yaml").unlink()
    folder.caption_config.write_text("", encoding="utf-8")
    with (
        pytest.raises(RunError, match="a captioner is already running"),
        folders.occupy(folder, {}),
    ):
        pass
    holder.communicate("\n")
    assert not folder.is_alive
    with folders.occupy(folder, {"torch": "2"}):
        assert json.loads(folder.worker.read_text())["versions"] == {"torch": "2"}


def test_paths_in_events_are_relative_and_portable(tmp_path):
    folder = folders.RunFolder(tmp_path)
    assert (
        folder.relative(folder.saved_file("ink", 100)) == "checkpoints/ink-step00000100.safetensors"
    )


def test_requests_are_taken_once_and_in_order(tmp_path):
    for kind in ("pause", "resume", "save"):
        send_request(tmp_path, kind)
    send_request(tmp_path, "stop", keep=True)
    (tmp_path / "other.json").write_text("{]")
    assert take_requests(tmp_path) == [
        RunRequest("pause"),
        RunRequest("resume"),
        RunRequest("save"),
        RunRequest("stop", {"keep": True}),
    ]
    assert take_requests(tmp_path) == []
    assert (tmp_path / "other.json").exists()
    with pytest.raises(RunError, match="'fly' is not a request"):
        send_request(tmp_path, "fly")
    send_request(tmp_path, "stop")
    forget_requests(tmp_path)
    assert take_requests(tmp_path) == []


def test_requests_of_one_tick_of_the_clock_keep_their_order(tmp_path, monkeypatch):
    moment = time.time_ns()
    monkeypatch.setattr(requests, "time_ns", lambda: moment)
    kinds = ["resume", "pause", "resume", "ask", "ask", "pause"]
    names = [send_request(tmp_path, kind) for kind in kinds]
    taken = take_requests(tmp_path)
    assert [request.kind for request in taken] == kinds
    assert [request.name for request in taken] == names


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    files.write_text(target, "old")

    def fail(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        files.replace_file(target, fail)
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_request_that_cannot_be_deleted_yet_is_not_obeyed_twice(tmp_path, monkeypatch):
    send_request(tmp_path, "save")
    real, refused = Path.unlink, []

    def unlink(self, missing_ok=False):
        if self.suffix == ".json" and not refused:
            refused.append(self)
            raise PermissionError(13, "Access is denied")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert [request for _ in range(3) for request in take_requests(tmp_path)] == [
        RunRequest("save")
    ]


RACER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lora_trainer.errors import RunError
from lora_trainer.runs import folder
while time.time() < float(sys.argv[3]): pass
try:
    with folder.begun(Path(sys.argv[2]), f"name: {sys.argv[4]}"):
        print("begun", flush=True)
        sys.stdin.readline()
except RunError as error:
    print(error, flush=True)
"""


def test_of_several_that_begin_in_one_folder_at_the_same_instant_one_does(tmp_path):
    path, moment = tmp_path / "my run", time.time() + 1.0
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(ROOT), str(path), str(moment), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    told = [racer.stdout.readline().strip() for racer in racers]
    assert sorted(told) == sorted(["begun", *[f"another training is being started in {path}"] * 3])
    assert (path / "config.yaml").read_text() == f"name: {told.index('begun')}"
    for racer in racers:
        racer.communicate("\n")
    # the winner is gone without having learned anything: the folder is free again
    with folders.begun(path, "name: next") as folder:
        assert folder.config.read_text() == "name: next"


def test_who_begins_where_a_worker_is_at_work_is_told_where_and_what_to_do(tmp_path):
    folder = folders.begin(tmp_path / "run", "name: a")
    with folders.occupy(folder, {}), pytest.raises(RunError) as raised:
        folders.begin(folder.path, "name: b")
    assert raised.value.report().startswith(
        f"a worker is already training in {folder.path}\n`python -m lora_trainer status"
        f' "{folder.path}"`'
    )
    assert raised.value.report().endswith("Another training needs an output_dir of its own.")
    assert folder.config.read_text() == "name: a"


def test_a_new_run_takes_no_folder_that_is_there(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(folders.Taken, match="exists already"):
        folders.begin(tmp_path / "run", "", new=True)
    assert list((tmp_path / "run").iterdir()) == []
    assert folders.begin(tmp_path / "run-2", "name: a", new=True).config.read_text() == "name: a"


def test_what_a_killed_worker_left_half_written_is_gone_when_the_next_one_works(tmp_path):
    folder = folders.begin(tmp_path / "run", "")
    left = [
        "checkpoints/ink-step00000100.safetensors.77.part",
        "state/step00000100.pt.77.part",
        "previews/a.png.77.part",
        "cache/images/0a.safetensors.77.part",
    ]
    dead = f"{files.writer_id().partition('-')[0]}-{ended_process()}"
    left += [
        f"{name}.{dead}.part"
        for name in ("ink.safetensors", "worker.json", "config.yaml", "host.json")
    ]
    alive = f"host.json.{files.writer_id()}.part"
    kept = [
        "checkpoints/ink-step00000100.safetensors",
        "state/step00000100.pt",
        "notes.part",
        "requests/1-2-stop.json.9.part",
        alive,
    ]
    for name in (*left, *kept):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"")
    with folders.occupy(folder, {}):
        assert [name for name in left if (folder.path / name).exists()] == []
        assert [name for name in kept if not (folder.path / name).exists()] == []


def test_what_waits_to_be_taken_can_be_seen_without_taking_it(tmp_path):
    for kind in ("pause", "resume"):
        send_request(tmp_path, kind)
    (tmp_path / "other.json").write_text("{]")
    assert (
        waiting_requests(tmp_path) == ("pause", "resume")
        and waiting_requests(tmp_path / "none") == ()
    )
    assert [request.kind for request in take_requests(tmp_path)] == ["pause", "resume"]


def test_a_caption_job_holds_a_caption_yaml_and_takes_the_folder_of_an_earlier_one(tmp_path):
    folder = folders.begin_captioning(tmp_path / "run", "captioner: blip\n")
    assert (folder.job, folders.existing(tmp_path / "run").job) == ("caption", "caption")
    assert (
        folders.begin_captioning(tmp_path / "run", "captioner: wd\n").caption_config.read_text(
            encoding="utf-8"
        )
        == "captioner: wd\n"
    )
    assert folders.begin(tmp_path / "training", "lora_rank: 8\n").job == "train"


def test_no_caption_job_begins_where_a_worker_is_or_a_training_was(tmp_path):
    folder = folders.begin_captioning(tmp_path / "run", "captioner: blip\n")
    with folders.occupy(folder, {}), pytest.raises(RunError, match="already"):
        folders.begin_captioning(tmp_path / "run", "captioner: wd\n")
    folders.begin(tmp_path / "training", "lora_rank: 8\n")
    with pytest.raises(RunError, match="is the folder of a training"):
        folders.begin_captioning(tmp_path / "training", "captioner: wd\n")


def test_a_dataset_in_which_no_folder_can_be_made_is_named_without_settings_nobody_gave(tmp_path):
    (tmp_path / "images").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError) as caught:
        folders.begin_captioning(tmp_path / "images" / "captioning", "")
    assert str(caught.value).startswith(f"{tmp_path / 'images' / 'captioning'} cannot be written: ")


def test_a_caption_job_that_wants_a_folder_of_its_own_takes_no_other(tmp_path):
    folder = folders.begin_captioning(tmp_path / "run", "captioner: blip\n", new=True)
    with pytest.raises(folders.Taken):
        folders.begin_captioning(tmp_path / "run", "captioner: wd\n", new=True)
    assert folder.caption_config.read_text(encoding="utf-8") == "captioner: blip\n"


def test_an_empty_folder_that_was_named_is_the_one_that_was_meant(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    assert folders.free_folder(tmp_path / "empty") == tmp_path / "empty"
    assert folders.free_folder(tmp_path / "none") == tmp_path / "none"
    assert folders.free_folder(tmp_path / "full") == tmp_path / "full-2"
