"""Captions and images as Stable Diffusion's families encode them."""

import dataclasses

import pytest
import torch

from lora_trainer import families
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.dataset.tokens import COMMA
from lora_trainer.families.base import TextStates
from lora_trainer.families.components import vae as vae_module
from lora_trainer.families.components.clip import END, START, cut_into_pieces
from lora_trainer.families.components.text import join_rows
from lora_trainer.families.components.vae import decode_latents, draw_latents, encode_image
from lora_trainer.planner import accounting
from lora_trainer.tasks import diffusion
from tests.made import small_checkpoint
from tests.planner.test_accounting import config_of
from tests.tiny import encode_captions, small_parts, tiny_parts

WORD = 320


def test_a_short_caption_is_one_piece_and_none_is_an_empty_one():
    assert cut_into_pieces([WORD, COMMA, WORD], 3) == [[WORD, COMMA, WORD]]
    assert cut_into_pieces([], 3) == [[]]


def test_a_long_caption_is_cut_at_75_tokens():
    assert [len(piece) for piece in cut_into_pieces([WORD] * 160, 3)] == [75, 75, 10]
    assert [len(piece) for piece in cut_into_pieces([WORD] * 75, 3)] == [75]


def test_what_is_beyond_the_last_piece_is_left_out():
    assert [len(piece) for piece in cut_into_pieces([WORD] * 160, 1)] == [75]


def test_a_piece_is_rather_cut_after_a_comma_in_its_last_twenty_tokens():
    # as A1111's comma_padding_backtrack of 20 does
    tokens = [WORD] * 60 + [COMMA] + [WORD] * 30
    assert [len(piece) for piece in cut_into_pieces(tokens, 3)] == [61, 30]
    too_far_back = [WORD] * 50 + [COMMA] + [WORD] * 40
    assert [len(piece) for piece in cut_into_pieces(too_far_back, 3)] == [75, 16]


def test_a_comma_right_at_the_cut_begins_the_next_piece():
    tokens = [WORD] * 60 + [COMMA] + [WORD] * 14 + [COMMA] + [WORD] * 3
    assert [len(piece) for piece in cut_into_pieces(tokens, 3)] == [75, 4]


def parts_with_tokenizers(family):
    return tiny_parts(family, tokenizers=families.get(family).tokenizers())


@pytest.mark.parametrize(
    ("family", "width", "pooled"), [("sd1", 32, None), ("sd2", 64, None), ("sdxl", 96, 64)]
)
def test_shapes_of_text_states(family, width, pooled):
    states = encode_captions(
        parts_with_tokenizers(family),
        ["a cat", ", ".join(["a very long caption"] * 30)],
        max_token_length=150,
    )
    assert states.hidden.shape == (2, 154, width)
    assert (None if states.pooled is None else states.pooled.shape[1]) == pooled


def test_clip_skip_2_is_the_last_but_one_layer_with_the_final_norm():
    parts = parts_with_tokenizers("sd1")
    encoder = parts.text_encoders[0]
    ids = torch.tensor(
        [
            [START, *parts.tokenizers[0]("a red cat", add_special_tokens=False).input_ids, END]
            + [END] * 72
        ]
    )
    output = encoder(ids, output_hidden_states=True)
    torch.testing.assert_close(
        encode_captions(parts, ["a red cat"]).hidden, output.last_hidden_state, rtol=1e-4, atol=1e-5
    )
    expected = encoder.text_model.final_layer_norm(output.hidden_states[-2])
    torch.testing.assert_close(
        encode_captions(parts, ["a red cat"], clip_skip=2).hidden, expected, rtol=1e-4, atol=1e-5
    )


