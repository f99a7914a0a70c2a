"""Runs that begin with a LoRA file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.runs import events
from lora_trainer.settings import training
from lora_trainer.worker import job
from tests.made import begin, checks, losses, measure_after_few_images
from tests.tasks.test_stop_and_resume import at_step


def earlier(tmp_path: Path, **settings: object) -> Path:
    run = begin(tmp_path, "earlier", name="first", lora_alpha=1.0, **settings)
    assert job.run(run.path) == job.FINISHED
    return run.path / "first.safetensors"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """An earlier run's LoRA, of rank 2."""
    return earlier(tmp_path_factory.mktemp("first"))


def test_a_run_grows_an_earlier_lora_and_goes_on_without_it(tmp_path, monkeypatch, first):
    file = Path(shutil.copy(first, tmp_path))
    whole, halves = (
        begin(tmp_path, name, name="grown", init_lora=str(file), lora_rank=4, save_steps=2)
        for name in ("whole", "halves")
    )
    assert job.run(whole.path) == job.FINISHED
    at_step(halves, 3, monkeypatch, "stop")
    file.unlink()
    assert job.run(halves.path) == job.FINISHED
    assert losses(whole) == losses(halves)
    grown, again = (load_file(run.path / "grown.safetensors") for run in (whole, halves))
    assert all(torch.equal(grown[key], again[key]) for key in grown)
    config = training.read(whole.config).lora
    # alpha / rank is what it was: 1 / 2
    assert (config.lora_rank, config.lora_alpha) == (4, 2.0)
    with safe_open(whole.path / "grown.safetensors", "pt") as opened:
        assert opened.metadata()["ss_network_weights"] == "first.safetensors"
        assert opened.metadata()["ss_network_dim"] == "4"


def test_without_a_rank_it_is_the_files(tmp_path, monkeypatch, first):
    measure_after_few_images(monkeypatch, 8.0)
    run = begin(tmp_path, init_lora=str(first), lora_rank=None, learning_rate=0.0, epochs=1)
    before = load_file(first)
    assert job.run(run.path) == job.FINISHED
    after = load_file(run.path / "run.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    # the base alone is measured first, and then what the run began with
    first, last = checks(run)
    assert first.prompted_change == 0 < last.prompted_change
    assert set(first.per_image.values()) == {1.0} != set(last.per_image.values())


def test_what_is_lost_is_warned_of(tmp_path):
    file = earlier(tmp_path, train_text_encoder=True, max_train_steps=1)
    run = begin(tmp_path, init_lora=str(file), lora_rank=1, epochs=1)
    assert job.run(run.path) == job.FINISHED
    told = [event.message for event in run.read_events() if isinstance(event, events.Warned)]
    assert any("is kept: lora_rank is too small" in text for text in told)
    assert any(
        "layers of first.safetensors that are not trained in this run" in text for text in told
    )


def test_a_lora_of_another_family_is_refused_before_anything_is_encoded(tmp_path):
    file = earlier(tmp_path, family="sdxl", max_train_steps=1)
    run = begin(tmp_path, init_lora=str(file))
    assert job.run(run.path) == job.FAILED
    state = run.read_state()
    assert "is a LoRA for SDXL, and the base is SD1.5" in state.failure.message
    phases = [event.phase for event in run.read_events() if isinstance(event, events.Phase)]
    assert phases == ["checking"]


def test_a_file_that_is_missing_is_said(tmp_path):
    run = begin(tmp_path, init_lora=str(tmp_path / "none.safetensors"))
    assert job.run(run.path) == job.FAILED
    assert "none.safetensors" in run.read_state().failure.message
