"""Validation in the job as it runs: what is held out, when it is measured, and what that changes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.lora.file import read_header
from lora_trainer.runs import events
from lora_trainer.training.validation import FixedNoiseValidation
from lora_trainer.worker import job
from tests.made import begin, checks, draw_images, losses, measure_after_few_images
from tests.tasks.test_diffusion import train_until

SIX = {"images": 6, "max_train_steps": 6, "save_steps": 2, "sample_steps": 2}
"""Six images, six steps of two images."""


@pytest.fixture(autouse=True)
def checks_after_few_images(monkeypatch):
    measure_after_few_images(monkeypatch, 8.0)


def warnings(folder):
    return [warned.message for warned in folder.read_state().warnings]


def figures(event):
    return {name: value for name, value in vars(event).items() if name not in ("time", "seconds")}


def test_what_is_held_out_is_measured_at_each_save_and_not_trained_on(tmp_path):
    folder = begin(tmp_path, validation_split=0.34, **SIX)
    assert job.run(folder.path) == job.FINISHED
    (planned,) = (one for one in folder.read_events() if isinstance(one, events.Planned))
    assert (planned.image_count, planned.held_out_count) == (4, 2)
    assert read_header(folder.path / "run.safetensors").metadata["ss_num_train_images"] == "4"
    found = checks(folder)
    assert [event.step for event in found] == [0, 2, 4, 6]
    first, *_, last = found
    assert len(set(first.by_strength.values())) == 1
    assert (first.prompted_change, first.unprompted_change) == (0.0, 0.0)
    assert set(first.per_image.values()) == {1.0}
    assert set(last.by_strength) == {"0.5", "0.75", "1", "1.25"}
    assert len(set(last.by_strength.values())) == 4
    assert last.training_loss < first.training_loss
    assert last.validation_loss != first.validation_loss
    assert last.prompted_change > 0 < last.unprompted_change
    assert set(last.per_image) <= {f"img{number:02d}.png" for number in range(6)}
    assert len(last.per_image) == 2
    assert folder.read_state().validations == tuple(found)
    curves = b"".join(path.read_bytes() for path in folder.logs.iterdir())
    assert b"loss/validation" in curves and b"loss/training_fixed" in curves


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.3, "gradient_checkpointing": True},
        {"train_text_encoder": True, "optimizer": "adamw_schedule_free", "flip_augmentation": True},
    ],
)
def test_measuring_changes_nothing_that_is_learned(tmp_path, monkeypatch, changes):
    folders = []
    for name, effort in (("measured", 8.0), ("unmeasured", 0.1)):
        measure_after_few_images(monkeypatch, effort)
        folders.append(begin(tmp_path, name, validation_split=0, **SIX, **changes))
        assert job.run(folders[-1].path) == job.FINISHED
    measured, unmeasured = folders
    assert len(checks(measured)) == 4 and not checks(unmeasured)
    assert losses(measured) == losses(unmeasured)
    ours, theirs = (load_file(one.path / f"{one.path.name}.safetensors") for one in folders)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_resumed_run_measures_the_same_numbers(tmp_path, monkeypatch):
    whole = begin(tmp_path, "whole", validation_split=0.34, **SIX)
    assert job.run(whole.path) == job.FINISHED
    half = begin(tmp_path, "half", validation_split=0.34, **SIX)
    assert train_until(half, 3, monkeypatch) == job.STOPPED
    assert [event.step for event in checks(half)] == [0, 2]
    assert job.run(half.path) == job.FINISHED
    assert [figures(event) for event in checks(half)] == [figures(event) for event in checks(whole)]


def test_training_ends_when_the_validation_loss_no_longer_falls(tmp_path):
    folder = begin(
        tmp_path,
        validation_split=0.34,
        early_stopping=2,
        **{**SIX, "max_train_steps": 40},
        learning_rate=0.3,
    )
    assert job.run(folder.path) == job.FINISHED
    found = checks(folder)
    best = min(found, key=lambda event: event.validation_loss)
    assert [event.step for event in found if event.step > best.step] == [
        best.step + 2,
        best.step + 4,
    ]
    state = folder.read_state()
    assert (state.status, state.step, state.file) == ("finished", best.step + 4, "run.safetensors")
    assert warnings(folder) == [
        f"training ended at step {state.step} of 40: the validation loss has not fallen below"
        f" {best.validation_loss:.4f} of step {best.step} in 2 saves"
    ]
    assert job.run(folder.path) == job.FINISHED
    assert folder.read_state().step == best.step + 4


def test_early_stopping_without_validation_images_is_told(tmp_path):
    folder = begin(tmp_path, early_stopping=2, **SIX)
    assert job.run(folder.path) == job.FINISHED
    assert warnings(folder) == ["early_stopping has no effect: there are no images to validate on"]
    assert [event.validation_loss for event in checks(folder)] == [None] * 4


def test_a_training_shorter_than_a_check_tells_that_nothing_is_measured(tmp_path, monkeypatch):
    measure_after_few_images(monkeypatch, 0.1)
    folder = begin(tmp_path, validation_split=0.34, **SIX)
    assert job.run(folder.path) == job.FINISHED
    assert not checks(folder)
    assert warnings(folder) == [
        "no validation loss is measured: 6 steps are fewer than one check is worth"
    ]


def test_a_folder_of_ones_own_is_validated_on_and_nothing_is_held_out(tmp_path):
    own = draw_images(tmp_path / "own", 8, size=(64, 80))
    folder = begin(tmp_path, validation_dir=str(own), **SIX)
    assert job.run(folder.path) == job.FINISHED
    state = folder.read_state()
    assert state.image_count == 6 and state.validations[-1].validation_loss is not None
    assert not state.warnings


def test_without_memory_for_a_check_training_goes_on(tmp_path, monkeypatch):
    real, rows = FixedNoiseValidation._predict, []

    def predict(self, batch, strength):
        rows.append(len(batch))
        if len(rows) == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return real(self, batch, strength)

    monkeypatch.setattr(FixedNoiseValidation, "_predict", predict)
    folder = begin(tmp_path, **SIX)
    assert job.run(folder.path) == job.FINISHED
    assert warnings(folder) == ["not enough memory to validate step 0; the training continues"]
    assert [event.step for event in checks(folder)] == [2, 4, 6]
    assert rows[0] == 8 and set(rows[1:]) == {1}