def test_sdxl_takes_the_last_but_one_layers_without_norm_and_the_pooled_state_of_the_first_piece():
    parts = parts_with_tokenizers("sdxl")
    words = parts.tokenizers[0]("a red cat", add_special_tokens=False).input_ids
    first = parts.text_encoders[0](
        torch.tensor([[START, *words, END] + [END] * 72]), output_hidden_states=True
    )
    second = parts.text_encoders[1](
        torch.tensor([[START, *words, END] + [0] * 72]), output_hidden_states=True
    )
    states = encode_captions(parts, ["a red cat"], clip_skip=2)
    torch.testing.assert_close(
        states.hidden,
        torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(states.pooled, second.text_embeds, rtol=1e-4, atol=1e-5)


def test_each_piece_of_a_long_caption_is_encoded_by_itself():
    parts = parts_with_tokenizers("sd1")
    long = " ".join(["cat"] * 75) + " dog"
    states = encode_captions(parts, [long], max_token_length=150)
    torch.testing.assert_close(
        states.hidden[:, :77],
        encode_captions(parts, [" ".join(["cat"] * 75)]).hidden,
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(
        states.hidden[:, 77:], encode_captions(parts, ["dog"]).hidden, rtol=1e-4, atol=1e-5
    )


def test_joined_rows_equal_a_batch_encoded_at_once():
    parts = parts_with_tokenizers("sdxl")
    captions = ["a cat", " ".join(["dog"] * 100)]
    together = encode_captions(parts, captions, max_token_length=150)
    rows = [encode_captions(parts, [caption], max_token_length=150) for caption in captions]
    joined = parts.family.join(rows, encode_captions(parts, [""]))
    torch.testing.assert_close(joined.hidden, together.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.pooled, together.pooled, rtol=1e-4, atol=1e-5)


def test_rows_with_a_mask_are_filled_up_and_masked_out():
    rows = [TextStates(torch.ones(1, length, 4), mask=torch.ones(1, length)) for length in (2, 3)]
    joined = join_rows(rows)
    assert joined.hidden.shape == (2, 3, 4) and joined.hidden[0, 2].tolist() == [0, 0, 0, 0]
    assert joined.mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_states_move_and_detach_whole():
    states = TextStates(
        torch.ones(2, 77, 4, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    ).detach()
    assert not states.hidden.requires_grad and not states.pooled.requires_grad
    assert states.row(1).hidden.shape == (1, 77, 4)


def test_latents_are_the_scaled_mean_and_deviation_of_the_vae():
    vae = small_parts().vae
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    moments = encode_image(vae, pixels)
    distribution = vae.encode(pixels).latent_dist
    assert moments.shape == (2, 8, 8, 8)
    torch.testing.assert_close(moments[:, :4], distribution.mean * 0.18215)
    noise = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(
        draw_latents(moments, noise), (distribution.mean + distribution.std * noise) * 0.18215
    )


def test_decoding_undoes_the_scale_and_gives_pixels_between_0_and_1():
    vae = tiny_parts("sdxl").vae
    latents = torch.randn(1, 4, 8, 8)
    pixels = decode_latents(vae, latents)
    torch.testing.assert_close(pixels, (vae.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1))


def test_the_vae_computes_in_its_own_type_whatever_the_unet_does():
    parts = tiny_parts("sdxl")
    latents, pixels = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    decoded, encoded = decode_latents(parts.vae, latents), encode_image(parts.vae, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # bfloat16 would be off by hundredths
        torch.testing.assert_close(
            decode_latents(parts.vae, latents), decoded, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(encode_image(parts.vae, pixels), encoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "device", "trained_in", "computes", "images", "text"),
    [
        ("sd1", "cpu", torch.bfloat16, True, torch.bfloat16, torch.bfloat16),
        ("sd1", "cpu", torch.bfloat16, False, torch.float32, torch.float32),
        ("sd1", "cpu", torch.float32, True, torch.float32, torch.float32),
        ("sdxl", "cpu", torch.bfloat16, True, torch.float32, torch.bfloat16),
        ("sd1", "cuda", torch.bfloat16, True, torch.float32, torch.bfloat16),
        ("sd1", "cuda", torch.float16, True, torch.float32, torch.float16),
        ("flux", "cuda", torch.float16, True, torch.float32, torch.bfloat16),
    ],
)
def test_a_processor_encodes_in_bfloat16_where_it_trains_and_computes_in_it(
    monkeypatch, family, device, trained_in, computes, images, text
):
    monkeypatch.setattr(diffusion, "processor_has_bfloat16", lambda: computes)
    where = torch.device(device), trained_in, families.get(family)
    assert diffusion.image_encoding_dtype(*where) == images
    assert diffusion.text_encoder_dtype(*where) == text


def test_in_bfloat16_latents_differ_by_some_hundredths():
    checkpoint = open_checkpoint(small_checkpoint())
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact, halved = (
        encode_image(checkpoint.load_vae(dtype), pixels)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert halved.dtype == torch.float32 and 0 < (halved - exact).norm() < 0.05 * exact.norm()


def test_tiles_take_large_pictures_nearly_alike_and_small_ones_exactly(monkeypatch):
    monkeypatch.setattr(vae_module, "TILE", 64)
    pixels = torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, tiled = (small_parts().vae for _ in range(2))
    families.get("sd1").tile(tiled)
    small = pixels[:, :, :64, :64]
    assert torch.equal(encode_image(plain, small), encode_image(tiled, small))
    whole, parts = encode_image(plain, pixels), encode_image(tiled, pixels)
    assert whole.shape == parts.shape and not torch.equal(whole, parts)
    assert (whole - parts).norm() < 0.5 * whole.norm()
    drawn = decode_latents(plain, whole[:, :4]), decode_latents(tiled, whole[:, :4])
    assert drawn[0].shape == drawn[1].shape and not torch.equal(*drawn)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_run_encodes_in_tiles_where_its_settings_say_so(tiled):
    checkpoint = open_checkpoint(small_checkpoint())
    config = config_of(vae_tiling=tiled)
    prepared = accounting._prepared(checkpoint, config, torch.float32)
    with dataclasses.replace(prepared, checkpoint=checkpoint).vae() as vae:
        assert vae.use_tiling is tiled
