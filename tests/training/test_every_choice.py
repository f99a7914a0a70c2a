"""Every choice of every setting does something of its own: what it comes to, where torch meets it,
is unlike what the other choices come to.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.injected import Adapters, add_adapters
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.dataset.buckets import assign
from lora_trainer.dataset.findings import error, refuse
from lora_trainer.dataset.scan import Example
from lora_trainer.errors import LoraTrainerError
from lora_trainer.families.components.noise import NoiseLevels, make_sampler
from lora_trainer.settings import schema, training
from lora_trainer.settings.training import GROUPS, RunConfig
from lora_trainer.training.batches import TrainingData, stores_for
from lora_trainer.training.device import choose_precision
from lora_trainer.training.losses import LOSSES, WEIGHTINGS, huber_threshold
from lora_trainer.training.optimizers import make_optimizer
from lora_trainer.training.rates import make_rate_schedule
from tests.made import small_checkpoint
from tests.tiny import encode_captions, small_parts

CPU = torch.device("cpu")
NOISE_LEVELS = NoiseLevels.of(NoiseSchedule())


def choices_of(item: dataclasses.Field[Any], group: type) -> tuple[Any, ...]:
    """What may be chosen; empty for a number, a text or a path."""
    if named := schema.choices_of(group, item):
        return named
    kinds = typing.get_args(typing.get_type_hints(group)[item.name]) or (
        typing.get_type_hints(group)[item.name],
    )
    return (True, False, *((None,) if type(None) in kinds else ())) if bool in kinds else ()


CHOICES = {
    item.name: choices
    for _, group in GROUPS
    for item in dataclasses.fields(group)  # type: ignore[arg-type]
    if (choices := choices_of(item, group))
}


def example(**changes: Any) -> Example:
    values = {
        "path": Path("a.png"),
        "name": "a.png",
        "caption": "fox, owl, elk, hen, cat, dog",
        "width": 800,
        "height": 400,
        "digest": "0",
        "repeats": 1,
        "folder": "images",
    }
    return Example(**{**values, **changes})


def said(act: Callable[[], object]) -> object:
    try:
        return act()
    except LoraTrainerError as told:
        return str(told)


class Mirrors:
    """Encoded images that tell whether they were asked for mirrored."""

    def get(self, index: int, *, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((8, 2, 2), -100.0 if mirrored else 100.0), torch.zeros(6)


def batches(run: RunConfig) -> tuple[object, ...]:
    data = TrainingData(
        examples=[example()],
        images=Mirrors(),
        settings=run.dataset,
        seed=0,
        noise_offset=0.0,
        noise_process=NoiseLevels.of(NoiseSchedule()),
    )  # type: ignore[arg-type]
    made = [data.batch([0], step, 0) for step in range(6)]
    return tuple((batch.captions, bool(batch.latents.mean() > 0)) for batch in made)


def schedule(run: RunConfig, marked: Path) -> tuple[object, ...]:
    """Of a checkpoint that says nothing, and of one that says v_prediction and
    zero_terminal_snr.
    """
    asked = run.checkpoint
    files = (small_checkpoint(), marked)
    opened = [
        open_checkpoint(
            file, prediction_type=asked.prediction_type, zero_terminal_snr=asked.zero_terminal_snr
        )
        for file in files
    ]
    return tuple((one.schedule.prediction_type, one.schedule.zero_terminal_snr) for one in opened)


def adapters(run: RunConfig) -> Adapters:
    return add_adapters(small_parts(), run.lora, seed=0)


def rates(run: RunConfig) -> tuple[float, ...]:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1.0}])
    curve = make_rate_schedule(optimizer, run.training, 12)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        curve.step()
    return tuple(found)


def costs(run: RunConfig) -> tuple[float, ...]:
    """Of a small and of a large error, at a noisy timestep."""
    errors, times = torch.tensor([0.01, 3.0]).view(1, 1, 1, 2), torch.tensor([700])
    loss = LOSSES[run.training.loss_type].elementwise
    return tuple(loss(errors, times, NOISE_LEVELS, run.training).flatten().tolist())


def weights(run: RunConfig) -> tuple[float, ...]:
    """Of a little and of a very noisy timestep."""
    weight = WEIGHTINGS[run.training.loss_weighting].weight
    return tuple(weight(torch.tensor([100, 900]), NOISE_LEVELS, run.training).tolist())


def stores(run: RunConfig) -> tuple[bool, ...]:
    """Whether a small and a large set are kept on disk."""
    return tuple(
        stores_for(run.training.cache_latents, count, Path("cache"))[0]._folder is not None
        for count in (1000, 10**11)
    )


def precisions(run: RunConfig) -> tuple[object, ...]:
    """On a small model's processor, which has no fp16, and on a card that has no bf16 of its
    own.
    """
    return tuple(
        said(lambda device=device: choose_precision(run.checkpoint.mixed_precision, device, 1))
        for device in (CPU, torch.device("mps"))
    )


def text_states(run: RunConfig) -> tuple[int, ...]:
    parts = small_parts(tokenizers=open_checkpoint(small_checkpoint()).tokenizers())
    return tuple(
        encode_captions(
            parts, ["fox " * 300], max_token_length=run.checkpoint.max_token_length
        ).hidden.shape
    )


EFFECTS: dict[str, Callable[[RunConfig, Path], object]] = {
    "enable_bucket": lambda run, _: tuple(assign([example()], run.dataset, 512)),
    "shuffle_caption": lambda run, _: batches(run),
    "flip_augmentation": lambda run, _: batches(run),
    "on_bad_data": lambda run, _: said(
        lambda: refuse([error("unreadable-image", "a.png is damaged")], run.dataset)
    ),
    "prediction_type": schedule,
    "zero_terminal_snr": schedule,
    "max_token_length": lambda run, _: text_states(run),
    "mixed_precision": lambda run, _: precisions(run),
    "lora_type": lambda run, _: adapters(run).module_count,
    "train_text_encoder": lambda run, _: len(adapters(run).groups().get("text_encoder", [])),
    # on the processor the second is a sentence that says why not
    "optimizer": lambda run, _: said(
        lambda: type(make_optimizer(adapters(run), run.training, CPU)).__name__
    ),
    "lr_scheduler": lambda run, _: rates(run),
    "loss_type": lambda run, _: costs(run),
    "loss_weighting": lambda run, _: weights(run),
    "huber_schedule": lambda run, _: huber_threshold(
        torch.tensor([700]), NOISE_LEVELS, run.training
    ).item(),
    "cache_latents": lambda run, _: stores(run),
    "sample_sampler": (
        lambda run, _: type(make_sampler(run.samples.sample_sampler, NoiseSchedule())).__name__
    ),
}
ELSEWHERE = {
    "gradient_checkpointing": "tests/tasks/test_diffusion.py",
    "vae_tiling": "tests/families/test_encoding.py",
    "base_precision": "tests/tasks/test_diffusion.py",
    "sample_encoder": "tests/tasks/test_preview_measures.py",
    "timestep_distribution": "tests/families/test_toy_family.py",
    "webui": "tests/lora/test_deliver.py",
    "keep_encoded": "tests/training/test_encoded_cache.py",
    "packing": "tests/tasks/test_language.py",
    "merge_lora": "tests/tasks/test_language.py",
    "load_in_4bit": "tests/tasks/test_language.py",
}
"""What only a whole run shows."""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "marked.safetensors"
    save_file(
        {**load_file(small_checkpoint()), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
        path,
    )
    return path


def test_every_setting_with_choices_is_looked_at() -> None:
    assert set(EFFECTS) | set(ELSEWHERE) == set(CHOICES)
    for name, file in ELSEWHERE.items():
        tree = ast.parse((Path(__file__).parents[2] / file).read_text(encoding="utf-8"))
        assert any(
            (isinstance(node, ast.keyword) and node.arg == name)
            or (isinstance(node, ast.Constant) and node.value == name)
            for node in ast.walk(tree)
        ), f"{file} does not try {name}"


@pytest.mark.parametrize("name", EFFECTS)
def test_no_two_choices_come_to_the_same(name: str, marked: Path) -> None:
    needed = {"train_data_dir": "images", "base_model": "base.safetensors", "output_dir": "run"}
    effects = {
        choice: EFFECTS[name](training.from_mapping({**needed, name: choice}), marked)
        for choice in CHOICES[name]
    }
    told = list(effects.values())
    assert len(told) > 1 and all(told.count(effect) == 1 for effect in told), effects
