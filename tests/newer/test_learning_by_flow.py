"""Proof of learning by flow matching, on the drawn world's Z-Image (tests/embedded/make_flow.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import obedience
from lora_trainer.demo.report import judge, train_concept
from tests.demo.quick import in_this_process
from tests.embedded import make_flow, scenes
from tests.embedded.make_vae import drawn

STEPS = 50
LEARNING_RATE = 8e-3
"""Fewer and larger steps than the demo's: of a style they teach the same."""
SAMPLER_STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    with in_this_process(SAMPLER_STEPS):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_flow.write_models(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="module")
def parts(checkpoint):
    return open_checkpoint(checkpoint).load(torch.float32)


def test_its_vae_gives_the_images_of_the_embedded_one():
    known = open_checkpoint(make_flow.EMBEDDED).load(torch.float32).vae
    images = drawn(scenes.drawings(3), 2)
    with torch.no_grad():
        given, wanted = make_flow.sixteen_channels()(images).sample, known(images).sample
    assert torch.allclose(given, wanted, rtol=0, atol=1e-3)


def test_it_draws_what_the_prompts_say(parts):
    wanted = scenes.random_scenes(12, seed=5)
    prompts = [scenes.prompt_of(scene) for scene in wanted]
    shares = scenes.shares_obeyed(obedience.sample(parts, prompts, 5, step_count=12), wanted)
    assert shares["all"] >= 0.5
    assert min(shares[name] for name in ("colour", "size", "position", "background")) >= 0.8
    without = obedience.sample(parts, [""] * 6, 5, step_count=12)
    assert scenes.shares_obeyed(without, wanted[:6])["all"] == 0


def test_a_style_shows_more_with_every_strength_and_the_prompt_survives(
    parts, checkpoint, tmp_path
):
    """Not its soft edges: those of this base are as soft."""
    verdict = judge(parts, "ink", train(checkpoint, tmp_path, STEPS), strengths=(0.0, 0.5, 1.0))
    assert verdict.base_unchanged
    grey, grain = (
        [judgement.measures[name] for judgement in verdict.judgements]
        for name in ("saturation", "grain")
    )
    assert grey[0] > 2 * grey[1] > 2 * grey[2]
    assert grain[0] + 1 < grain[1] + 0.5 < grain[2]
    assert min(judgement.survival for judgement in verdict.judgements[1:]) >= 0.6


def train(checkpoint: Path, place: Path, steps: int, **changes: object) -> Path:
    asked = {"base_model": checkpoint, "max_train_steps": steps, "learning_rate": LEARNING_RATE}
    return train_concept(place / "ink", "ink", **asked, **changes)
