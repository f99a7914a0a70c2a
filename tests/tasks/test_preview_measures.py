"""Previews measured in the job as it runs: by pixels, and by a tiny CLIP on this machine."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lora_trainer.captioning import image_text
from lora_trainer.errors import CaptionerError
from lora_trainer.runs import events
from lora_trainer.tasks.preview_measures import described, variety
from lora_trainer.training import preview
from lora_trainer.worker import job
from tests.captioning.tiny_captioners import tiny_clip
from tests.made import begin

ASKED = {
    "max_train_steps": 2,
    "trigger_word": "zrb",
    "sample_prompts": ["a red disc on green, zrb", "a blue disc on purple, zrb"],
    "sample_strengths": [0, 0.5, 1],
    "sample_steps": 1,
}


def measured(folder):
    assert job.run(folder.path) == job.FINISHED
    return [one for one in folder.read_events() if isinstance(one, events.PicturesMeasured)]


def test_without_an_encoder_pixels_are_compared(tmp_path, monkeypatch):
    real = preview.to_image
    pictures = []

    def to_image(pixels):
        # of every other picture, with the LoRA or without, the LoRA has made a copy
        pictures.append(real(pixels))
        return Image.open(tmp_path / "images" / "img02.png") if len(pictures) == 3 else pictures[-1]

    monkeypatch.setattr(preview, "to_image", to_image)
    (found,) = measured(begin(tmp_path, sample_encoder="no", **ASKED))
    assert (found.step, found.encoder, found.copied) == (2, "", ["img02.png"])
    assert len(found.nearest) == 5 and found.nearest["img02.png"] == pytest.approx(1, abs=1e-3)
    assert (found.likeness, found.obedience, found.variety) == (None, None, None)
    assert found.by_strength == {} and found.seconds > 0


def test_an_encoder_on_this_machine_measures_likeness_obedience_and_variety(tmp_path, monkeypatch):
    monkeypatch.setattr(image_text, "find", lambda listener, download: tiny_clip())
    folder = begin(tmp_path, **ASKED)
    (found,) = measured(folder)
    assert found.encoder == "CLIP" and set(found.by_strength) == {"0", "0.5", "1"}
    encoder = image_text.load(tiny_clip(), device=torch.device("cpu"), dtype=torch.float32)
    training = encoder.images(
        [Image.open(path) for path in sorted((tmp_path / "images").glob("*.png"))]
    )
    centroid = torch.nn.functional.normalize(training.mean(0), dim=0)
    texts = encoder.texts(["a red disc on green", "a blue disc on purple"])
    shown = {
        strength: encoder.images(
            [Image.open(path) for path in sorted(folder.previews.glob(f"*strength{strength}.png"))]
        )
        for strength in ("0.00", "1.00")
    }
    likeness = {strength: float((rows @ centroid).mean()) for strength, rows in shown.items()}
    assert found.by_strength["1"]["likeness"] == pytest.approx(likeness["1.00"], abs=1e-4)
    assert found.likeness == pytest.approx(likeness["1.00"] - likeness["0.00"], abs=1e-4)
    obedience = float((shown["1.00"] * texts).sum(1).mean())
    assert found.obedience == pytest.approx(obedience, abs=1e-4)
    first, second = shown["1.00"]
    assert found.variety == pytest.approx(1 - float(first @ second), abs=1e-4)


def test_an_encoder_that_cannot_be_had_is_a_warning(tmp_path, monkeypatch):
    def find(listener, download):
        assert download
        raise CaptionerError("the model {model} cannot be fetched", model="CLIP", hint="Later.")

    monkeypatch.setattr(image_text, "find", find)
    folder = begin(tmp_path, sample_encoder="download", **ASKED)
    (found,) = measured(folder)
    assert found.encoder == ""
    (warned,) = folder.read_state().warnings
    assert (warned.message, warned.hint) == ("the model CLIP cannot be fetched", "Later.")


def test_an_encoder_that_is_damaged_ends_the_measuring_and_not_the_training(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.setattr(image_text, "find", lambda listener, download: tmp_path / "clip")
    folder = begin(tmp_path, sample_every=1, **ASKED)
    assert measured(folder) == []
    (warned,) = folder.read_state().warnings
    assert warned.message.startswith(
        f"previews are no longer measured: {tmp_path / 'clip'} cannot be loaded as CLIP"
    )


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a fox, ZRB style <lora:fox:0.7>", "a fox, style"),
        ("zrb, a fox", "a fox"),
        ("a fox", "a fox"),
    ],
)
def test_what_a_picture_should_show_is_told_without_the_trigger(prompt, text):
    assert described(prompt, "zrb") == text


def test_variety_is_one_less_the_mean_cosine_of_every_two():
    rows = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    pairs = [float(rows[a] @ rows[b]) for a in range(4) for b in range(a)]
    assert variety(rows) == pytest.approx(1 - sum(pairs) / 6, abs=1e-5)
    assert variety(rows[:1]) is None
