"""The tricks by which the embedded checkpoint is trained do not change what it computes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.embedded import make_vae, scenes, stages


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return make_vae.to_tensor(
        [
            np.asarray(drawing.image, dtype=np.float32)
            for drawing in itertools.islice(scenes.drawings(8), 4)
        ]
    )


@pytest.fixture(scope="module")
def skeleton() -> make_vae.Skeleton:
    torch.manual_seed(1)
    skeleton = make_vae.Skeleton(make_vae.new_trained_vae()).eval()
    with torch.no_grad():
        for parameter in (
            skeleton.parameters()
        ):  # what a VAE's weights are when trained: none at its first value
            if parameter.requires_grad:
                parameter *= 1 + 0.1 * torch.randn_like(parameter)
    skeleton.settle()
    return skeleton


@torch.no_grad()
def test_the_skeleton_and_the_whole_vae_agree(
    skeleton: make_vae.Skeleton, pictures: torch.Tensor
) -> None:
    whole = make_vae.widen(skeleton.vae).eval()
    latents = whole.encode(pictures).latent_dist.mean
    torch.testing.assert_close(latents, skeleton.encode(pictures)[:, :4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        whole.decode(latents).sample, skeleton.decode(latents), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_folding_moves_and_scales_the_latents_and_keeps_the_pictures(
    skeleton: make_vae.Skeleton, pictures: torch.Tensor
) -> None:
    vae: AutoencoderKL = make_vae.widen(skeleton.vae).eval()
    before = vae.encode(pictures).latent_dist
    shown = vae.decode(before.mean).sample
    offset, spread = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([2.0, 0.5, 1.0, 4.0])
    make_vae.fold(vae, offset, spread)
    after = vae.encode(pictures).latent_dist
    torch.testing.assert_close(
        after.mean,
        (before.mean - offset[:, None, None]) / spread[:, None, None],
        atol=1e-4,
        rtol=1e-4,
    )
    torch.testing.assert_close(after.std, before.std / spread[:, None, None], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(vae.decode(after.mean).sample, shown, atol=1e-4, rtol=1e-4)


def test_a_fresh_vae_already_shows_the_colours(pictures: torch.Tensor) -> None:
    torch.manual_seed(1)
    fresh = make_vae.Skeleton(make_vae.new_trained_vae()).eval()
    fresh.settle()
    assert make_vae.vae_decibels(make_vae.widen(fresh.vae).eval(), pictures) > 12


def test_the_learning_rate_rises_and_then_falls_to_a_hundredth() -> None:
    rates = [stages.one_cycle(step, 1000, 1.0) for step in (0, 49, 100, 550, 1000)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.505, 0.01])


def test_a_stage_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    share = stages.Share(0, 1, tmp_path)
    for step_count in (1, 3):
        make_vae.train_vae(
            tmp_path, make_vae.VaeSettings(step_count=step_count, batch_size=2), share
        )
        assert torch.load(tmp_path / "vae.pt", weights_only=True)["step"] == step_count
