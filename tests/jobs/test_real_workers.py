"""Workers in processes of their own, started, paused, killed and continued; the host is this test,
or a process that it ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora_trainer.jobs import resume
from lora_trainer.jobs.history import History
from lora_trainer.jobs.queue import Queue
from lora_trainer.jobs.scheduler import Scheduler
from lora_trainer.jobs.start import note_death, start_worker, tail
from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import send_request
from tests.made import begin, losses

ROOT = Path(__file__).resolve().parents[2]


class Host:
    """A WebUI as far as runs go: a scheduler on a data folder."""

    def __init__(self, root):
        self.history = History(root / "runs")
        self.queue = Queue(root / "queue.json")
        self.shown = []
        self.scheduler = Scheduler(
            history=self.history,
            queue=self.queue,
            lock=root / "keeper.lock",
            trash=root / "trash",
            delivered=lambda: self.shown.append(1),
        )

    def until(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            self.scheduler.tick()
            time.sleep(0.05)


def make(root, name, **changes):
    return begin(root, f"runs/{name}", **{"save_steps": 1000, **changes})


def pid_of(folder):
    return json.loads(folder.worker.read_text(encoding="utf-8"))["pid"]


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.usefixtures("forked_workers")
def test_two_runs_one_after_the_other_through_pause_kill_a_new_host_and_continue(tmp_path):
    (tmp_path / "Lora").mkdir()
    first = make(tmp_path, "first", epochs=3000, save_steps=3)
    second = make(tmp_path, "second", max_train_steps=2, lora_dir=str(tmp_path / "Lora"))
    host = Host(tmp_path)
    for name in ("first", "second"):
        host.queue.add(name)
    host.until(lambda: first.read_state().step >= 4)
    assert host.scheduler.active() == ("first",) and not second.events.exists()
    send_request(first.requests, "pause")
    host.until(lambda: first.read_state().status == "paused")

    # the host is closed and started again: the run is where it was, and the next one still waits
    host.scheduler.close()
    host = Host(tmp_path)
    host.scheduler.tick()
    assert host.scheduler.active() == ("first",) and host.queue.read().waiting == ("second",)
    assert first.read_state().status == "paused" and host.history.entry("first").alive
    send_request(first.requests, "resume")
    paused_at = first.read_state().step
    host.until(lambda: first.read_state().step > paused_at)

    if os.name == "nt":
        return
    os.kill(pid_of(first), signal.SIGKILL)
    (first.checkpoints / "first-step00000099.safetensors.77.part").write_bytes(b"half")
    (first.state / "step00000099.pt.77.part").write_bytes(b"half")
    host.until(lambda: second.read_state().status == "finished" and not host.scheduler.active())
    assert host.shown == [1] and load_file(tmp_path / "Lora" / "second.safetensors")
    died = host.history.entry("first")
    assert (
        died.state.status == "failed"
        and "ended unexpectedly" in died.state.failure.message
        and died.resume_step >= 3
    )

    # what a finished run and a dead one need to go on
    resume.prepare(first, {"max_train_steps": died.resume_step + 2})
    resume.prepare(second, {"max_train_steps": 3})
    for name in ("second", "first"):
        host.queue.add(name)
    host.until(
        lambda: (
            second.read_state().step == 3
            and first.read_state().status == "finished"
            and not host.scheduler.active()
        )
    )
    began = [
        event.resumed_from for event in second.read_events() if isinstance(event, events.Started)
    ]
    assert began == [None, 2] and losses(second)[2:] and len(losses(second)) == 3
    assert host.history.entry("first").state.step == died.resume_step + 2
    assert not list(first.path.rglob("*.part"))
    assert host.queue.read().waiting == () and host.shown == [1, 1]


def test_a_stop_asked_while_the_worker_starts_is_not_lost_and_an_old_one_is(tmp_path):
    folder = make(tmp_path, "ink", epochs=3000)
    send_request(folder.requests, "stop")
    worker = start_worker(folder, apart=True)
    assert not list(folder.requests.glob("*.json")), "asked of an earlier worker"
    send_request(folder.requests, "stop")
    assert worker.wait(300) == 3
    state = folder.read_state()
    assert (state.status, state.step) == ("stopped", 0)
    assert note_death(folder, 3) is None and not folder.death.exists()


HOST = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lora_trainer.jobs.start import start_worker
from lora_trainer.runs.folder import RunFolder
start_worker(RunFolder(Path(sys.argv[2])), apart=True, ends_with_us=sys.argv[3] == "tied")
print("started", flush=True)
sys.stdin.readline()
os._exit(0)
"""


def host_process(folder, how):
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(ROOT), str(folder.path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and groups")
def test_a_worker_outlives_its_host_and_the_ctrl_c_in_its_terminal_or_ends_with_it_as_chosen(
    tmp_path,
):
    free, tied = make(tmp_path, "free", epochs=30000), make(tmp_path, "tied", epochs=30000)
    hosts = [host_process(free, "free"), host_process(tied, "tied")]
    wait_for(lambda: free.read_state().step >= 1 and tied.read_state().step >= 1)
    # a terminal sends Ctrl-C to every process of the foreground group
    os.killpg(hosts[0].pid, signal.SIGINT)
    hosts[1].communicate("\n")
    hosts[0].communicate()
    wait_for(lambda: tied.read_state().ended)
    state = tied.read_state()
    assert state.status == "stopped" and load_file(tied.path / state.file)
    step = free.read_state().step
    wait_for(lambda: free.read_state().step > step)
    assert free.is_alive
    send_request(free.requests, "stop")
    wait_for(lambda: free.read_state().ended and not free.is_alive)


def test_last_words_are_what_a_terminal_would_show(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes("loading\r 10%\r100%\r\n2026 INFO x: y\nKilled 水\n".encode() * 400)
    assert tail(log, lines=2) == "100% / Killed 水"
    assert tail(tmp_path / "none") == ""
    assert RunFolder(tmp_path).log == log
