from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.captioning.captioners import wd
from lora_trainer.errors import CaptionerError
from tests.captioning.tiny_captioners import onnx_model, tiny_tagger

pytest.importorskip("onnxruntime")


def loaded(folder=None, **changes):
    return wd.load(
        folder or tiny_tagger(),
        wd.WdSettings(**changes),
        device=torch.device("cpu"),
        dtype=torch.float32,
        listener=None,
    )


def tags_of(captioner, colour, size=(16, 16)):
    return [tag.text for tag in captioner.caption([Image.new("RGB", size, colour)])[0].tags]


def test_characters_come_first_then_the_surest_and_ratings_never():
    # red = 255: sigmoid(20 - 18) = 0.88 for the hero, 1 for red, 0.95 always, sigmoid(8 - 7) = 0.73
    # for the face
    assert tags_of(loaded(), (255, 0, 0)) == ["some hero (series)", "red theme", "always", "^_^"]
    assert tags_of(loaded(), (0, 0, 255)) == ["blue theme", "always"]


def test_scores_are_the_models_probabilities():
    (caption,) = loaded().caption([Image.new("RGB", (8, 8), (255, 0, 0))])
    scores = {tag.text: tag.score for tag in caption.tags}
    assert scores["^_^"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)
    assert scores["some hero (series)"] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "tags"),
    [
        ({"threshold": 0.75}, ["some hero (series)", "red theme", "always"]),
        ({"character_threshold": 0.9}, ["red theme", "always", "^_^"]),
        ({"top_k": 2}, ["some hero (series)", "red theme"]),
    ],
)
def test_the_two_thresholds_and_the_limit(changes, tags):
    assert tags_of(loaded(**changes), (255, 0, 0)) == tags


def test_a_batch_is_captioned_as_its_images_are():
    pictures = [
        Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    captioner = loaded()
    assert captioner.caption(pictures) == [captioner.caption([picture])[0] for picture in pictures]


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_made_for_a_fixed_number_of_images_is_given_so_many(tmp_path, size):
    (tmp_path / "selected_tags.csv").write_text(
        "tag_id,name,category\n0,bright_sky,0\n", encoding="utf-8"
    )
    (tmp_path / "model.onnx").write_bytes(onnx_model(8, [0.01, 0.01, 0.01], [-3.0], batch=size))
    pictures = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 255, 128)]
    scores = [
        caption.tags[0].score for caption in loaded(tmp_path, threshold=0.0).caption(pictures)
    ]
    assert scores == [
        pytest.approx(1 / (1 + math.exp(3 - 0.03 * level)), abs=1e-5) for level in (0, 255, 128)
    ]


def test_the_picture_is_prepared_as_the_models_were_trained():
    image = Image.new("RGB", (4, 2), (10, 20, 30))
    prepared = wd.prepare(image, 4)
    assert prepared.shape == (4, 4, 3) and prepared.dtype == np.float32
    assert (
        prepared[0].tolist() == [[255.0, 255.0, 255.0]] * 4
        and prepared[3].tolist() == [[255.0, 255.0, 255.0]] * 4
    )
    assert prepared[1].tolist() == [[30.0, 20.0, 10.0]] * 4
    assert wd.prepare(Image.new("RGB", (900, 300), "red"), 448).shape == (448, 448, 3)


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("long_hair", "long hair"),
        ("^_^", "^_^"),
        (">_<", ">_<"),
        ("||_||", "||_||"),
        ("saber_(fate)", "saber (fate)"),
    ],
)
def test_underscores_become_spaces_but_not_in_faces(tag, shown):
    assert wd.shown(tag) == shown


def test_tables_and_models_that_do_not_belong_together_get_a_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes((tiny_tagger() / "model.onnx").read_bytes())
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category\n0,a_b,0\n", encoding="utf-8")
    with pytest.raises(CaptionerError, match=r"knows 8 tags, but selected_tags\.csv lists 1"):
        loaded(tmp_path)
    (tmp_path / "selected_tags.csv").write_text("something\nelse\n", encoding="utf-8")
    with pytest.raises(CaptionerError, match="not a WD tagger's table"):
        loaded(tmp_path)


def test_a_damaged_model_gets_a_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"cut off")
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category\n0,a_b,0\n", encoding="utf-8")
    with pytest.raises(CaptionerError, match="cannot be loaded as a WD tagger"):
        loaded(tmp_path)


def test_a_table_of_tags_with_an_endless_cell_is_no_table_of_tags(tmp_path):
    (tmp_path / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1," + "x" * 200_000 + ",0,5\n", encoding="utf-8"
    )
    with pytest.raises(CaptionerError, match="is not a WD tagger's table of tags"):
        wd.read_tags(tmp_path / "selected_tags.csv")
