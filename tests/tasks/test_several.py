"""Several processes that train or caption together, over gloo on the CPU. The first one is the
test's own process; the others are real, and forked where it does not matter how they start.
"""

import contextlib
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch

from lora_trainer import environment
from lora_trainer.jobs.start import start_worker
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import captioning, training
from lora_trainer.tasks.hooks.reporting import Reporting
from lora_trainer.training import batches, resume
from lora_trainer.training.train import Trainer
from lora_trainer.worker import job
from tests.captioning.tiny_captioners import tiny_clip
from tests.language import made as texts
from tests.made import begin, losses
from tests.tasks.test_caption import captions, draw

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("forked")]

TOLERANCE = {"rtol": 0.0, "atol": 1e-6}


def weights(folder):
    """The adapters of a finished run, and their averages if there are any: in float32, unlike those
    of the LoRA file.
    """
    state = resume.read_state(folder.state).state
    return {"adapters": state["adapters"], "average": state["average"] or {}}


def assert_same(found, expected):
    """Losses and weights of two finished runs."""
    assert losses(found) == pytest.approx(losses(expected), rel=0, abs=1e-6)
    torch.testing.assert_close(weights(found), weights(expected), **TOLERANCE)


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of each step of this process, in a list that a test may empty."""
    kept, real = [], Trainer._apply_gradients

    def apply(self, losses):
        kept.append(torch.cat([one.grad.flatten() for one in self.parameters]))
        return real(self, losses)

    monkeypatch.setattr(Trainer, "_apply_gradients", apply)
    return kept


def after_step(monkeypatch, step, do):
    """Do this once, after that step of this process."""
    real, left = Reporting.after_step, [do]

    def reporting(self, loop, result):
        real(self, loop, result)
        if loop.work.step == step and left:
            left.pop()()

    monkeypatch.setattr(Reporting, "after_step", reporting)


def device(folder):
    """The device that the run says it is on."""
    said = [event for event in folder.read_events() if isinstance(event, events.Planned)]
    return said[-1].device


def others(folder):
    """The processes of this run that this one has started, and that still run."""
    return [
        one
        for one in psutil.Process().children()
        if one.status() != psutil.STATUS_ZOMBIE and str(folder.path) in one.cmdline()
    ]


@pytest.mark.usefixtures("forked_workers")
def test_two_or_three_processes_learn_what_one_learns_also_after_a_resume(
    tmp_path, monkeypatch, gradients
):
    asked = {
        "images": 7,
        "epochs": 3,
        "name": "x",
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "ema_decay": 0.9,
        "caption_dropout": 0.3,
        "flip_augmentation": True,
        "noise_offset": 0.1,
        "save_steps": 2,
    }
    alone = begin(tmp_path, "alone", **asked)
    assert job.run(alone.path) == job.FINISHED
    expected = gradients.copy()
    gradients.clear()
    encoded, real = [], batches._encoded
    monkeypatch.setattr(
        batches, "_encoded", lambda *given: encoded.append(given[1].name) or real(*given)
    )
    together = begin(tmp_path, "together", devices="cpu,cpu,cpu", keep_encoded=False, **asked)
    after_step(monkeypatch, 3, lambda: send_request(together.requests, "stop"))
    assert job.run(together.path) == job.STOPPED
    assert (together.read_state().step, device(together)[:4]) == (3, "3 x ")
    # the steps of an epoch have 6 images and 1
    assert len(encoded) == 3 and not others(together)
    again = training.read(together.config).replace(devices="cpu,cpu")
    together.config.write_text(training.to_yaml(again), encoding="utf-8")
    assert job.run(together.path) == job.FINISHED and not others(together)
    assert_same(together, alone)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-7)
    assert max(float(one.abs().max()) for one in expected) > 1e-2
    # one of them writes
    assert len(losses(together)) == 6
    assert [saved.step for saved in together.read_state().saved] == [2, 3, 4, 6]


@pytest.mark.usefixtures("forked_workers")
def test_a_language_model_is_trained_by_two_as_by_one(tmp_path, gradients):
    asked = {"name": "x", "batch_size": 3, "learning_rate": 1e-4}
    alone = texts.begin(tmp_path, "alone", **asked)
    assert job.run(alone.path) == job.FINISHED
    expected = gradients.copy()
    gradients.clear()
    together = texts.begin(tmp_path, "together", devices="cpu,cpu", **asked)
    assert job.run(together.path) == job.FINISHED
    assert_same(together, alone)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    (told,) = together.read_state().warnings
    assert told.message == "a step has 3 examples, which 2 cards cannot share evenly"


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_process_ends_the_run_with_what_was_learned(tmp_path, monkeypatch):
    folder = begin(tmp_path, devices="cpu,cpu", epochs=10, save_steps=100)
    after_step(monkeypatch, 3, lambda: others(folder)[0].kill())
    assert job.run(folder.path) == job.FAILED
    failure = folder.read_state().failure
    assert failure.message == "process 2 of 2 was ended (signal 9)"
    assert "resume" in failure.hint
    assert [saved.step for saved in folder.read_state().saved] == [3]
    assert [path.name for path in folder.state.iterdir()] == ["step00000003.pt"]
    assert not others(folder)


def test_none_is_left_when_the_first_one_is_killed(tmp_path):
    folder = begin(tmp_path, devices="cpu,cpu", epochs=10_000, save_steps=100_000)
    with start_worker(folder) as worker:
        until = time.monotonic() + 300
        while not folder.read_state().step and time.monotonic() < until:
            time.sleep(0.1)
        (other,) = psutil.Process(worker.pid).children()
        worker.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        other.wait(60)
    assert not other.is_running() and not folder.is_alive


def test_what_befalls_another_process_is_told_and_done_alike(tmp_path, monkeypatch, forking):
    """The other one has no finite loss in the second step, and no memory in the fourth."""
    script = tmp_path / "other.py"
    script.write_text(OTHER, encoding="utf-8")
    monkeypatch.setattr(
        environment, "worker_command", lambda path: [*forking, str(script), str(path)]
    )
    asked = {"images": 4, "epochs": 3, "devices": "cpu,cpu", "save_steps": 3}
    folder = begin(tmp_path, memory="no", **asked)
    assert job.run(folder.path) == job.FAILED
    state = folder.read_state()
    told = [event.message for event in state.warnings]
    assert any(one.startswith("step 2 was skipped: its gradient: img0") for one in told), told
    assert state.failure.error == "OutOfMemory"
    assert state.failure.message.startswith("process 2 of 2 (on ")
    assert state.failure.message.endswith(") failed: out of memory at step 3")
    assert (state.step, [saved.step for saved in state.saved]) == (3, [3])

    # with less, all of them begin again
    folder = begin(tmp_path, "again", **asked)
    assert job.run(folder.path) == job.FINISHED
    assert training.read(folder.config).training.batch_size == 1


OTHER = f"""
import sys
sys.path.insert(0, {str(environment.ROOT)!r})
from lora_trainer import environment
overlay = environment.activate()
from pathlib import Path
from lora_trainer.training.train import Trainer
from lora_trainer.worker import job

