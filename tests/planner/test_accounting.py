"""The accounting counts what a real step really uses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.tensors import fill
from lora_trainer.cpu.convolutions import PrepackedConv2d
from lora_trainer.cpu.quicken import can_quicken, quicken
from lora_trainer.planner import accounting, formula
from lora_trainer.planner.storages import ACTIVATIONS, LiveStorages
from lora_trainer.settings import training
from lora_trainer.tasks.diffusion import load_with_adapters, make_trainer, text_encoder_dtype
from lora_trainer.tasks.images import Encoded
from lora_trainer.training import optimizers
from tests.checkpoint.samples import full_file
from tests.made import small_checkpoint

GIB = 2**30


def config_of(**changes):
    values = {"train_data_dir": ".", "base_model": ".", "output_dir": "run", "resolution": 64}
    asked = training.from_mapping({**values, **changes})
    return training.settle(asked, asked.dataset.resolution, 100)


def test_a_storage_is_counted_once_and_until_it_is_freed():
    with LiveStorages() as live:
        kept = torch.zeros(256)
        view = kept.view(16, 16).t()
        assert live.now == {ACTIVATIONS: 1024}
        live.mark("weights", [view])
        temporary = torch.ones(1000)
        del temporary
        assert live.now == {ACTIVATIONS: 0, "weights": 1024}
        assert live.peak == {ACTIVATIONS: 4000, "weights": 1024}
        live.restart()
        assert sum(live.peak.values()) == 1024


def test_what_changes_numbers_in_place_makes_no_storage():
    with FakeTensorMode(), LiveStorages() as live:
        kept, other = torch.zeros(256), torch.ones(256)
        assert kept.mul_(other).add_(1.0, alpha=2) is kept
        assert live.now == {ACTIVATIONS: 2048}
        words = torch.zeros(64, dtype=torch.int32)
        made = words.__lshift__(2)
        assert made is not words and live.now == {ACTIVATIONS: 2048 + 512}


def test_the_second_time_an_operation_gives_what_it_gave_the_first_time():
    def calls(a, b):
        whole = torch.ops.aten.mul.Tensor(a, b)
        yield from (whole, whole.t(), whole[1:, 2:], whole.view(torch.int32), whole.detach())
        yield from (torch.ops.aten.mul.out(a, 2, out=b), a.to(torch.bfloat16), a @ b.t(), a.sum(0))
        yield from (a.expand(2, 4, 8), torch.ops.aten.add_.Tensor(a, a), torch.tensor([2.0, 3.0]))

    def shapes(made):
        found, places = [], []
        for one in made:
            storage = one.untyped_storage()
            # storages have the numbers in which they come
            places.append(storage)
            number = next(n for n, known in enumerate(places) if known._cdata == storage._cdata)
            found.append((one.shape, one.stride(), one.storage_offset(), one.dtype, one.device))
            found.append((storage.nbytes(), number))
        return found

    plain = shapes(calls(torch.ones(4, 8), torch.ones(4, 8)))
    for _ in range(2):
        with FakeTensorMode() as mode, LiveStorages(mode) as live:
            assert shapes(calls(torch.ones(4, 8), torch.ones(4, 8))) == plain
            assert live.peak[ACTIVATIONS] > 0


def real_step(config, dtype):
    """The same for tensors with memory: loaded weights, a step that is computed."""
    checkpoint = open_checkpoint(small_checkpoint())
    prepared = accounting._prepared(checkpoint, config, dtype)
    prepared = dataclasses.replace(
        prepared, checkpoint=dataclasses.replace(checkpoint, fill=fill), device=torch.device("cpu")
    )
    encoders = prepared.checkpoint.load_text_encoders(
        text_encoder_dtype(prepared.device, dtype, checkpoint.family)
    )
    if config.lora.train_text_encoder:
        prepared.parts.text_encoders = encoders
    quick = can_quicken(prepared.device, dtype)
    adapters = load_with_adapters(prepared, prepacked=quick)
    if quick:
        quicken(prepared.parts.unet)
    # in layouts, whose second one the planner adds
    packed = [one for one in prepared.parts.unet.modules() if isinstance(one, PrepackedConv2d)]
    with LiveStorages() as live:
        captions = accounting._captions(prepared, encoders)
        del encoders
        for model in (prepared.parts.unet, *prepared.parts.text_encoders):
            live.mark("weights", [*model.parameters(), *model.buffers()])
        images = accounting._EmptyImages(prepared)
        trainer = make_trainer(
            prepared, Encoded(captions=captions, images=images, held_out=images), adapters
        )
        live.mark("adapters", trainer.parameters)
        accounting._fill_optimizer(trainer, live)
        live.restart()
        trainer.advance()
    return sum(live.peak.values()) + sum(one.weight.nbytes for one in packed)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {"gradient_checkpointing": True, "lora_type": "locon"}),
        (
            torch.float32,
            {"train_text_encoder": True, "gradient_accumulation_steps": 2, "batch_size": 2},
        ),
        (torch.bfloat16, {"optimizer": "prodigy", "ema_decay": None}),
        (torch.float32, {"base_precision": "int8", "gradient_checkpointing": True}),
        (torch.bfloat16, {"base_precision": "fp8", "blocks_to_swap": 5}),
        # with blocks of attention, where the processor has bfloat16
        (torch.bfloat16, {"resolution": 128}),
        (torch.bfloat16, {"resolution": 128, "gradient_checkpointing": True}),
        (torch.bfloat16, {"lora_type": "locon", "lora_rank": 32}),
    ],
)
def test_a_step_without_memory_is_counted_as_a_real_one(dtype, changes):
    config = config_of(**changes)
    counted = accounting.account(open_checkpoint(small_checkpoint()), config, dtype, "cpu")
    assert counted.peak == pytest.approx(real_step(config, dtype), rel=0.01)


def test_sd15_at_512_pixels_takes_what_is_known_and_what_the_formula_says(tmp_path):
    # SD1.5 in full size, batch 1, rank 8, bf16
    path = full_file(tmp_path, "sd1")
    checkpoint, config = open_checkpoint(path), config_of(resolution=512)
    counted = accounting.account(checkpoint, config, torch.bfloat16)
    assert counted.weights / GIB == pytest.approx(1.60, abs=0.01)
    assert counted.optimizer == pytest.approx(2 * counted.adapters, rel=0.01)
    assert (counted.peak - counted.optimizer) / GIB == pytest.approx(2.80, abs=0.03)
    layers = checkpoint.family.layer_shapes(path, checkpoint.detected)
    found = formula.predict(checkpoint.family, layers, config, "half")
    assert found.peak == pytest.approx(counted.peak, rel=0.05)
    assert found.weights == pytest.approx(counted.weights, rel=0.001)


def test_the_operations_of_a_step_are_counted():
    def flops(**changes):
        checkpoint = open_checkpoint(small_checkpoint())
        return accounting.step_flops(checkpoint, config_of(**changes), torch.float32)

    one, two = flops(), flops(batch_size=2)
    # what is done once a step, such as the embedding of the time, is little
    assert two / one == pytest.approx(2, rel=0.01)
    # half of the backward pass is left out: the base's weights learn nothing
    assert 1.2 * one < flops(gradient_checkpointing=True) < two


@pytest.mark.parametrize("name", ["adamw", "lion", "prodigy", "adamw_schedule_free"])
def test_an_optimizers_state_is_as_large_as_its_entry_says(name):
    weights = torch.nn.Parameter(torch.ones(100, 100))
    entry = optimizers.OPTIMIZERS[name]
    optimizer = entry.load(torch.device("cpu"))([weights], lr=1e-3, **entry.options)
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    size = sum(value.numel() * value.element_size() for value in tensors)
    assert size / weights.numel() == pytest.approx(entry.state_bytes, rel=0.01)
