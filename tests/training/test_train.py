"""The loop by itself: a tiny UNet, made-up latents, no files."""

import dataclasses
import functools
import math
from typing import get_args

import pytest
import torch

from lora_trainer import families
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.scan import Example
from lora_trainer.errors import ConfigError, NotFinite
from lora_trainer.families.components.noise import NoiseLevels
from lora_trainer.settings import training
from lora_trainer.settings.training import (
    CheckpointSettings,
    DatasetSettings,
    LoraSettings,
    TrainingSettings,
)
from lora_trainer.training.batches import CaptionEncoder, EncodedImages, TensorStore, TrainingData
from lora_trainer.training.denoising import DenoisingObjective
from lora_trainer.training.loop import Loop
from lora_trainer.training.losses import denoising_loss
from lora_trainer.training.optimizers import make_optimizer
from lora_trainer.training.rates import make_rate_schedule
from lora_trainer.training.train import BatchSchedule, SmoothedLoss, Trainer
from tests.tiny import small_parts

CPU = torch.device("cpu")


def example(path, number):
    return Example(
        path=path,
        name=path.name,
        caption=f"image {number}",
        width=64,
        height=64,
        digest=str(number),
        repeats=1,
        folder="",
    )


def make_trainer(tmp_path, *, images=4, step_count=8, lora=None, **settings):
    parts = small_parts(tokenizers=families.get("sd1").tokenizers())
    lora = lora or LoraSettings(lora_rank=2, target_modules=("to_q", "to_v"))
    training = TrainingSettings(**{"learning_rate": 1e-3, **settings})
    examples = [example(tmp_path / f"{number}.png", number) for number in range(images)]
    encoded = EncodedImages(TensorStore(None))
    generator = torch.Generator().manual_seed(5)
    for number in range(images):
        encoded._keys[number] = str(number)
        moments = torch.cat([torch.randn(4, 8, 8, generator=generator), torch.zeros(4, 8, 8)])
        encoded._store.put(str(number), {"moments": moments, "size_condition": torch.zeros(6)})
    checkpoint = CheckpointSettings(base_model=tmp_path)
    captions = CaptionEncoder(
        parts, checkpoint, TensorStore(None), "encoder", live=lora.train_text_encoder
    )
    assert list(captions.keep([one.caption for one in examples], torch.float32))
    adapters = add_adapters(parts, lora, 3)
    parts.unet.train()
    optimizer = make_optimizer(adapters, training, CPU)
    noise_process = NoiseLevels.of(parts.schedule)
    objective = DenoisingObjective(
        family=parts.family,
        unet=parts.unet,
        noise_process=noise_process,
        data=TrainingData(
            examples=examples,
            images=encoded,
            settings=DatasetSettings(train_data_dir=tmp_path),
            seed=training.seed,
            noise_offset=0.0,
            noise_process=noise_process,
        ),
        captions=captions,
        settings=training,
        device=CPU,
    )
    return Trainer(
        adapters=adapters,
        objective=objective,
        optimizer=optimizer,
        rates=make_rate_schedule(optimizer, training, step_count),
        plan=BatchSchedule(
            buckets={Bucket(64, 64): list(range(images))},
            repeats=[1] * images,
            batch_size=training.batch_size,
            accumulation=training.gradient_accumulation_steps,
            seed=training.seed,
            step_count=step_count,
        ),
        settings=training,
        device=CPU,
        dtype=torch.float32,
    )


def gradients(trainer, group):
    """Those of one step over `group`, before the optimizer uses them."""
    kept = {}
    trainer._apply_gradients = lambda losses: (
        kept.update(
            {name: parameter.grad.clone() for name, parameter in trainer.adapters.parameters()}
        )
        or (losses.tolist(), 1.0)
    )
    trainer.train_step(group)
    return kept


def test_every_image_of_a_step_counts_the_same_whatever_its_batch(tmp_path, monkeypatch):
    # the same noise for every image, however the group is divided
    real = TrainingData.batch

    def batch(self, indices, step, part, rows):
        singles = [real(self, [indices[row]], 0, indices[row]) for row in rows]
        return type(singles[0])(
            latents=torch.cat([one.latents for one in singles]),
            noise=torch.cat([one.noise for one in singles]),
            timesteps=torch.cat([one.timesteps for one in singles]),
            captions=tuple(one.captions[0] for one in singles),
            size_conditions=torch.cat([one.size_conditions for one in singles]),
        )

    monkeypatch.setattr(TrainingData, "batch", batch)
    together = gradients(make_trainer(tmp_path, images=3), [(0, 1, 2)])
    divided = gradients(make_trainer(tmp_path, images=3), [(0, 1), (2,)])
    for name in together:
        torch.testing.assert_close(divided[name], together[name], rtol=1e-4, atol=1e-7)