real = Trainer._backward

def backward(self, loss):
    if self.step == 3 and self.settings.batch_size > 1:
        raise MemoryError("made up")
    if self.step == 1:
        loss = loss * float("nan")
    real(self, loss)

Trainer._backward = backward
sys.exit(job.take_part(Path(sys.argv[1]), overlay))
"""


@pytest.mark.usefixtures("forked_workers")
def test_images_are_captioned_by_two_as_by_one(tmp_path):
    written = {}
    for name, devices in (("alone", "auto"), ("together", "cpu,cpu")):
        images = draw(tmp_path / name, 5)
        (images / "img3.png").write_bytes(b"no image")
        asked = {
            "input": str(images),
            "captioner": "clip",
            "model": str(tiny_clip()),
            "threshold": 0.0,
            "top_k": 1,
            "batch_size": 1,
            "device": "cpu",
            "devices": devices,
        }
        folder = folders.begin_captioning(
            images / ".lora_trainer" / "captioning",
            captioning.to_yaml(captioning.from_mapping(asked)),
        )
        assert job.run(folder.path) == job.FINISHED
        state = folder.read_state()
        written[name] = captions(images)
        assert (state.step, state.step_count, len(written[name])) == (4, 4, 4)
    assert written["together"] == written["alone"]
    assert device(folder)[:4] == "2 x " and not others(folder)


def test_torchrun_starts_all_processes(tmp_path):
    folder = begin(tmp_path, epochs=2, batch_size=2, save_steps=100)
    config = tmp_path / "asked.yaml"
    config.write_bytes(folder.config.read_bytes())
    shutil.rmtree(folder.path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lora_trainer", "torchrun", "--nproc-per-node", "2"),
            *("-m", "lora_trainer", "train", "--config", str(config)),
        ],
        cwd=environment.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished: run, 6 steps") == 1
    state = folder.read_state()
    assert (state.status, state.step, device(folder)[:4]) == ("finished", 6, "2 x ")
