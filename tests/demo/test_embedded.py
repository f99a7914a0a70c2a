"""The embedded checkpoint: an ordinary WebUI file, and one that does what it is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.demo import EMBEDDED, obedience
from tests.embedded import scenes
from tests.embedded.make_vae import to_tensor, vae_decibels


@pytest.fixture(scope="module")
def parts() -> Parts:
    return open_checkpoint(EMBEDDED).load(torch.float32)


def test_it_is_a_small_sd1_checkpoint_of_the_webuis_own_format() -> None:
    opened = open_checkpoint(EMBEDDED)
    assert EMBEDDED.stat().st_size <= 20_000_000
    assert opened.family.id == "sd1"
    assert opened.resolution == 64
    assert opened.schedule.prediction_type == "epsilon"
    assert opened.unet.config["norm_num_groups"] == opened.vae.config["norm_num_groups"] == 32  # type: ignore[union-attr]
    assert not opened.notes


def test_its_vae_shows_the_world_at_30_decibels(parts: Parts) -> None:
    pictures = to_tensor(
        [
            np.asarray(drawing.image, dtype=np.float32)
            for drawing in itertools.islice(scenes.drawings(12345), 16)
        ]
    )
    assert vae_decibels(parts.vae, pictures) >= 29


@torch.no_grad()
def test_its_latents_have_the_variance_the_host_expects(parts: Parts) -> None:
    pictures = to_tensor(
        [
            np.asarray(drawing.image, dtype=np.float32)
            for drawing in itertools.islice(scenes.drawings(54321), 16)
        ]
    )
    latents = parts.vae.encode(pictures).latent_dist.mean * 0.18215
    assert abs(float(latents.mean())) < 0.15
    assert 0.85 < float(latents.std()) < 1.15


def test_it_draws_what_the_prompts_say(parts: Parts) -> None:
    wanted = scenes.random_scenes(12, seed=5)
    images = obedience.sample(
        parts, [scenes.prompt_of(scene) for scene in wanted], seed=5, step_count=15
    )
    shares = scenes.shares_obeyed(images, wanted)
    assert min(shares[name] for name in ("colour", "size", "position", "background")) >= 10 / 12
    assert shares["shape"] >= 9 / 12


def test_pictures_without_their_prompts_do_not_obey(parts: Parts) -> None:
    wanted = scenes.random_scenes(6, seed=5)
    images = obedience.sample(parts, [""] * 6, seed=5, step_count=10)
    assert scenes.shares_obeyed(images, wanted)["all"] <= 1 / 6
