"""What an optimizer's entry says holds."""

from typing import get_args, get_type_hints

import pytest
import torch

from lora_trainer.errors import ConfigError
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.optimizers import OPTIMIZERS, OptimizerEntry, require_optimizer

CPU = torch.device("cpu")


def test_the_settings_choices_are_the_entries():
    assert get_args(get_type_hints(TrainingSettings)["optimizer"]) == tuple(OPTIMIZERS)


def test_each_entry_names_the_class_that_it_makes():
    entry = OPTIMIZERS["adamw"]
    assert entry.load(CPU) is torch.optim.AdamW
    assert entry.described(0.01) == "torch.optim.adamw.AdamW(weight_decay=0.01)"


def test_what_an_optimizer_is_made_with_is_described():
    entry = OptimizerEntry(
        name="toy", title="Toy", path="torch.optim.adam.Adam", options={"betas": (0.5, 0.9)}
    )
    assert entry.described(0.1) == "torch.optim.adam.Adam(weight_decay=0.1,betas=(0.5, 0.9))"


@pytest.mark.parametrize(
    ("path", "device", "words"),
    [
        ("no_such_package.Adam", "", "the no_such_package package cannot be used"),
        ("torch.optim.NoSuchClass", "", "the torch package cannot be used"),
        ("torch.optim.Adam", "cuda", "optimizer is adamw, but training runs on cpu"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_said_with_what_to_use(monkeypatch, path, device, words):
    entry = OptimizerEntry(name="adamw", title="Toy", path=path, device=device)
    monkeypatch.setitem(OPTIMIZERS, "adamw", entry)
    with pytest.raises(ConfigError, match=words) as caught:
        require_optimizer(TrainingSettings(), CPU)
    assert "Use adamw" in str(caught.value.hint)
