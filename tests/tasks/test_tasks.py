"""Another task, and another hook: one file each, and nothing else changes."""

import gc
import json

from lora_trainer import tasks
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.tasks import hooks
from lora_trainer.training.loop import Loop
from lora_trainer.worker import job
from tests.made import begin, losses

COUNTING = """
from lora_trainer.errors import OutOfMemory
from lora_trainer.runs import events
from lora_trainer.tasks.base import Task
from lora_trainer.tasks.control import Control, Requests
from lora_trainer.training.loop import Hook, Loop, StopRequested


class Count:
    step = 0

    @property
    def is_over(self):
        return self.step == 3

    def advance(self):
        self.step += 1


class Telling(Hook):
    def __init__(self, report):
        self.report = report

    def after_step(self, loop, result):
        self.report.write(events.Progress(step=loop.work.step))


class CountingTask(Task):
    settings_file = "counting.yaml"

    def run(self):
        count = Count()
        try:
            Loop(count, [Requests(Control(self.report)), Telling(self.report)]).run()
        except StopRequested:
            self.report.write(events.Stopped(step=count.step))
            return "stopped"
        if (self.folder.path / "large").exists():
            raise MemoryError
        self.report.write(events.Finished(step=count.step))
        return "finished"

    @classmethod
    def out_of_memory(cls, folder):
        return OutOfMemory("no memory to count in", hint="Count less.")
"""

MEASURING = """
import json

from lora_trainer.tasks.hooks import TrainingHook


class Measuring(TrainingHook):
    def after_save(self, loop, file):
        norm = sum(float(each.detach().norm()) for _, each in loop.work.adapters.parameters())
        with (self.run.folder.path / "norms.jsonl").open("a", encoding="utf-8") as norms:
            norms.write(json.dumps([loop.work.step, file.name, file.exists(), norm]) + "\\n")
"""


def put(monkeypatch, folder, package, name, source):
    """A module of the package, from a folder of its own, for one test."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def counting(tmp_path, monkeypatch):
    put(monkeypatch, tmp_path / "more", tasks, "counting", COUNTING)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "counting.yaml").write_text("", encoding="utf-8")
    return folders.existing(tmp_path / "run")


def test_another_task_is_one_module(tmp_path, monkeypatch):
    folder = counting(tmp_path, monkeypatch)
    assert job.run(folder.path) == job.FINISHED
    assert [event.kind for event in folder.read_events()] == ["progress"] * 3 + ["finished"]
    send_request(folder.requests, "stop")
    assert job.run(folder.path) == job.STOPPED
    assert folder.read_events()[-1].kind == "stopped"


def test_garbage_is_collected_again_as_soon_as_the_task_is_imported(tmp_path, monkeypatch):
    folder = counting(tmp_path, monkeypatch)
    seen = []
    monkeypatch.setattr(Loop, "run", lambda loop: seen.append(gc.isenabled()))
    gc.disable()  # as the worker's entry file does
    try:
        job.run(folder.path)
    finally:
        gc.enable()
        gc.unfreeze()
    assert seen == [True]


def test_memory_that_runs_out_is_told_in_the_tasks_own_words(tmp_path, monkeypatch):
    folder = counting(tmp_path, monkeypatch)
    (folder.path / "large").touch()
    assert job.run(folder.path) == job.FAILED
    assert folder.read_state().failure.message == "no memory to count in"


def test_a_task_that_nobody_knows_is_said(tmp_path):
    (tmp_path / "other.yaml").write_text("", encoding="utf-8")
    assert job.run(tmp_path) == job.FAILED
    failure = folders.existing(tmp_path).read_state().failure
    assert failure.message == (
        f"{tmp_path} asks for a task that this version does not have (other.yaml)"
    )


def test_another_hook_is_one_module_and_changes_nothing_in_the_training(tmp_path, monkeypatch):
    plain = begin(tmp_path, "plain", save_steps=4, keep_encoded=False)
    assert job.run(plain.path) == job.FINISHED
    put(monkeypatch, tmp_path / "more", hooks, "measuring", MEASURING)
    folder = begin(tmp_path, save_steps=4, keep_encoded=False)
    assert job.run(folder.path) == job.FINISHED
    lines = (folder.path / "norms.jsonl").read_text(encoding="utf-8").splitlines()
    norms = [json.loads(line) for line in lines]
    assert [norm[:3] for norm in norms] == [
        [4, "run-step00000004.safetensors", True],
        [6, "run.safetensors", True],
    ]
    assert 0 < norms[0][3] != norms[1][3]
    assert losses(folder) == losses(plain)
    kinds = [[event.kind for event in each.read_events()] for each in (folder, plain)]
    assert kinds[0] == kinds[1]
