from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lora_trainer.cpu import attention

SHAPES = (
    # heads, queries, keys, width
    (3, 100, 100, 40),
    (2, 90, 77, 64),
    (5, 144, 60, 8),
    (1, 80, 80, 33),
)


def tensors(
    heads: int, queries: int, keys: int, width: int, *, batch: int = 2, offset: float = 0.0
) -> list[torch.Tensor]:
    """Query, key, value, and a gradient of the output, as attention layers have them: (B, H, L, D)
    of (B, L, H, D). offset: what all keys have in common.
    """
    draw = torch.Generator().manual_seed(7)
    common = offset * torch.randn(batch, heads, 1, width, generator=draw)
    made = [
        torch.randn(batch, length, heads, width, generator=draw).transpose(1, 2)
        for length in (queries, keys, keys, queries)
    ]
    made[1] = made[1] + common
    return [one.bfloat16() for one in made]


def results(given: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """torch's output, and the gradients of query, key and value."""
    query, key, value, gradient = (one.to(dtype) for one in given)
    inputs = [one.clone().requires_grad_() for one in (query, key, value)]
    output = scaled_dot_product_attention(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def ours(given: list[torch.Tensor]) -> list[torch.Tensor]:
    query, key, value, gradient = given
    return [
        attention.attend(query, key, value),
        *attention.gradients(gradient, query, key, value),
    ]


def errors(found: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
    return [
        float((one.double() - exact).norm() / exact.norm())
        for one, exact in zip(found, true, strict=True)
    ]


@pytest.fixture
def active() -> Iterator[None]:
    if not attention.activate():
        pytest.skip("this processor or torch keeps its own attention")
    yield
    attention.deactivate()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [attention.BLOCK, 2000], ids=["whole heads", "some rows"])
def test_blocks_give_attention_and_its_gradients(shape, block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    given = tensors(*shape)
    true = results(given, torch.float64)
    found = ours(given)
    assert [one.shape for one in found] == [one.shape for one in true]
    assert {one.dtype for one in found} == {torch.bfloat16}
    # bfloat16 has eight bits: each rounding is an error of up to 0.4 %
    assert max(errors(found, true)) < 0.01


def test_what_all_keys_have_in_common_costs_no_precision():
    given = tensors(2, 100, 100, 40, offset=10)
    assert max(errors(ours(given), results(given, torch.float64))) < 0.01


@pytest.mark.parametrize(("deviation", "bound"), [(3, 0.02), (10, 0.06)])
def test_large_scores_are_off_by_their_rounding(deviation, bound):
    query, key, value, gradient = tensors(2, 100, 100, 40)
    given = [query * deviation, key, value, gradient]
    assert max(errors(ours(given), results(given, torch.float64))) < bound


def test_memory_of_an_inference_serves_a_training():
    given = tensors(3, 160, 160, 40)
    attention._scratch.__dict__.clear()
    with torch.inference_mode():
        attention.attend(*given[:3])
    assert max(errors(ours(given), results(given, torch.float64))) < 0.01


def test_a_scale_of_its_own_is_applied():
    query, key, value, gradient = tensors(2, 100, 100, 40)
    asked = [query * 0.5, key, value, gradient]
    by_scale = [
        attention.attend(query, key, value, 0.5 / 40**0.5),
        *attention.gradients(gradient, query, key, value, 0.5 / 40**0.5),
    ]
    expected = ours(asked)
    expected[1] = expected[1] * 0.5
    for one, other in zip(by_scale, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


def test_threads_do_not_share_their_blocks():
    first, second = tensors(2, 100, 100, 40), tensors(3, 120, 90, 64)
    expected = {"first": ours(first), "second": ours(second)}
    wrong: list[str] = []

    def repeat(name: str, given: list[torch.Tensor]) -> None:
        for _ in range(20):
            if not all(map(torch.equal, ours(given), expected[name])):
                wrong.append(name)

    threads = [
        threading.Thread(target=repeat, args=("first", first)),
        threading.Thread(target=repeat, args=("second", second)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_torchs_attention_takes_them_when_they_are_active(active):
    given = tensors(2, 100, 100, 40)
    assert all(map(torch.equal, results(given, torch.bfloat16), ours(given)))
    with torch.inference_mode():
        query, key, value, _ = given
        assert torch.equal(
            scaled_dot_product_attention(query, key, value), attention.attend(query, key, value)
        )


def test_weights_are_kept_for_the_backward_pass_while_there_is_room(active, monkeypatch):
    given = tensors(2, 100, 100, 40)
    size = 2 * 2 * 100 * 100 * 2
    monkeypatch.setattr(attention, "MOST_KEPT", 2 * size)
    attention._kept.clear()
    computed: list[torch.Size] = []
    real = attention._weights

    def counted(*values):
        computed.append(values[0].shape)
        return real(*values)

    monkeypatch.setattr(attention, "_weights", counted)
    inputs = [one.clone().requires_grad_() for one in given[:3]]
    outputs = [scaled_dot_product_attention(*inputs) for _ in range(3)]
    assert [size for _, size in attention._kept] == [size, size]
    expected = ours(given)
    computed.clear()
    found = [torch.autograd.grad(output, inputs, given[3]) for output in outputs]
    # for each image, of the third alone
    assert len(computed) == 2
    for gradients in found:
        assert all(map(torch.equal, gradients, expected[1:]))
    # they are gone, and the next may be kept
    torch.autograd.grad(scaled_dot_product_attention(*inputs), inputs, given[3])
    assert len(computed) == 2 + 2
    with torch.no_grad():
        scaled_dot_product_attention(*inputs)
    scaled_dot_product_attention(*given[:3])
    assert all(storage.expired() for storage, _ in attention._kept)


@pytest.mark.parametrize("room", [0, 1, 2], ids="room for {}".format)
def test_gradient_checkpointing_finds_what_it_has_seen(active, monkeypatch, room):
    """In the first pass each layer's weights go at once, so that there is room for all of them; in
    the second one those of a block wait together.
    """
    given = tensors(2, 100, 100, 40)
    monkeypatch.setattr(attention, "MOST_KEPT", room * 2 * 2 * 100 * 100 * 2)
    attention._kept.clear()

    def block(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        first = scaled_dot_product_attention(query, key, value)
        return scaled_dot_product_attention(first, key, value)

    def outcome(of) -> list[torch.Tensor]:
        inputs = [one.clone().requires_grad_() for one in given[:3]]
        output = of(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, given[3])]

    found = outcome(lambda *values: checkpoint(block, *values, use_reentrant=False))
    assert all(map(torch.equal, found, outcome(block)))


def test_without_memory_for_them_weights_are_computed_again(active, monkeypatch):
    given = tensors(2, 100, 100, 40)
    monkeypatch.setattr(attention, "MOST_KEPT", 10**18)
    attention._kept.clear()
    query, key, value = (one.clone().requires_grad_() for one in given[:3])
    many, keys = query[:1].expand(10**6, 2, 100, 40), key[:1, :, :1].expand(10**6, 2, 10**5, 40)
    kept = attention.room_to_keep(many, keys, value)
    assert kept.shape == (10**6, 2, 100, 10**5) and not attention._kept
    assert not attention._is_there(kept)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(20)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True)


def in_float(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query.float(), key.float(), value.float())


def of_fewer_key_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key[:, :1], value[:, :1], enable_gqa=True)


def of_few(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query[:, :, :10], key, value)


@pytest.mark.parametrize("call", [masked, causal, in_float, of_fewer_key_heads, of_few])
def test_torchs_own_attention_stays_for_all_else(call):
    given = tensors(2, 100, 100, 40)

    def outcome() -> list[torch.Tensor]:
        inputs = [one.clone().requires_grad_() for one in given[:3]]
        output = call(*inputs)
        return [output, *torch.autograd.grad(output.sum(), inputs)]

    before = outcome()
    if not attention.activate():
        pytest.skip("this processor or torch keeps its own attention")
    try:
        assert all(map(torch.equal, outcome(), before))
    finally:
        attention.deactivate()


def test_a_forward_pass_of_torchs_own_has_a_backward_pass_of_its_own():
    query, key, value, gradient = tensors(2, 100, 100, 40)
    expected = results([query, key, value, gradient], torch.bfloat16)
    inputs = [one.clone().requires_grad_() for one in (query, key, value)]
    output = scaled_dot_product_attention(*inputs)
    if not attention.activate():
        pytest.skip("this processor or torch keeps its own attention")
    try:
        found = torch.autograd.grad(output, inputs, gradient)
    finally:
        attention.deactivate()
    assert all(map(torch.equal, found, expected[1:]))
    # and nothing is left of it
    assert all(map(torch.equal, results([query, key, value, gradient], torch.bfloat16), expected))


def test_processors_with_amx_keep_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert attention.activate() is False


def test_a_torch_that_cannot_give_its_kernel_keeps_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delattr(torch.library, "get_kernel")
    assert attention.activate() is False