def test_of_several_captions_each_step_draws_one_and_nothing_else_is_drawn_otherwise(tmp_path):
    trainer = make_trainer(tmp_path)
    first, *others = trainer.objective.data.examples
    lines = ["image 0", "a photo, sharp", "the first image"]
    several = dataclasses.replace(
        trainer.objective.data,
        examples=[dataclasses.replace(first, caption="\n".join(lines)), *others],
    )
    assert list(trainer.objective.captions.keep([several.examples[0].caption], torch.float32))
    seen = set()
    for step in range(40):
        batch, again, alone = (
            several.batch([0, 1], step, 0),
            several.batch([0, 1], step, 0),
            trainer.objective.data.batch([0, 1], step, 0),
        )
        assert batch.captions == again.captions and batch.captions[1] == "image 1"
        assert alone.captions == ("image 0", "image 1")
        for one, other in (
            (batch.noise, alone.noise),
            (batch.latents, alone.latents),
            (batch.timesteps, alone.timesteps),
        ):
            assert torch.equal(one, other)
        assert trainer.objective.captions.states(batch.captions).hidden.shape[0] == 2
        seen.add(batch.captions[0])
    assert seen == set(lines)


def test_the_last_group_of_an_epoch_may_be_smaller_and_nothing_is_dropped(tmp_path):
    trainer = make_trainer(
        tmp_path, images=5, gradient_accumulation_steps=2, batch_size=1, step_count=6
    )
    assert (trainer.plan.batches_per_epoch, trainer.plan.steps_per_epoch) == (5, 3)
    groups = [trainer.plan.group(step) for step in range(6)]
    assert [len(group) for group in groups] == [2, 2, 1, 2, 2, 1]
    for epoch in (groups[:3], groups[3:]):
        assert sorted(index for group in epoch for indices in group for index in indices) == [
            0,
            1,
            2,
            3,
            4,
        ]
    assert groups[:3] != groups[3:]
    epochs = []
    for trainer.step in range(7):
        epochs.append(trainer.epoch)
    assert epochs == [1, 1, 1, 1, 2, 2, 2], "an epoch ends with its last step"


def test_dropout_follows_from_seed_and_step_whatever_was_drawn_before(tmp_path):
    lora = LoraSettings(lora_rank=2, lora_dropout=0.5, target_modules=("to_q", "to_v"))
    trainer = make_trainer(tmp_path, images=1, lora=lora)
    first = gradients(trainer, [(0,)])
    trainer.optimizer.zero_grad()
    torch.rand(3)
    again = gradients(trainer, [(0,)])
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    plain, saving = make_trainer(tmp_path), make_trainer(tmp_path)
    saving.objective.unet.enable_gradient_checkpointing()
    first, second = gradients(plain, [(0, 1)]), gradients(saving, [(0, 1)])
    assert any(gradient.abs().max() > 0 for gradient in first.values())
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-8)


def test_training_learns_what_it_is_shown(tmp_path):
    # one image, again and again, at a high rate: the loss at the same noise must fall
    trainer = make_trainer(
        tmp_path, images=1, step_count=60, learning_rate=1e-2, lora=LoraSettings(lora_rank=8)
    )
    shown = trainer.objective.batch([0], trainer.step, 99)
    before = trainer.objective.losses(shown).item()
    Loop(trainer, []).run()
    assert trainer.objective.losses(shown).item() != before
    fixed = trainer.objective.data.batch([0], 7, 0)

    def loss_at_fixed_noise():
        with torch.no_grad():
            text = trainer.objective.captions.states(fixed.captions)
            return denoising_loss(
                functools.partial(trainer.objective.family.predict, trainer.objective.unet),
                trainer.objective.noise_process,
                fixed.latents,
                text,
                fixed.noise,
                fixed.timesteps,
                fixed.size_conditions,
                trainer.settings,
            ).item()

    learned = loss_at_fixed_noise()
    with trainer.adapters.strength(0):
        untouched = loss_at_fixed_noise()
    assert learned < untouched * 0.9


def test_the_base_is_never_changed(tmp_path):
    trainer = make_trainer(tmp_path, step_count=3)
    trained = {
        name
        for name, parameter in trainer.objective.unet.named_parameters()
        if parameter.requires_grad
    }
    base = {
        name: parameter.clone()
        for name, parameter in trainer.objective.unet.named_parameters()
        if name not in trained
    }
    Loop(trainer, []).run()
    assert trained and all("lora_" in name for name in trained)
    assert all(
        torch.equal(base[name], parameter)
        for name, parameter in trainer.objective.unet.named_parameters()
        if name in base
    )


