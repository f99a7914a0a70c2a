"""Requests that come at odd moments, and runs that go on under other circumstances than they
began.
"""

import errno
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_trainer.families.stable_diffusion import StableDiffusion
from lora_trainer.jobs.start import note_death
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import EventWriter
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import training
from lora_trainer.tasks import diffusion
from lora_trainer.tasks.control import Requests
from lora_trainer.tasks.images import LoadedParts
from lora_trainer.tasks.lora_file_output import LoraFileOutput
from lora_trainer.tasks.training_run import LoadedOptimizer
from lora_trainer.training import batches, preview
from lora_trainer.worker import job
from tests.made import begin, losses


def change(folder, **changes):
    folder.config.write_text(
        training.to_yaml(training.read(folder.config, changes)), encoding="utf-8"
    )


def at_step(folder, step, monkeypatch, *kinds):
    """Run the folder's job; these requests arrive together when `step` steps are done."""
    real = Requests.before_step

    def before_step(self, loop):
        if loop.work.step == step:
            for kind in kinds:
                send_request(folder.requests, kind)
        real(self, loop)

    with monkeypatch.context() as patched:
        patched.setattr(Requests, "before_step", before_step)
        return job.run(folder.path)


def sleepless(monkeypatch, most=20):
    """A pause that nothing ends fails the test instead of hanging it."""
    count = []

    def sleep(seconds):
        count.append(seconds)
        assert len(count) < most, "paused for ever"

    monkeypatch.setattr("lora_trainer.tasks.control.sleep", sleep)


@pytest.mark.parametrize(
    ("kinds", "status"), [(("pause", "resume"), job.FINISHED), (("pause", "stop"), job.STOPPED)]
)
def test_what_came_together_with_a_pause_ends_it(tmp_path, monkeypatch, kinds, status):
    sleepless(monkeypatch)
    folder = begin(tmp_path)
    assert at_step(folder, 2, monkeypatch, *kinds) == status


