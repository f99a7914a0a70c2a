"""What falls off while an image is captioned: its embedding, and the encoder's scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.captioning.captioner import SentenceSettings
from lora_trainer.captioning.captioners import blip, clip
from lora_trainer.captioning.encoder import ImageEncoder, rows, unrelated_images, unrelated_spread
from lora_trainer.dataset.embeddings import spread
from tests.captioning.tiny_captioners import tiny_blip, tiny_clip, words_file

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "white")]


def tiny_clip_captioner():
    own = clip.ClipSettings(vocabulary=words_file(["a fox", "a castle"]), threshold=0.0, top_k=1)
    return clip.load(tiny_clip(), own, device=CPU, dtype=torch.float32, listener=None)


def tiny_blip_captioner():
    return blip.load(
        tiny_blip(),
        SentenceSettings(max_tokens=8),
        device=CPU,
        dtype=torch.float32,
        listener=None,
    )


@pytest.fixture(params=[tiny_clip_captioner, tiny_blip_captioner])
def captioner(request):
    return request.param()


def test_each_caption_brings_the_embedding_of_its_picture(captioner):
    seen = [caption.embedding for caption in captioner.caption(PICTURES)]
    assert all(
        row.dtype == np.float16 and np.linalg.norm(row.astype(float)) == pytest.approx(1, abs=2e-3)
        for row in seen
    )
    assert spread(np.stack(seen)) > 0
    alone = [captioner.caption([picture])[0].embedding for picture in PICTURES]
    np.testing.assert_allclose(np.stack(alone), np.stack(seen), atol=2e-3)
    np.testing.assert_allclose(np.stack(captioner.embed(PICTURES)), np.stack(seen), atol=2e-3)


def test_no_picture_is_encoded_twice_for_it(captioner):
    passes = []
    captioner._model.vision_model.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output.pooler_output))
    )
    captioner.caption(PICTURES)
    assert passes == [3]


def test_clips_embedding_is_clips_own():
    from transformers import CLIPModel, CLIPProcessor

    model, processor = (
        CLIPModel.from_pretrained(tiny_clip()),
        CLIPProcessor.from_pretrained(tiny_clip()),
    )
    with torch.no_grad():
        expected = model(
            **processor(text=["a fox"], images=PICTURES, return_tensors="pt", padding=True)
        ).image_embeds
    np.testing.assert_allclose(
        np.stack([caption.embedding for caption in tiny_clip_captioner().caption(PICTURES)]),
        expected.numpy(),
        atol=1e-3,
    )


def test_blip_captions_as_it_did_without_being_looked_at():
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model, processor = (
        BlipForConditionalGeneration.from_pretrained(tiny_blip()).eval(),
        BlipProcessor.from_pretrained(tiny_blip()),
    )
    pixels = processor(images=PICTURES, return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = model.generate(
            pixel_values=pixels, num_beams=blip.BEAMS, max_new_tokens=8, no_repeat_ngram_size=3
        )
    expected = [
        blip.clean(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)
    ]
    assert [caption.text for caption in tiny_blip_captioner().caption(PICTURES)] == expected


def test_what_overflowed_in_sixteen_bits_is_no_embedding():
    first, second, third = rows(
        torch.tensor([[3.0, 4.0], [float("inf"), 1.0], [float("nan"), 1.0]])
    )
    assert (
        first.tolist() == pytest.approx([0.6, 0.8], abs=1e-3) and second is None and third is None
    )


def test_the_scale_is_how_far_apart_unrelated_drawings_are(captioner):
    assert isinstance(captioner, ImageEncoder)
    expected = spread(np.stack(captioner.embed(unrelated_images())))
    assert unrelated_spread(captioner) == pytest.approx(expected, abs=1e-3) and expected > 0


def test_the_unrelated_drawings_are_the_same_each_time_and_differ_from_one_another():
    pictures = unrelated_images()
    assert [picture.tobytes() for picture in pictures] == [
        picture.tobytes() for picture in unrelated_images()
    ]
    assert len(pictures) == 8 and {picture.size for picture in pictures} == {(224, 224)}
    small = [np.asarray(picture.resize((8, 8)), float).ravel() for picture in pictures]
    assert (
        min(
            np.abs(one - other).mean()
            for number, one in enumerate(small)
            for other in small[:number]
        )
        > 15
    )


def test_an_encoder_that_sees_nothing_has_no_scale():
    class Blind:
        encoder = "Blind"

        def embed(self, images):
            return [None]

    assert unrelated_spread(Blind()) == 0.0
