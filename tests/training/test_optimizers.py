"""What an optimizer's entry says holds, and another optimizer is another entry."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.errors import ConfigError
from lora_trainer.runs.requests import send_request
from lora_trainer.settings import training
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training import preview
from lora_trainer.training.averaging import averaged_by
from lora_trainer.training.optimizers import (
    LOWEST_MULTIPLIER,
    OPTIMIZERS,
    OptimizerEntry,
    require_optimizer,
)
from lora_trainer.training.resume import read_state
from lora_trainer.webui.common import form
from lora_trainer.worker import job
from tests.made import begin, losses

CPU = torch.device("cpu")
NEEDED = {"train_data_dir": "images", "base_model": "base.safetensors", "output_dir": "run"}


def test_each_entry_names_the_class_that_it_makes():
    entry = OPTIMIZERS["adamw"]
    assert entry.load(CPU) is torch.optim.AdamW
    assert entry.described(0.01) == "torch.optim.adamw.AdamW(weight_decay=0.01)"


@pytest.mark.parametrize(
    ("rate", "is_refused"),
    [(None, False), (0.0, False), (1e-4, True), (LOWEST_MULTIPLIER, False), (1.0, False)],
)
def test_a_learning_rate_is_no_multiplier_of_an_estimated_one(rate, is_refused):
    problems = list(OPTIMIZERS["prodigy"].problems(TrainingSettings(learning_rate=rate)))
    assert ["next to nothing" in str(problem) for problem in problems] == [True] * is_refused
    assert not list(OPTIMIZERS["adamw"].problems(TrainingSettings(learning_rate=rate)))


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


@pytest.mark.parametrize(
    ("optimizer", "rate", "text_rate", "decay"),
    [
        ("adamw", 1e-4, 5e-5, 0.01),
        ("adamw8bit", 1e-4, 5e-5, 0.01),
        ("lion", 3e-5, 1.5e-5, 0.03),
        ("prodigy", 1.0, 1.0, 0.01),
        ("adamw_schedule_free", 3e-4, 1.5e-4, 0.01),
    ],
)
def test_auto_is_each_optimizers_own_rate_and_decay(optimizer, rate, text_rate, decay):
    asked = training.from_mapping({**NEEDED, "optimizer": optimizer})
    resolved = training.settle(asked, 512, 100).training
    assert (resolved.learning_rate, resolved.text_encoder_lr, resolved.weight_decay) == (
        rate,
        pytest.approx(text_rate),
        decay,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"optimizer": "prodigy", "learning_rate": 1e-4},
            "learning_rate is 0.0001, but prodigy estimates the learning rate itself",
        ),
        (
            {"optimizer": "prodigy", "text_encoder_lr": 0.5},
            "text_encoder_lr is 0.5, but prodigy has one learning rate for everything",
        ),
        (
            {"optimizer": "adamw_schedule_free", "lr_scheduler": "cosine"},
            "lr_scheduler is cosine, but adamw_schedule_free averages the weights",
        ),
        (
            {"optimizer": "adamw_schedule_free", "ema_decay": None},
            "ema_decay is auto, but adamw_schedule_free averages the weights itself",
        ),
    ],
)
def test_settings_that_make_no_sense_with_an_optimizer_are_refused(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        TrainingSettings(**settings)
    assert any(word in str(caught.value.hint) for word in ("auto", "constant", "ema_decay to 0"))


def test_a_rate_of_zero_and_a_resolved_prodigy_are_accepted():
    TrainingSettings(optimizer="prodigy", learning_rate=0.0)
    TrainingSettings(optimizer="prodigy", learning_rate=0.5, text_encoder_lr=0.5)


@pytest.mark.parametrize("optimizer", ["lion", "prodigy", "adamw_schedule_free"])
def test_a_run_goes_on_bit_for_bit_whatever_is_saved_and_shown_in_between(tmp_path, optimizer):
    values = {"name": "one", "optimizer": optimizer, "train_text_encoder": True}
    values |= {"learning_rate": None, "lr_warmup_steps": 1}
    values |= {"ema_decay": None if optimizer == "lion" else 0, "images": 3}
    plain = begin(tmp_path, "plain", **values)
    halves = begin(
        tmp_path,
        "halves",
        **values,
        save_steps=1,
        sample_prompts=["a red disc"],
        sample_steps=1,
        sample_size=64,
    )
    assert job.run(plain.path) == job.FINISHED
    send_request(halves.requests, "stop")
    assert job.run(halves.path) == job.STOPPED
    assert job.run(halves.path) == job.FINISHED
    assert losses(plain) == losses(halves) and len(set(losses(plain))) == len(losses(plain)) > 3
    ours, theirs = (load_file(run.path / "one.safetensors") for run in (plain, halves))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_lion_moves_each_weight_by_its_learning_rate():
    weight = torch.nn.Parameter(torch.zeros(3))
    lion = OPTIMIZERS["lion"].load(CPU)([weight], lr=0.25, weight_decay=0.0)
    weight.grad = torch.tensor([4.0, -0.001, 0.0])
    lion.step()
    assert weight.tolist() == [-0.25, 0.25, 0.0]


def averaging(steps):
    """A parameter after `steps` of schedule-free AdamW, its optimizer, and the mean of the points
    it averages: arXiv 2405.15682, equations 3 to 5, with a constant rate.
    """
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    entry = OPTIMIZERS["adamw_schedule_free"]
    optimizer = entry.load(CPU)([{"params": [weight], "name": "unet"}], lr=0.1, weight_decay=0.0)
    points = []
    for step in range(steps):
        weight.grad = torch.tensor([0.5 + step, -1.0])
        optimizer.step()
        points.append(optimizer.state[weight]["z"].clone())
    return weight, optimizer, torch.stack(points).mean(0)


def test_what_is_exported_is_the_average_and_the_training_weights_come_back_exactly():
    weight, optimizer, average = averaging(7)
    trained = weight.detach().clone()
    with averaged_by(optimizer):
        torch.testing.assert_close(weight.detach(), average)
        assert not torch.equal(weight, trained)
    assert torch.equal(weight, trained)
    with pytest.raises(KeyError), averaged_by(optimizer):
        raise KeyError
    assert torch.equal(weight, trained)


def test_saved_steps_and_previews_show_the_averaged_weights(tmp_path, monkeypatch):
    seen = []
    real = preview.make_previews

    def make_previews(parts, adapters, *others, **named):
        seen.append({name: one.detach().clone() for name, one in adapters.parameters()})
        return real(parts, adapters, *others, **named)

    monkeypatch.setattr(preview, "make_previews", make_previews)
    run = begin(
        tmp_path,
        name="one",
        optimizer="adamw_schedule_free",
        save_steps=1,
        sample_every=3,
        sample_prompts=["a red disc"],
        sample_steps=1,
        sample_size=64,
    )
    assert job.run(run.path) == job.FINISHED
    state = read_state(run.state).state
    trained, (_, last) = state["adapters"], seen
    z = [state["optimizer"]["state"][number]["z"] for number in range(len(last))]
    for (name, shown), point in zip(last.items(), z, strict=True):
        # the training weights lie between the last point and the average: y = 0.1 z + 0.9 x
        torch.testing.assert_close(trained[name], 0.1 * point + 0.9 * shown)
    exported = load_file(run.path / "one.safetensors")
    in_file, shown, in_training = (
        torch.cat([one.float().flatten() for one in ups]).sort().values
        for ups in (
            [exported[name] for name in exported if name.endswith("lora_up.weight")],
            [last[name] for name in last if "lora_B" in name],
            [trained[name] for name in trained if "lora_B" in name],
        )
    )
    # the file holds float16
    torch.testing.assert_close(in_file, shown, rtol=2e-3, atol=1e-6)
    assert not torch.allclose(in_training, shown, rtol=2e-3, atol=1e-6)


def test_prodigy_reports_the_rate_that_it_found(tmp_path):
    run = begin(
        tmp_path, epochs=15, optimizer="prodigy", learning_rate=None, train_text_encoder=True
    )
    assert job.run(run.path) == job.FINISHED
    told = [getattr(event, "learning_rate", None) for event in run.read_events()]
    rates = [rate for rate in told if rate is not None]
    assert rates[0] == pytest.approx(1e-6) and rates == sorted(rates) and rates[-1] > 1e-6
    groups = read_state(run.state).state["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["unet", "text_encoder"]
    assert groups[0]["d"] == groups[1]["d"] == rates[-1]
