"""Block swap computes the same bits as no swap, with two blocks on the device at most, each copied
before it is needed.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lora_trainer import families
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.frozen.blocks import SLOTS, spread
from lora_trainer.frozen.layers import freeze, homes, layers_in
from lora_trainer.frozen.swap import BlockSwap, Copier, keep
from lora_trainer.settings.training import LoraSettings
from tests.made import small_checkpoint
from tests.tiny import tiny_unet

CPU = torch.device("cpu")


class LazyCopier(Copier):
    """A device that does its work as late as it may: a copy happens when something waits for it, so
    that a wait that is missing leaves wrong numbers. It notes what happens.
    """

    def __init__(self):
        super().__init__(CPU)
        self.slots = 0
        self.log = []
        self.pending = {}
        self.at_work = []

    def slot(self, size):
        self.slots += 1
        return torch.full((size,), 255, dtype=torch.uint8)

    def start(self, slot, source, after):
        mark = len(self.log)
        self.log.append(("copy", after))
        self.pending[mark] = (slot, source)
        # what was in the slot is gone from now on
        slot.fill_(255)
        return mark

    def wait(self, mark):
        self.log.append(("use", mark))
        if mark in self.pending:
            slot, source = self.pending.pop(mark)
            slot[: source.numel()].copy_(source)

    def mark(self):
        self.log.append(("left", None))
        return len(self.log) - 1


def five_blocks(precision="same", copier=None, swapped=(0, 1, 2, 3, 4)):
    torch.manual_seed(0)
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(6, 6 + n), torch.nn.Tanh(), torch.nn.Linear(6 + n, 6))
        for n in range(5)
    ]
    model = torch.nn.Sequential(*blocks).requires_grad_(False)
    weights = {id(layer): layer.weight.detach().clone() for layer in layers_in(blocks)}
    layers = [freeze(layers_in([block]), precision) for block in blocks]
    swap = BlockSwap([layers[number] for number in swapped], CPU, copier)
    for block in layers:
        for layer in block:
            layer.take(weights[id(layer)], torch.float32, CPU)
    swap.gather()
    return model, swap


def gradient_of(model, checkpointed=False):
    inputs = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
    found = inputs
    for block in model:
        found = (
            torch.utils.checkpoint.checkpoint(block, found, use_reentrant=False)
            if checkpointed
            else block(found)
        )
    found.square().sum().backward()
    return inputs.grad


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["same", "int8", "fp8"])
@pytest.mark.parametrize("swapped", [(0, 1, 2, 3, 4), (0, 2, 4), (3,)])
def test_gradients_are_those_without_a_swap_bit_for_bit(precision, checkpointed, swapped):
    model, _ = five_blocks(precision, LazyCopier(), swapped)
    usual, swap = five_blocks(precision, LazyCopier(), ())
    assert swap.hosted == []
    # the second step begins where the first one has ended
    for _ in range(2):
        assert torch.equal(gradient_of(model, checkpointed), gradient_of(usual))


def test_each_block_is_copied_while_the_one_before_is_in_use():
    copier = LazyCopier()
    model, _ = five_blocks(copier=copier)
    gradient_of(model)
    assert copier.slots == SLOTS
    # forward 0 to 4, backward 4 to 0: nine blocks are entered, and each but the first two of the
    # forward pass was copied into a slot after what was there had been left
    uses = [n for n, (what, _) in enumerate(copier.log) if what == "use"]
    copies = {n: after for n, (what, after) in enumerate(copier.log) if what == "copy"}
    assert len(uses) == 9 and len(copies) == 8
    for number, use in enumerate(uses[1:], 1):
        mark = copier.log[use][1]
        # begun before the block in front of it was left
        left = [n for n, (what, _) in enumerate(copier.log[:use]) if what == "left"][-1]
        assert mark < left, f"the {number}th block had to be waited for"
    for begun, after in list(copies.items())[SLOTS:]:
        assert after is not None and after < begun and copier.log[after][0] == "left"


def test_a_second_step_finds_its_first_block_there():
    copier = LazyCopier()
    model, _ = five_blocks(copier=copier)
    gradient_of(model)
    before = len(copier.log)
    gradient_of(model)
    again = [what for what, _ in copier.log[before:]]
    # block 0 has not left since the backward pass, and block 1 had been in use before it
    assert again.count("copy") == 6 and copier.slots == SLOTS


def test_leaving_the_device_frees_the_slots_and_coming_back_fills_them():
    copier = LazyCopier()
    model, swap = five_blocks("int8", copier)
    before = gradient_of(model)
    model.to(CPU)
    assert swap._slots == []
    assert torch.equal(gradient_of(model), before)
    assert copier.slots == 2 * SLOTS


def test_placeholders_take_no_memory():
    model, swap = five_blocks()
    layer = model[0][0]
    assert layer.weight.shape == (6, 6) and layer.weight.untyped_storage().nbytes() == 4
    stored = sum(memory.numel() for memory in swap.hosted)
    numbers = sum(one.weight.numel() for one in layers_in(model))
    assert 4 * numbers <= stored < 4 * numbers + 10 * 256


@pytest.mark.parametrize(("count", "total"), [(0, 5), (1, 5), (2, 6), (5, 5), (9, 5), (7, 44)])
def test_swapped_blocks_are_spread_evenly(count, total):
    found = spread(count, total)
    assert len(found) == min(count, total) and all(0 <= n < total for n in found)
    gaps = {later - one for one, later in pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_unets_blocks_are_all_its_inner_layers_in_the_order_in_which_they_run(family):
    unet = tiny_unet(family)
    blocks = families.get(family).blocks(unet)
    layers = [layers_in(block) for block in blocks]
    inner = {
        id(layer)
        for part in (unet.down_blocks, unet.mid_block, unet.up_blocks)
        for layer in layers_in([part])
    }
    found = [id(layer) for block in layers for layer in block]
    assert len(found) == len(set(found)) and set(found) == inner
    assert all(layers)
    number = {id(layer): n for n, block in enumerate(layers) for layer in block}
    order = []
    for layer in (layer for block in layers for layer in block):
        layer.register_forward_hook(lambda one, *_: order.append(number[id(one)]))
    extra = {"text_embeds": torch.zeros(1, 64), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        unet(
            torch.zeros(1, 4, 8, 8),
            torch.tensor([1]),
            torch.zeros(1, 7, unet.config.cross_attention_dim),
            added_cond_kwargs=extra,
        )
    assert order == sorted(order) and set(order) == set(range(len(blocks)))


def losses_of(parts, gradient_checkpointing):
    if gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    adapters = add_adapters(parts, LoraSettings(lora_rank=2), 0)
    parts.unet.train()
    generator = torch.Generator().manual_seed(0)
    for _, parameter in adapters.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, parts.unet.config.cross_attention_dim, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = parts.unet(noisy, torch.tensor([500]), text).sample.float().square().sum()
    found.backward()
    return found.detach(), adapters, [parameter.grad for _, parameter in adapters.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_loaded_unet_with_adapters_gives_the_same_bits_swapped(checkpointing):
    checkpoint = open_checkpoint(small_checkpoint())
    outcomes = []
    for kept, swapped in (("same", 0), ("same", 1000), ("int8", 0), ("int8", 5)):
        parts = checkpoint.load(torch.bfloat16)
        parts.text_encoders = ()
        parts.unet = checkpoint.load_unet(torch.bfloat16, kept=kept, swapped=swapped)
        assert len(homes(parts.unet)) == bool(swapped)
        outcomes.append(losses_of(parts, checkpointing))
        for _, parameter in outcomes[-1][1].parameters():
            assert type(parameter) is torch.nn.Parameter and parameter.dtype == torch.float32
    for one, other in ((0, 1), (2, 3)):
        assert torch.equal(outcomes[one][0], outcomes[other][0])
        for ours, theirs in zip(outcomes[one][2], outcomes[other][2], strict=True):
            assert torch.equal(ours, theirs)
    assert outcomes[0][0] != outcomes[2][0]
    assert outcomes[2][0].item() == pytest.approx(outcomes[0][0].item(), rel=0.05)


def test_strength_0_is_the_base_as_it_is_kept():
    checkpoint = open_checkpoint(small_checkpoint())
    parts = checkpoint.load(torch.float32)
    text = torch.randn(1, 7, parts.unet.config.cross_attention_dim)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), text
    parts.unet = checkpoint.load_unet(torch.float32, kept="int8", swapped=3)
    with torch.no_grad():
        before = parts.unet(*inputs).sample
        adapters = add_adapters(parts, LoraSettings(lora_rank=2), 0)
        for _, parameter in adapters.parameters():
            parameter.add_(0.1)
        assert not torch.equal(parts.unet(*inputs).sample, before)
        with adapters.strength(0):
            assert torch.equal(parts.unet(*inputs).sample, before)


def test_the_outer_layers_norms_and_embeddings_are_kept_as_they_are():
    unet = tiny_unet("sd1")
    keep(families.get("sd1").blocks(unet), "fp8", 0, CPU)
    kept = {path for path, one in unet.named_modules() if type(one).__name__.startswith("Frozen")}
    all_layers = set(layers_in([unet]))
    layers = {path for path, one in unet.named_modules() if one in all_layers}
    assert layers - kept == {
        "conv_in",
        "conv_out",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
    }
