from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_trainer.captioning.captioners import clip
from lora_trainer.captioning.captioners.clip import Group, parse_vocabulary, read_vocabulary
from lora_trainer.errors import CaptionerError
from tests.captioning.tiny_captioners import tiny_clip, words_file

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "white")]
GROUPS = (
    Group(name="subject", words=("a fox", "a castle", "a robot")),
    Group(name="light", words=("soft light", "neon light")),
)


def loaded(groups=GROUPS, threshold=0.0, top_k=1):
    lines = [line for group in groups for line in (f"[{group.name}]", *group.words)]
    own = clip.ClipSettings(vocabulary=words_file(lines), threshold=threshold, top_k=top_k)
    return clip.load(tiny_clip(), own, device=CPU, dtype=torch.float32, listener=None)


def test_words_compete_within_their_group():
    for caption in loaded(top_k=10).caption(PICTURES):
        subjects, lights = caption.tags[:3], caption.tags[3:]
        assert {tag.text for tag in subjects} == set(GROUPS[0].words) and {
            tag.text for tag in lights
        } == set(GROUPS[1].words)
        assert sum(tag.score for tag in subjects) == pytest.approx(1) and sum(
            tag.score for tag in lights
        ) == pytest.approx(1)
        assert [tag.score for tag in subjects] == sorted(
            (tag.score for tag in subjects), reverse=True
        )


def test_the_scores_are_clips_own():
    from transformers import CLIPModel, CLIPProcessor

    model, processor = (
        CLIPModel.from_pretrained(tiny_clip()),
        CLIPProcessor.from_pretrained(tiny_clip()),
    )
    words = [f"an image of {word}" for word in GROUPS[0].words]
    ours = loaded((GROUPS[0],), top_k=3)
    ours._words = torch.nn.functional.normalize(
        model.get_text_features(**processor(text=words, return_tensors="pt", padding=True)), dim=-1
    )
    expected = model(
        **processor(text=words, images=PICTURES, return_tensors="pt", padding=True)
    ).logits_per_image.softmax(dim=-1)
    for caption, scores in zip(ours.caption(PICTURES), expected.tolist(), strict=True):
        assert {tag.text: pytest.approx(tag.score, abs=1e-5) for tag in caption.tags} == dict(
            zip(GROUPS[0].words, scores, strict=True)
        )


def test_each_group_gives_its_best_words_above_the_threshold():
    all_tags = loaded(top_k=3).caption(PICTURES[:1])[0].tags
    best = loaded(top_k=1).caption(PICTURES[:1])[0].tags
    assert best == (all_tags[0], all_tags[3])
    limit = all_tags[1].score
    assert loaded(top_k=3, threshold=limit).caption(PICTURES[:1])[0].tags == tuple(
        tag for tag in all_tags if tag.score >= limit
    )
    assert loaded(threshold=1.0).caption(PICTURES[:1])[0].tags == ()


def test_a_caption_does_not_depend_on_the_batch():
    captioner = loaded()
    texts = [[tag.text for tag in caption.tags] for caption in captioner.caption(PICTURES)]
    assert texts == [
        [tag.text for tag in captioner.caption([picture])[0].tags] for picture in PICTURES
    ]


def test_a_long_vocabulary_is_encoded_in_pieces():
    words = tuple(f"word {number}" for number in range(100))
    assert (
        len(loaded((Group(name="", words=words),), top_k=100).caption(PICTURES[:1])[0].tags) == 100
    )


def test_a_vocabulary_is_words_with_headings():
    text = (
        "# mine\ncastle\n\n[ light ]\nsoft light\nsoft light\n[subject]\na fox\n[light]\nneon"
        " light\n"
    )
    assert parse_vocabulary(text, Path("v.txt")) == (
        Group(name="", words=("castle",)),
        Group(name="light", words=("soft light", "neon light")),
        Group(name="subject", words=("a fox",)),
    )


def test_the_vocabulary_that_comes_with_it_follows_the_structure_of_a_caption():
    groups = read_vocabulary(clip.DEFAULT_VOCABULARY)
    assert [group.name for group in groups] == [
        "subject",
        "action",
        "clothing and features",
        "scene",
        "style",
        "light",
        "colour",
    ]
    assert all(len(group.words) >= 10 for group in groups)
    words = [word for group in groups for word in group.words]
    # a comma would make two tags of one, and a word in two groups would be written twice
    assert len(set(words)) == len(words) and not any("," in word for word in words)


def test_a_vocabulary_that_is_none_gets_a_sentence(tmp_path):
    with pytest.raises(CaptionerError, match="there is no vocabulary"):
        read_vocabulary(tmp_path / "v.txt")
    (tmp_path / "v.txt").write_text("# only a remark\n[light]\n", encoding="utf-8")
    with pytest.raises(CaptionerError, match="has no words in it"):
        read_vocabulary(tmp_path / "v.txt")


def test_a_vocabulary_may_be_in_gbk(tmp_path):
    (tmp_path / "v.txt").write_bytes("[主体]\n狐狸\n城堡\n".encode("gbk"))
    assert read_vocabulary(tmp_path / "v.txt") == (Group(name="主体", words=("狐狸", "城堡")),)
