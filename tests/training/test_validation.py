"""Losses under fixed noise, on tiny models of each family and on flow matching."""

from __future__ import annotations

import pytest
import torch

from lora_trainer.checkpoint.parts import FlowSchedule, NoiseSchedule
from lora_trainer.families.components.noise import Flow, NoiseLevels
from lora_trainer.training.validation import (
    LEVELS,
    amounts,
    evaluating,
    fixed_batches,
    least_passes,
)
from tests.dataset.test_held_out import example


class Images:
    """Encoded images of two sizes: the mean of each is its index."""

    def get(self, index, *, mirrored):
        assert not mirrored
        side = 8 if index % 2 else 4
        mean = torch.full((4, side, 8), float(index))
        return torch.cat([mean, torch.ones_like(mean)]), torch.arange(6.0)


LEVELS_OF = [NoiseLevels.of(NoiseSchedule()), Flow(FlowSchedule(shift=2.0))]
EXAMPLES = [example(f"{number}.png") for number in range(6)]


@pytest.mark.parametrize("process", LEVELS_OF, ids=["diffusion", "flow"])
def test_the_noise_is_the_same_every_time_and_the_levels_are_spread(process):
    first, again = (
        fixed_batches(EXAMPLES, Images(), [4, 1, 2], process, 7, "held-out images")
        for _ in range(2)
    )
    other = fixed_batches(EXAMPLES, Images(), [4, 1, 2], process, 8, "held-out images")
    assert [len(batch) for batch in first] == [2 * LEVELS, LEVELS]
    assert first[0].names == ("4.png",) * LEVELS + ("2.png",) * LEVELS
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.noise, same.noise) and torch.equal(one.times, same.times)
        assert not torch.equal(one.noise, different.noise)
        assert torch.equal(one.latents.amax((1, 2, 3)), one.latents.amin((1, 2, 3)))
        for start in range(0, len(one), LEVELS):
            shares = quantile_of(process, one.times[start : start + LEVELS])
            assert [int(share * LEVELS) for share in shares] == list(range(LEVELS))
    half = first[0].half()
    assert half.names == ("4.png",) * 2 + ("2.png",) * 2
    picked = [first[0].times.tolist().index(time) for time in half.times.tolist()]
    assert picked == [0, 2, 4, 6]  # both images are at even places


def quantile_of(process, times):
    """The share of the drawn times that lie below each."""
    drawn = process.draw((100_000,), torch.Generator().manual_seed(0))
    return [(drawn < time).double().mean().item() for time in times]


@pytest.mark.parametrize("process", LEVELS_OF, ids=["diffusion", "flow"])
def test_quantiles_are_those_of_what_is_drawn(process):
    shares = torch.tensor([0.05, 0.3, 0.5, 0.9])
    assert quantile_of(process, process.quantiles(shares, (1,))) == pytest.approx(
        shares.tolist(), abs=0.01
    )


def test_a_check_costs_no_more_than_its_share():
    few, many = amounts(100, 20, 4), amounts(5000, 20, 4)
    assert (many.training, many.held_out) == (8, 4)
    assert 2 <= few.held_out <= 4 and few.training < 8
    assert few.training * LEVELS + few.held_out * 12 <= 100 * 0.4
    assert amounts(20, 20, 4) is None
    alone = amounts(5000, 3, 0)
    assert (alone.training, alone.held_out) == (3, 0)
    assert least_passes(3, 0) == 24 and least_passes(1, 0) == 12


def test_evaluation_mode_is_undone_module_by_module():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model.train()
    model[1].eval()
    with evaluating([model]):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
