"""Which options are chosen before a run and after memory ran out; the card is made up."""

from __future__ import annotations

import json

import pytest

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.planner import limits
from lora_trainer.planner.command import GIB, Situation
from lora_trainer.planner.formula import StepBytes
from lora_trainer.runs import events
from lora_trainer.settings import training
from lora_trainer.training.train import Trainer
from lora_trainer.worker import job, memory
from lora_trainer.worker.memory import MemoryOptions
from tests.made import begin, losses, small_checkpoint

CARD = "a card"


def estimate(config):
    """4 GiB of weights, half in 8 bits; 2 GiB an image, half with checkpointing."""
    eight = config.checkpoint.base_precision == "int8"
    activations = config.training.batch_size * (2 - config.training.gradient_checkpointing)
    return StepBytes(
        weights=(2 if eight else 4) * GIB,
        adapters=0,
        optimizer=0,
        activations=activations * GIB,
        encoding=GIB,
        preview=GIB,
    )


@pytest.fixture
def on_a_card(monkeypatch):
    """The planner finds a card with so many GiB free."""

    def give(free):
        def made(config, processes=None):
            share = limits.share_of(config.output.output_dir.parent, CARD)
            return Situation(
                checkpoint=open_checkpoint(small_checkpoint()),
                config=config.replace(resolution=64, lora_rank=8),
                kind="cuda",
                name=CARD,
                free=int(free * GIB * share),
                precision="half",
                estimate=estimate,
                counted=False,
            )

        monkeypatch.setattr(memory, "situation", made)
        monkeypatch.setattr(memory, "_has_card", lambda config: True)

    return give


@pytest.mark.parametrize(
    ("mode", "asked", "free", "chosen", "said"),
    [
        ("auto", {}, 12, {}, None),
        ("auto", {}, 7, {"batch_size": 1, "gradient_accumulation_steps": 2}, "would need about"),
        ("auto", {"batch_size": 1}, 5.8, {"gradient_checkpointing": True}, "would need about"),
        (
            "5GB",
            {"batch_size": 1},
            24,
            {"base_precision": "int8", "gradient_checkpointing": False},
            "5.00 GiB may be used",
        ),
        (
            "24GB",
            {"batch_size": 1, "base_precision": "same"},
            5.8,
            {"gradient_checkpointing": True, "base_precision": "same"},
            "5.80 GiB may be used",
        ),
        ("auto", {"batch_size": 1}, 1, {"base_precision": "int8"}, "may not fit"),
        (
            "fast",
            {"gradient_checkpointing": True},
            12,
            {"gradient_checkpointing": False},
            "memory is fast",
        ),
        (
            "small",
            {},
            24,
            {"batch_size": 1, "base_precision": "int8", "vae_tiling": True, "optimizer": "adamw"},
            "memory is small",
        ),
        ("no", {}, 1, {}, None),
    ],
)
def test_options_are_chosen_as_memory_says(tmp_path, on_a_card, mode, asked, free, chosen, said):
    on_a_card(free)
    folder = begin(tmp_path, memory=mode, **asked)
    before = training.to_mapping(training.read(folder.config))
    options = MemoryOptions.of(folder)
    notes = options.choose() if options else []
    after = training.to_mapping(training.read(folder.config))
    assert {key: after[key] for key in chosen} == chosen
    assert bool(notes) == (after != before) == (said is not None)
    if said:
        assert said in str(notes[0])
        changed = [key for key in after if after[key] != before[key]]
        assert all(f"{key}: " in str(notes[0]) for key in changed)


def test_a_run_that_resumes_keeps_its_options(tmp_path, on_a_card):
    on_a_card(1)
    folder = begin(tmp_path)
    folder.state.mkdir(parents=True)
    (folder.state / "step00000001.pt").touch()
    assert MemoryOptions.of(folder).choose() == []


def test_what_was_too_much_for_a_card_is_remembered_and_planned_around(tmp_path, on_a_card):
    on_a_card(6.7)
    folder = begin(tmp_path, "first", batch_size=1)
    options = MemoryOptions.of(folder)
    assert options.choose() == [], "it is predicted to fit"
    (note,) = options.go_on_with_less()
    assert "restarts" in str(note) and "gradient_checkpointing: true" in str(note)
    shares = json.loads((tmp_path / limits.NAME).read_text())
    assert shares == {CARD: pytest.approx(0.95 * 6.6 / 6.7, abs=0.01)}
    # the next run on this card begins with what fits
    second = begin(tmp_path, "second", batch_size=1)
    assert "gradient_checkpointing: true" in str(MemoryOptions.of(second).choose()[0])
    (tmp_path / limits.NAME).write_text("{damaged")
    assert limits.share_of(tmp_path, CARD) == 1
    limits.remember(tmp_path, CARD, predicted=1, free=100)
    assert limits.share_of(tmp_path, CARD) == limits.LEAST


def test_each_time_memory_runs_out_there_is_less_until_nothing_is_left(tmp_path, on_a_card):
    on_a_card(24)
    folder = begin(tmp_path, batch_size=2, base_precision="same", blocks_to_swap=0)
    options = MemoryOptions.of(folder)
    told = []
    while (notes := options.go_on_with_less()) is not None:
        told.append(str(notes[0]).split(" with ")[-1])
    assert told == [
        "batch_size: 1, gradient_accumulation_steps: 2",
        "gradient_checkpointing: true",
    ]


def test_a_run_whose_memory_runs_out_goes_on_from_its_last_save_with_less(tmp_path, monkeypatch):
    real = Trainer.advance

    def advance(self):
        if self.settings.batch_size > 1 and self.step == 3:
            raise MemoryError("made up")
        return real(self)

    monkeypatch.setattr(Trainer, "advance", advance)
    folder = begin(tmp_path, save_steps=2)
    assert job.run(folder.path) == job.FINISHED
    said = list(folder.read_events())
    assert [one.resumed_from for one in said if isinstance(one, events.Started)] == [None, 2]
    told = [one.message for one in said if isinstance(one, events.Warned)]
    assert (
        "out of memory at step 3; the training continues from its last save with batch_size: 1,"
        " gradient_accumulation_steps: 2"
    ) in told
    assert training.read(folder.config).training.batch_size == 1
    assert len(losses(folder)) == 3 + 4 and folder.read_state().step == 6

    refused = begin(tmp_path, "refused", memory="no")
    assert job.run(refused.path) == job.FAILED
    assert "out of memory at step 3" in refused.read_state().failure.message