def test_a_step_without_finite_gradients_leaves_the_weights_alone(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.objective.data.images._store.get("1")["moments"].fill_(math.nan)
    before = trainer.adapters.state_dict()
    result = trainer.train_step([(0, 1)])
    assert result.skipped == "loss: 1.png"
    assert all(
        torch.equal(before[name], value) for name, value in trainer.adapters.state_dict().items()
    )
    assert trainer.train_step([(0, 2)]).skipped == ""
    before = trainer.adapters.state_dict()
    _, parameter = next(iter(trainer.adapters.parameters()))
    parameter.register_hook(lambda gradient: gradient * math.inf)
    assert trainer.train_step([(2, 0)]).skipped == "gradient: 0.png, 2.png"
    assert all(
        torch.equal(before[name], value) for name, value in trainer.adapters.state_dict().items()
    )


def test_the_forward_pass_has_the_frozen_models_number_format(tmp_path):
    trainer = make_trainer(tmp_path, images=1)
    for trainer.dtype in (torch.float32, torch.bfloat16):
        with trainer.precision():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == trainer.dtype


def test_the_run_ends_with_the_images_names_when_no_step_is_finite(tmp_path):
    trainer = make_trainer(tmp_path, images=1, step_count=100)
    trainer.objective.data.images._store.get("0")["moments"].fill_(math.inf)
    with pytest.raises(NotFinite) as caught:
        Loop(trainer, []).run()
    assert (
        "10 steps in a row" in str(caught.value)
        and "0.png" in str(caught.value)
        and "learning_rate" in str(caught.value.hint)
    )


def test_the_text_encoder_has_a_rate_of_its_own_and_learns(tmp_path):
    lora = LoraSettings(lora_rank=2, target_modules=("to_q",), train_text_encoder=True)
    trainer = make_trainer(
        tmp_path, lora=lora, learning_rate=1e-3, text_encoder_lr=5e-5, step_count=2
    )
    assert {group["name"]: group["lr"] for group in trainer.optimizer.param_groups} == {
        "unet": 1e-3,
        "text_encoder": 5e-5,
    }
    before = {name: value.clone() for name, value in trainer.adapters.groups()["text_encoder"]}
    Loop(trainer, []).run()
    assert any(
        not torch.equal(before[name], value)
        for name, value in trainer.adapters.groups()["text_encoder"]
    )
    half = make_optimizer(trainer.adapters, TrainingSettings(learning_rate=1e-3), CPU)
    assert half.param_groups[1]["lr"] == 5e-4


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=1e-3)
    seen = []
    real = trainer.optimizer.step
    trainer.optimizer.step = lambda: (
        seen.append(
            torch.stack([p.grad.norm() for p in trainer._parameters if p.grad is not None])
            .norm()
            .item()
        )
        or real()
    )
    result = trainer.train_step([(0, 1)])
    assert result.gradient_norm > 1e-3 and seen == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize(
    "name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_every_schedule_warms_up(tmp_path, name):
    trainer = make_trainer(tmp_path, lr_scheduler=name, lr_warmup_steps=4, step_count=8)
    rates = []
    for _ in range(8):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.rates.step()
    assert rates[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[7] == pytest.approx(1e-3) if name.startswith("constant") else rates[7] < 1e-3


def rates_of(tmp_path, **changes):
    trainer = make_trainer(tmp_path, step_count=12, **changes)
    rates = []
    for _ in range(12):
        rates.append(round(trainer.optimizer.param_groups[0]["lr"], 9))
        trainer.optimizer.step()
        trainer.rates.step()
    return tuple(rates)


def test_each_schedule_and_each_of_its_settings_gives_rates_of_its_own(tmp_path):
    different = [{"lr_scheduler": name} for name in get_args(training.Scheduler)]
    different += [
        {"lr_scheduler": "constant", "lr_warmup_steps": 3},
        {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2},
        {"lr_scheduler": "polynomial", "lr_scheduler_power": 0.5},
    ]
    assert len({rates_of(tmp_path, **changes) for changes in different}) == len(different)


def test_a_schedule_that_is_no_longer_offered_names_what_does_the_same():
    with pytest.raises(ConfigError, match="lr_scheduler is 'constant_with_warmup'") as caught:
        training.TrainingSettings(lr_scheduler="constant_with_warmup")
    assert "Use constant, with lr_warmup_steps above 0" in str(caught.value.hint)


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lr_warmup_steps is 8, but the run has only 8 steps"):
        make_trainer(tmp_path, lr_warmup_steps=8, step_count=8)


def test_the_smoothed_loss_starts_at_the_first_and_forgets_slowly():
    loss = SmoothedLoss()
    assert loss.value is None
    loss.add(0.5)
    assert loss.value == pytest.approx(0.5)
    loss.add(0.1)
    assert loss.value == pytest.approx((0.98 * 0.02 * 0.5 + 0.02 * 0.1) / (1 - 0.98**2))
