"""Batches that are made while the device computes the one before."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import pytest
import torch

from lora_trainer.errors import TrainingError
from lora_trainer.training.batches import Batch
from lora_trainer.training.loop import Loop
from lora_trainer.training.prefetch import BatchRequest, Prefetcher
from tests.training.test_train import make_trainer

CPU = torch.device("cpu")


def request(step, rows=range(1)):
    return BatchRequest(indices=(0,), step=step, part=0, rows=rows)


def prefetching(tmp_path, **settings):
    """(trainer, which threads made its batches)."""
    trainer = dataclasses.replace(make_trainer(tmp_path, **settings), prefetches=True)
    threads = []
    real = trainer._prefetcher._make

    def make(wanted):
        threads.append((threading.current_thread() is threading.main_thread(), wanted))
        return real(wanted)

    trainer._prefetcher._make = make
    return trainer, threads


def trained(trainer):
    """(losses of each remaining step, weights)."""
    losses = []
    while not trainer.is_over:
        losses.append(trainer.advance().losses)
    return losses, trainer.adapters.state_dict()


def test_losses_and_weights_are_the_same_bit_for_bit(tmp_path):
    # 3 steps an epoch, the last of one batch
    settings = {"images": 5, "step_count": 7, "gradient_accumulation_steps": 2}
    trainer, threads = prefetching(tmp_path, **settings)
    ahead, weights = trained(trainer)
    plain, expected = trained(make_trainer(tmp_path, **settings))
    assert ahead == plain and len(plain) == 7
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    # all but the first, and none beyond the last step
    assert [in_main for in_main, _ in threads] == [True, *[False] * (len(threads) - 1)]
    assert [wanted.step for _, wanted in threads] == sorted(
        step for step in range(7) for _ in trainer.plan.group(step)
    )


def test_a_resumed_training_does_not_use_what_was_made_for_another_step(tmp_path):
    trainer, _ = prefetching(tmp_path, step_count=6)
    state = trainer.state_dict()
    state = {**state, "adapters": {name: one.clone() for name, one in state["adapters"].items()}}
    for _ in range(4):
        trainer.advance()
    trainer.load_state_dict(state)
    losses, weights = trained(trainer)
    plain, expected = trained(make_trainer(tmp_path, step_count=6))
    assert losses == plain
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_what_goes_wrong_is_raised_at_the_step_that_needs_it(tmp_path):
    trainer, _ = prefetching(tmp_path, step_count=5)
    real = trainer._prefetcher._make

    def make(wanted):
        if wanted.step == 3:
            raise TrainingError("damaged", hint="Encode it again.")
        return real(wanted)

    trainer._prefetcher._make = make
    with pytest.raises(TrainingError, match="damaged"):
        Loop(trainer, []).run()
    assert trainer.step == 3


def test_without_ahead_nothing_is_made_before_it_is_needed():
    made = []
    prefetcher = Prefetcher(made.append, CPU, ahead=False)
    prefetcher.prepare(request(1))
    assert not made
    prefetcher.get(request(1))
    assert made == [request(1)]


def test_no_batch_is_made_for_another_processs_rows():
    made = []
    prefetcher = Prefetcher(made.append, CPU, ahead=True)
    prefetcher.prepare(request(1, rows=range(0)))
    prefetcher.prepare(None)
    prefetcher.get(request(2))
    assert made == [request(2)]


def test_for_a_card_a_batch_is_page_locked_with_that_card_chosen(monkeypatch):
    cards, pinned = [], []

    @contextlib.contextmanager
    def chosen(device):
        cards.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self.clone()
    )
    batch = Batch(
        latents=torch.ones(1, 4, 2, 2),
        noise=torch.ones(1, 4, 2, 3),
        timesteps=torch.ones(1),
        captions=("a fox",),
        size_conditions=torch.ones(1, 6),
    )
    prefetcher = Prefetcher(lambda _: batch, torch.device("cuda:1"), ahead=True)
    prefetcher.prepare(request(4))
    found = prefetcher.get(request(4))
    assert cards == ["cuda:1"] and found.captions == ("a fox",)
    assert pinned == [(1, 4, 2, 2), (1, 4, 2, 3), (1,), (1, 6)]
