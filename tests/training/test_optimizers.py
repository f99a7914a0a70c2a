"""What an optimizer's entry says holds, and another optimizer is another entry."""

import pytest
import torch
from safetensors import safe_open

from lora_trainer.errors import ConfigError
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import training
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.optimizers import OPTIMIZERS, OptimizerEntry, require_optimizer
from lora_trainer.webui import form
from lora_trainer.worker import job
from tests.made import begin, losses

CPU = torch.device("cpu")


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


def test_another_optimizer_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(
        OPTIMIZERS,
        "toy",
        OptimizerEntry(
            name="toy",
            title="Toy",
            sentence="Walks straight downhill.",
            path="torch.optim.sgd.SGD",
            options={"momentum": 0.5},
        ),
    )
    (field,) = (
        field
        for group in form.form("en")["groups"]
        for field in group["fields"]
        if field["key"] == "optimizer"
    )
    assert field["choices"][-1] == {"value": "toy", "label": "Toy"}
    assert field["help"].endswith("Toy: Walks straight downhill.")
    assert "toy (Toy: Walks straight downhill)" in training.readme_table()
    whole, halves = (
        begin(tmp_path, run, name="toy", optimizer="toy", save_steps=2)
        for run in ("whole", "halves")
    )
    assert job.run(whole.path) == job.FINISHED
    send_request(halves.requests, "stop")
    assert job.run(halves.path) == job.STOPPED
    assert job.run(halves.path) == job.FINISHED
    with safe_open(whole.path / "toy.safetensors", "pt") as file:
        assert file.metadata()["ss_optimizer"] == (
            "torch.optim.sgd.SGD(weight_decay=0.01,momentum=0.5)"
        )
    assert losses(whole) == losses(halves) and len(set(losses(whole))) > 1
