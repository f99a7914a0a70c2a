"""How long a run takes is read from what earlier ones said, from the start of their process on."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lora_trainer.planner.throughput import Throughput, kind_of
from lora_trainer.runs import events
from lora_trainer.settings import training
from tests.jobs.logs import append, write_run

FIRST_WORD = 5000.0


@pytest.fixture
def run(tmp_path):
    """A run whose first step came 2 s after its first word and whose end 1 s after the last step; 4
    images a second.
    """
    folder = write_run(tmp_path / "runs" / "ink", resolution=64)
    append(
        folder,
        events.Started(),
        events.Planned(family="sd1", step_count=30),
        events.Progress(step=1, loss=0.1),
        events.Progress(step=30, loss=0.1, images_per_second=4.0),
        events.Finished(step=30),
        start=FIRST_WORD,
    )
    return folder


def seconds(run, images=40.0, preview_rounds=0):
    return Throughput(run.path.parent).seconds(
        kind_of(training.read(run.config), "sd1", 64), images, preview_rounds
    )


def process(run, text):
    run.worker.write_text(text, encoding="utf-8")


def test_the_time_runs_from_the_start_of_the_process_not_from_its_first_word(run):
    process(run, json.dumps({"pid": 1, "started": FIRST_WORD - 7.5}))
    assert seconds(run) == pytest.approx(7.5 + 2 + 40 / 4 + 1)
    # the process wakes once, however many rounds of previews there are
    assert seconds(run, preview_rounds=3) == pytest.approx(7.5 + 2 + 40 / 4 + 4 * 1)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            json.dumps({"pid": 1, "started": FIRST_WORD + 600}),
            id="a later process has gone on with the run",
        ),
        pytest.param(
            json.dumps({"pid": 1, "started": FIRST_WORD - 301}),
            id="longer than any process takes to wake",
        ),
        pytest.param(json.dumps({"pid": 1, "started": "NaN"}), id="no number"),
        pytest.param(json.dumps({"pid": 1}), id="no moment"),
        pytest.param("[]", id="a list"),
        pytest.param("{", id="half a file"),
    ],
)
def test_where_the_start_of_the_process_cannot_be_told_the_first_word_counts(run, text):
    process(run, text)
    assert seconds(run) == pytest.approx(2 + 40 / 4 + 1)


def test_without_a_note_of_the_process_the_first_word_counts(run):
    assert not run.worker.exists()
    assert seconds(run) == pytest.approx(2 + 40 / 4 + 1)


def test_a_run_that_was_begun_again_before_its_first_step_counts_from_its_first_word(tmp_path):
    folder = write_run(tmp_path / "runs" / "ink", resolution=64)
    process(folder, json.dumps({"pid": 1, "started": FIRST_WORD - 5}))
    append(
        folder,
        events.Started(),
        events.Started(),
        events.Planned(family="sd1", step_count=30),
        events.Progress(step=1, loss=0.1),
        events.Progress(step=30, loss=0.1, images_per_second=4.0),
        events.Finished(step=30),
        start=FIRST_WORD,
    )
    assert seconds(folder) == pytest.approx(5 + 3 + 40 / 4 + 1)


@pytest.mark.parametrize(("bytes_now", "is_known"), [(100, True), (400, True), (100_000, False)])
def test_a_tiny_model_of_a_family_says_nothing_of_a_large_one(run, tmp_path, bytes_now, is_known):
    settings = training.read(run.config)
    checkpoint = tmp_path / "base.safetensors"
    checkpoint.write_bytes(bytes(100))
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(
        text.replace(str(settings.checkpoint.base_model), checkpoint.as_posix()), encoding="utf-8"
    )
    now = dataclasses.replace(kind_of(settings, "sd1", 64), base_model_size=bytes_now)
    assert (Throughput(run.path.parent).seconds(now, 40.0, 0) is not None) == is_known
