"""The averages of ema_decay."""

import pytest
import torch

from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.averaging import EXPONENT, make_average
from lora_trainer.training.loop import Loop
from tests.training.test_train import make_trainer


def averaged(decay, steps):
    """A parameter, its average after these steps, and what it was at each."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average = make_average([weight], TrainingSettings(ema_decay=decay))
    seen = []
    for step in range(1, steps + 1):
        weight.data += torch.tensor([step % 3, -1.0])
        average.add(step)
        seen.append(weight.detach().clone())
    with average.in_use():
        return weight, weight.detach().clone(), torch.stack(seen)


def test_an_automatic_average_weighs_steps_by_the_power_function_of_the_paper():
    weight, average, seen = averaged(None, 12)
    # arXiv 2312.02696, equation 2, integrated over each step
    ends = (torch.arange(13) / 12) ** (EXPONENT + 1)
    torch.testing.assert_close(average, (ends.diff()[:, None] * seen).sum(0))
    assert torch.equal(weight, seen[-1]) and not torch.equal(average, seen[-1])


def test_an_average_with_a_decay_forgets_its_beginning():
    _, average, seen = averaged(0.5, 40)
    expected = sum(0.5 ** (40 - step) * 0.5 * seen[step - 1] for step in range(20, 41))
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_training_goes_on_as_without_an_average(tmp_path, decay):
    plain, averaging = (make_trainer(tmp_path, ema_decay=one) for one in (0.0, decay))
    losses = [[], []]
    for trainer, found in zip((plain, averaging), losses, strict=True):
        while not trainer.is_over:
            found.append(trainer.advance().losses)
            with trainer.weights_to_use():
                pass
    assert losses[0] == losses[1]
    trained = plain.adapters.state_dict()
    assert same(trained, averaging.adapters.state_dict())
    with plain.weights_to_use():
        assert same(trained, plain.adapters.state_dict())
    with averaging.weights_to_use():
        assert not same(trained, averaging.adapters.state_dict())
    assert same(trained, averaging.adapters.state_dict())


def test_a_resumed_average_equals_an_uninterrupted_one(tmp_path):
    whole, first, second = (make_trainer(tmp_path, ema_decay=None) for _ in range(3))
    Loop(whole, []).run()
    for _ in range(3):
        first.advance()
    second.load_state_dict(first.state_dict())
    Loop(second, []).run()
    assert same(to_use(whole), to_use(second))


def test_a_run_that_is_resumed_with_an_average_begins_it_with_its_weights(tmp_path):
    first, second = (make_trainer(tmp_path, ema_decay=one) for one in (0.0, 0.9))
    for _ in range(3):
        first.advance()
    second.load_state_dict(first.state_dict())
    assert same(to_use(second), first.adapters.state_dict())


def to_use(trainer):
    with trainer.weights_to_use():
        return trainer.adapters.state_dict()


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)