def test_what_is_asked_during_a_pause_is_done_after_it(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    asked = iter(["save", "resume"])

    def sleep(seconds):
        assert folder.read_state().status == "paused"
        send_request(folder.requests, next(asked))

    monkeypatch.setattr("lora_trainer.tasks.control.sleep", sleep)
    assert at_step(folder, 2, monkeypatch, "pause") == job.FINISHED
    assert [saved.step for saved in folder.read_state().saved] == [2, 6]
    kinds = [event.kind for event in folder.read_events()]
    assert kinds.index("paused") < kinds.index("resumed") < kinds.index("saved")


def test_what_was_asked_before_a_pause_is_done_before_it(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep",
        lambda seconds: send_request(folder.requests, "resume"),
    )
    assert at_step(folder, 2, monkeypatch, "save", "pause") == job.FINISHED
    kinds = [event.kind for event in folder.read_events()]
    assert kinds.index("saved") < kinds.index("paused") < kinds.index("resumed")


def test_a_stop_while_images_are_encoded_ends_the_run_there(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    real, encoded = batches._encoded, []

    def encode(*arguments):
        encoded.append(1)
        if len(encoded) == 2:
            send_request(folder.requests, "stop")
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(batches, "_encoded", encode)
        assert job.run(folder.path) == job.STOPPED
    state = folder.read_state()
    assert len(encoded) == 2 and (state.status, state.step, state.file) == ("stopped", 0, "")
    assert not folder.has_learned
    assert job.run(folder.path) == job.FINISHED


@pytest.fixture(scope="module")
def unpaused(tmp_path_factory):
    """A run of one epoch, finished."""
    folder = begin(tmp_path_factory.mktemp("unpaused"), images=8, epochs=1)
    assert job.run(folder.path) == job.FINISHED
    return folder


@pytest.mark.parametrize("moment", ["checking", "captions", "images", "previews"])
def test_a_pause_is_obeyed_between_the_pieces_of_whatever_the_worker_does_and_changes_nothing(
    tmp_path, monkeypatch, moment, unpaused
):
    samples = (
        {
            "sample_prompts": ["x"],
            "sample_every": 2,
            "sample_steps": 1,
            "sample_strengths": [0.0, 1.0],
        }
        if moment == "previews"
        else {}
    )
    folder = begin(tmp_path, images=8, epochs=1, **samples)
    names = {
        "checking": (diffusion.Preparation, "report_check"),
        "captions": (batches.CaptionEncoder, "keep"),
        "images": (batches, "_encoded"),
        "previews": (preview, "write_preview"),
    }
    place, name = names[moment]
    real, moved, asked = getattr(place, name), [], []

    def work(*arguments):
        if not asked:
            asked.append(send_request(folder.requests, "pause"))
        return real(*arguments)

    def sleep(seconds):
        # nothing else was done in between
        assert folder.read_state().status == "paused"
        send_request(folder.requests, "resume")

    monkeypatch.setattr(place, name, work)
    monkeypatch.setattr("lora_trainer.tasks.control.sleep", sleep)
    for kind in (LoadedParts, LoadedOptimizer):
        monkeypatch.setattr(
            kind, "_move", lambda self, device: moved.append((type(self), str(device)))
        )
    assert job.run(folder.path) == job.FINISHED
    kinds = [event.kind for event in folder.read_events()]
    first_step = next(
        at
        for at, event in enumerate(folder.read_events())
        if event.kind == "progress" and event.loss is not None
    )
    assert kinds.count("paused") == kinds.count("resumed") == 1
    assert kinds.index("paused") + 1 == kinds.index("resumed")
    assert (kinds.index("paused") < first_step) == (moment != "previews")
    kinds = [LoadedParts, LoadedOptimizer] if moment == "previews" else [LoadedParts]
    assert moved == [(kind, "cpu") for kind in kinds] * 2
    assert losses(folder) == losses(unpaused)


def test_a_stop_while_the_preparation_is_paused_ends_the_run(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    real = batches._encoded

    def encode(*arguments):
        send_request(folder.requests, "pause")
        return real(*arguments)

    monkeypatch.setattr(batches, "_encoded", encode)
    monkeypatch.setattr(
        "lora_trainer.tasks.control.sleep",
        lambda seconds: send_request(folder.requests, "stop"),
    )
    assert job.run(folder.path) == job.STOPPED
    assert [event.kind for event in folder.read_events()][-2:] == ["paused", "stopped"]


def test_what_else_is_asked_during_the_preparation_waits_for_the_first_step(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    for kind in ("save", "pause", "resume"):
        send_request(folder.requests, kind)
    sleepless(monkeypatch)
    assert job.run(folder.path) == job.FINISHED
    assert [saved.step for saved in folder.read_state().saved] == [0, 6]


def test_a_stop_before_the_first_step_after_a_resume_keeps_the_resume_point(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    assert at_step(folder, 2, monkeypatch, "stop") == job.STOPPED
    assert at_step(folder, 2, monkeypatch, "stop") == job.STOPPED
    state = folder.read_state()
    assert (state.step, state.file) == (2, "checkpoints/run-step00000002.safetensors")
    assert job.run(folder.path) == job.FINISHED


def test_a_stop_during_previews_does_not_wait_for_them(tmp_path, monkeypatch):
    folder = begin(tmp_path, sample_prompts=["a", "b", "c"], sample_every=2, sample_steps=3)
    real = preview.write_preview

    def write(picture, target):
        real(picture, target)
        send_request(folder.requests, "stop")

    monkeypatch.setattr(preview, "write_preview", write)
    assert job.run(folder.path) == job.STOPPED
    state = folder.read_state()
    assert len(state.previews) == 1 and (state.status, state.step) == ("stopped", 2)
    assert load_file(folder.path / state.file)


def test_previews_without_memory_do_not_cost_the_training(tmp_path, monkeypatch):
    (tmp_path / "Lora").mkdir()
    shown = {"sample_prompts": ["a"], "sample_every": 2, "sample_steps": 1}
    folder = begin(tmp_path, lora_dir=str(tmp_path / "Lora"), **shown)

    def no_memory(*arguments, **named):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(StableDiffusion, "decode", no_memory)
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert state.delivered and any(
        "not enough memory for the previews of step 6" in warning.message
        for warning in state.warnings
    )


def test_the_lora_is_written_before_its_last_pictures_are_made(tmp_path, monkeypatch):
    folder = begin(tmp_path, sample_prompts=["a"], sample_every=100)

    def broken(*arguments, **named):
        raise ValueError("anything")

    monkeypatch.setattr(preview, "make_previews", broken)
    assert job.run(folder.path) == job.FAILED
    assert load_file(folder.path / "run.safetensors") and folder.read_state().saved[-1].step == 6


def test_a_changed_learning_rate_is_used_after_a_resume_and_said(tmp_path, monkeypatch):
    folder = begin(tmp_path, lr_scheduler="cosine", lr_warmup_steps=1)
    at_step(folder, 3, monkeypatch, "stop")
    change(folder, learning_rate=1e-5, weight_decay=0.5)
    seen = []
    real = Requests.before_step

    def before_step(self, loop):
        group = loop.work.optimizer.param_groups[0]
        seen.append((group["lr"], group["weight_decay"]))
        real(self, loop)

    monkeypatch.setattr(Requests, "before_step", before_step)
    assert job.run(folder.path) == job.FINISHED
    assert seen and all(0 < rate <= 1e-5 and decay == 0.5 for rate, decay in seen)
    warnings = [warning.message for warning in folder.read_state().warnings]
    assert "learning_rate was 0.001 until the resume point and is 1e-05 from there" in warnings


def test_an_unchanged_run_resumes_without_a_warning(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    at_step(folder, 3, monkeypatch, "stop")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    moved = folders.existing(tmp_path / "elsewhere")
    change(moved, max_train_steps=7)  # at a constant rate, a longer run is exact too
    assert job.run(moved.path) == job.FINISHED
    assert not [
        warning for warning in moved.read_state().warnings if "resume point" in warning.message
    ]


def test_a_dataset_that_changed_meanwhile_is_said(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    at_step(folder, 3, monkeypatch, "stop")
    lines = (tmp_path / "images" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    lines[0] = 'img00.png,"something else"'
    (tmp_path / "images" / "metadata.csv").write_text(
        "\n".join([*lines[:-1], 'new.png,"a new one"']), encoding="utf-8"
    )
    (tmp_path / "images" / "img04.png").rename(tmp_path / "images" / "new.png")
    assert job.run(folder.path) == job.FINISHED
    messages = [warning.message for warning in folder.read_state().warnings]
    assert "training data new since the resume point (1): new.png" in messages
    assert "training data gone since the resume point (1): img04.png" in messages
    assert "training data changed since the resume point (1): img00.png" in messages


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ["to_x"]}, "to_x"),
        ({"lr_warmup_steps": 500}, "lr_warmup_steps is 500"),
        ({"optimizer": "adamw8bit"}, "adamw8bit"),
    ],
)
def test_what_the_checkpoint_or_the_plan_forbids_is_found_before_anything_is_loaded(
    tmp_path, monkeypatch, changes, words
):
    folder = begin(tmp_path, **changes)

    def encode(*arguments):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(diffusion, "encode", encode)
    assert job.run(folder.path) == job.FAILED
    assert words in folder.read_state().failure.message


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # as safetensors said it on a disk that was full
        SafetensorError(
            'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space'
            ' left on device" })'
        ),
    ],
)
def test_a_full_disk_is_named_whoever_finds_it(tmp_path, monkeypatch, error):
    folder = begin(tmp_path, save_steps=2)

    def write_state(self, trainer):
        raise error

    monkeypatch.setattr(LoraFileOutput, "write_state", write_state)
    assert job.run(folder.path) == job.FAILED
    assert folder.read_state().failure.message == "the disk is full"


@pytest.mark.parametrize("first", ["__init__", "write"])
def test_a_disk_that_is_full_before_the_first_word_is_told_all_the_same(
    tmp_path, monkeypatch, capsys, first
):
    folder = begin(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(EventWriter, first, full)
        patched.setattr("traceback.print_exc", full)  # nor is there room in worker.log
        status = job.run(folder.path)
    failure = note_death(folder, status)
    assert failure is not None and (failure.error, failure.message) == (
        "TrainingError",
        "the disk is full",
    )
    assert failure.hint.startswith("Free some space, then continue with `resume`")
