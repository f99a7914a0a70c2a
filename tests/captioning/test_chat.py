from __future__ import annotations

import pytest
import torch
from PIL import Image

from lora_trainer.captioning.captioners import chat
from lora_trainer.errors import CaptionerError
from tests.captioning.tiny_captioners import sharded, tiny_blip, tiny_llava, tiny_qwen, tiny_smolvlm

CPU = torch.device("cpu")
PICTURES = [
    Image.new("RGB", size, colour)
    for size, colour in (((80, 60), "red"), ((60, 120), "green"), ((300, 200), "white"))
]


def loaded(folder, dtype=torch.float32, **changes):
    own = chat.ChatSettings(**{"instruction": "Describe it.", "max_tokens": 6, **changes})
    return chat.load(folder, own, device=CPU, dtype=dtype, listener=None)


@pytest.mark.parametrize("folder", [tiny_qwen, tiny_llava, tiny_smolvlm])
def test_a_caption_does_not_depend_on_the_batch(folder):
    captioner = loaded(folder())
    together = captioner.caption(PICTURES)
    assert together == [captioner.caption([picture])[0] for picture in PICTURES]
    assert len({caption.text for caption in together}) > 1


def test_weights_in_several_files_are_the_same_model(tmp_path):
    assert loaded(sharded(tiny_qwen(), tmp_path / "parts")).caption(PICTURES) == loaded(
        tiny_qwen()
    ).caption(PICTURES)


def test_the_instruction_is_what_is_asked():
    assert loaded(tiny_qwen()).caption(PICTURES) != loaded(
        tiny_qwen(), instruction="Name its colours."
    ).caption(PICTURES)


def test_it_runs_in_sixteen_bits():
    assert len(loaded(tiny_qwen(), dtype=torch.bfloat16).caption(PICTURES)) == 3


def test_a_model_that_cannot_be_asked_gets_a_sentence():
    with pytest.raises(CaptionerError, match="no chat template"):
        loaded(tiny_blip())


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((768, 768), (768, 768)),
        ((1536, 1536), (768, 768)),
        ((4000, 1000), (1536, 384)),
        ((20, 300), (56, 300)),
    ],
)
def test_a_picture_is_fitted_into_the_models_memory(size, fitted):
    assert chat.fitted(Image.new("RGB", size)).size == fitted


@pytest.mark.parametrize(
    ("answer", "complete", "caption"),
    [
        ("The image shows a red fox standing in snow.", True, "A red fox standing in snow."),
        ("This image depicts two people\n\n**walking**.", True, "Two people walking."),
        ("Here is a description of the image: A castle at night.", True, "A castle at night."),
        ("A fox in the snow. Its fur is red and", False, "A fox in the snow."),
        ("a fox, snow, mountains in the", False, "a fox, snow, mountains in"),
        ('"A quiet street."', True, "A quiet street."),
        ("An image frame is on the wall.", True, "An image frame is on the wall."),
    ],
)
def test_the_answer_becomes_a_caption(answer, complete, caption):
    assert chat.clean(answer, complete=complete) == caption
