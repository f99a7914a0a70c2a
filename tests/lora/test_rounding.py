"""The precisions in which WebUIs keep weights, against values worked out by hand. `python -m
tests.benchmark.low_bits oracles` compares nf4 with bitsandbytes and GGUF with the `gguf` package.
"""

from __future__ import annotations

import pytest
import torch

from lora_trainer.lora.rounding import NF4, PRECISIONS


def nearest(precision: str, *values: float) -> list[float]:
    rounded = PRECISIONS[precision].nearest(torch.tensor([values]))
    return [round(value, 7) for value in rounded[0].tolist()]


def test_eight_bit_floats() -> None:
    # e4m3: steps of 2**-9 below 2**-6, then 3 bits after the first
    assert nearest("fp8_e4m3fn", 0.0009, 0.001, 0.02, -1.07, 1.2) == [
        0.0,
        0.0019531,
        0.0195312,
        -1.125,
        1.25,
    ]
    # e5m2: 2 bits after the first, from 2**-14
    assert nearest("fp8_e5m2", 0.0009, 0.02, -1.07, 1.2) == [0.0008545, 0.0195312, -1.0, 1.25]
    assert nearest("bf16", 1.003, 1.005) == [1.0, 1.0078125]
    assert nearest("fp16", 1.0004) == [1.0]


def test_nf4_takes_the_nearest_of_its_sixteen_values_times_the_blocks_largest() -> None:
    # two blocks of 64 in a row, with 2 and 0.5 as their largest
    row = [0.0] * 128
    row[:4], row[64:67] = [-2.0, 0.5, 0.3, -0.01], [0.5, 0.11, -0.4]
    found = nearest("nf4", *row)
    wanted = [-2.0, 2 * NF4[10], 2 * NF4[9], 0.0]
    assert found[:4] == [round(value, 7) for value in wanted]
    assert found[64:67] == [round(value, 7) for value in (0.5, NF4[10] / 2, NF4[1] / 2)]
    assert not any(found[4:64])


def test_gguf_scales_a_block_of_32_by_its_largest_value() -> None:
    row = [0.0] * 32
    row[:4] = [1.27, 0.014, -0.016, 0.5]
    # steps of 1.27 / 127 in float16
    step = float(torch.tensor(0.01).half())
    assert nearest("q8_0", *row)[:4] == [round(n * step, 7) for n in (127, 1, -2, 50)]
    row[:4] = [-1.6, 0.14, 0.16, 1.6]
    # the largest is level -8 of steps of 0.2, and levels end at 7
    step = float(torch.tensor(0.2).half())
    assert nearest("q4_0", *row)[:4] == [round(n * step, 7) for n in (-8, 1, 1, 7)]
    step = float(torch.tensor(0.1).half())
    assert nearest("q5_0", *row)[:4] == [round(n * step, 7) for n in (-16, 1, 2, 15)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_again_changes_nothing(precision: str) -> None:
    # of which a merge's loss follows: less than half a step is lost entirely
    weights = torch.randn(16, 320, generator=torch.Generator().manual_seed(0)) * 0.03
    once = PRECISIONS[precision].nearest(weights)
    assert torch.equal(PRECISIONS[precision].nearest(once), once)


@pytest.mark.parametrize("precision", ["nf4", "q8_0", "q5_0", "q4_0"])
def test_blocks_end_with_their_row(precision: str) -> None:
    weights = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    rounded = PRECISIONS[precision].nearest(weights)
    assert rounded.shape == weights.shape
    alone = torch.cat([PRECISIONS[precision].nearest(row[None]) for row in weights])
    assert torch.equal(rounded, alone)
    assert not PRECISIONS[precision].nearest(torch.zeros(2, 64)).any()


@pytest.mark.parametrize(
    ("precision", "value", "below", "above"),
    [
        ("fp8_e4m3fn", 1.03125, 1.0, 1.125),
        ("fp8_e4m3fn", -0.0009765625, -0.001953125, 0.0),
        ("fp8_e5m2", 0.3125, 0.3125, 0.3125),
        ("fp8_e5m2", -1.0625, -1.25, -1.0),
    ],
)
def test_random_rounding_is_right_on_average(
    precision: str, value: float, below: float, above: float
) -> None:
    random = PRECISIONS[precision].random
    assert random is not None
    drawn = random(torch.full((100, 100), value), torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {below, above}
    # 10,000 draws: the mean's deviation is a hundredth of half a step
    assert abs(float(drawn.mean()) - value) <= 0.02 * (above - below)
