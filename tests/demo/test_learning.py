"""Proof of learning, on the embedded checkpoint: a LoRA shows its concept and keeps the prompt, and
the measure can fail.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import EMBEDDED, report, world
from lora_trainer.demo.report import ConceptVerdict, judge, judge_two, train_concept
from tests.demo.quick import in_this_process

pytestmark = pytest.mark.xdist_group("learning")  # one process: the LoRA is trained once

STYLE = {"max_train_steps": 40, "learning_rate": 6e-3}
"""Fewer and larger steps than the demo's: enough for a LoRA to pass, and too many for one that
learned from wrong captions.
"""
CHARACTER = {"max_train_steps": 75}
SAMPLER_STEPS = 6
"""Fewer than the demo's 20; shapes, colours and grain are there."""


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    with in_this_process(SAMPLER_STEPS):
        yield


@pytest.fixture(scope="module")
def parts():
    return open_checkpoint(EMBEDDED).load(torch.float32)


@pytest.fixture(scope="module")
def ink(tmp_path_factory) -> Path:
    return train_concept(tmp_path_factory.mktemp("learning") / "ink", "ink", **STYLE)


def test_a_style_shows_more_with_every_strength_and_the_prompt_survives(parts, ink):
    verdict = judge(parts, "ink", ink, strengths=(0.0, 0.5, 1.0))
    assert verdict.failures == [], report.table(verdict)
    assert verdict.base_unchanged
    greyness = [judgement.measures["saturation"] for judgement in verdict.judgements]
    assert greyness[-1] < greyness[0] / 2
    assert verdict.judgements[-1].measures["grain"] > verdict.judgements[0].measures["grain"] + 2


def test_a_character_is_recognised_and_two_loras_show_in_one_prompt(
    parts, ink, tmp_path, monkeypatch
):
    zorbl = train_concept(tmp_path / "zorbl", "zorbl", **CHARACTER)
    verdict = judge(parts, "zorbl", zorbl, strengths=(1.0,))
    assert verdict.failures == [], report.table(verdict)
    monkeypatch.setattr(report, "SCENES", 5)
    pair = judge_two(parts, zorbl, ink)
    assert pair.failures == [], report.pair_table(pair)
    assert pair.likeness["both"] > pair.likeness["style"] + 0.2
    assert pair.grain["both"] > pair.grain["character"] + 0.5


def test_nothing_learned_does_not_pass(parts, tmp_path):
    lora = train_concept(tmp_path / "idle", "ink", learning_rate=1e-7, max_train_steps=5)
    verdict = judge(parts, "ink", lora, strengths=(1.0,))
    assert any("of the concept shows" in failure for failure in verdict.failures)
    assert abs(verdict.judgements[-1].presence) < 0.01


def scrambled(image: Image.Image, seed: int) -> Image.Image:
    """It keeps its colours and loses its content."""
    pixels = np.asarray(image).reshape(-1, 3).copy()
    np.random.default_rng(seed).shuffle(pixels)
    return Image.fromarray(pixels.reshape(world.SIDE, world.SIDE, 3))


def test_images_with_the_concepts_colours_and_nothing_else_do_not_pass(parts, ink, monkeypatch):
    drawn = [drawing.image for drawing in world.draw_concept("ink", report.SCENES, 3)]
    real = report.pictures

    def pictures(parts, prompts, loras):
        if not loras:
            return real(parts, prompts, loras)
        return [scrambled(image, number) for number, image in enumerate(drawn)]

    monkeypatch.setattr(report, "pictures", pictures)
    verdict = judge(parts, "ink", ink, strengths=(1.0,))
    assert any("of the prompts' words survive" in failure for failure in verdict.failures)


def deal_captions_anew(folder: Path) -> None:
    """Every image gets the caption of another, of another shape, size and place."""
    lines = (folder / "metadata.csv").read_text(encoding="utf-8-sig").splitlines()
    names, captions = zip(*(line.split(",", 1) for line in lines[1:]), strict=True)
    dealt = list(captions)
    random.Random(3).shuffle(dealt)
    (folder / "metadata.csv").write_text(
        "\n".join([lines[0], *map(",".join, zip(names, dealt, strict=True))]), encoding="utf-8"
    )


def test_wrong_captions_do_not_pass(parts, tmp_path):
    lora = train_concept(tmp_path / "spoiled", "ink", spoil=deal_captions_anew, **STYLE)
    verdict = judge(parts, "ink", lora, strengths=(1.0,))
    assert verdict.failures, report.table(verdict)


def test_a_verdict_names_each_failing():
    def of(presences, survival=1.0, unchanged=True):
        judgements = tuple(
            report.Judgement(index / 2, {}, presence, survival)
            for index, presence in enumerate(presences)
        )
        return ConceptVerdict("ink", judgements, unchanged).failures

    assert of([0.0, 0.4, 0.9]) == []
    assert of([0.0, 0.1, 0.2]) == ["only 0.20 of the concept shows at strength 1"]
    assert of([0.0, 0.9, 0.6]) == ["the effect does not grow with the strength"]
    assert of([0.0, 0.4, 0.9], survival=0.5) == [
        "only 50% of the prompts' words survive at strength 1"
    ]
    assert of([0.0, 0.4, 0.9], unchanged=False) == ["strength 0 differs from the base"]
