"""A checkpoint whose text encoders and VAE lie in files of their own: the tab takes those that the
host uses or has, and says which are missing.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.webui.settings.preflight import PlanRequest, _held_training_adapter
from lora_trainer.worker import job
from tests.families import tiny_flux
from tests.made import draw_images
from tests.webui.drafts import app as make_app


@pytest.fixture
def app(tmp_path):
    made = make_app(tmp_path)
    made.host.kind = "neo"
    made.datasets.folders["discs"] = draw_images(tmp_path / "discs", 5)
    shutil.copytree(tiny_flux.tiny_flux().parent.parent, made.host.models, dirs_exist_ok=True)
    checkpoint = made.host.models / "Stable-diffusion" / tiny_flux.tiny_flux().name
    made.host.list(checkpoint)
    made.host.load(checkpoint)
    return made


def asked(**settings):
    values = {"max_train_steps": 1, "batch_size": 1, "lora_rank": 2, "sample_steps": 1, **settings}
    return PlanRequest(dataset="discs", checkpoint="loaded", name="ink", settings=values)


def test_the_hosts_own_files_are_found_and_trained_with(app):
    made = app.preflight.check(asked())
    assert made.ok and made.problems == (), [str(problem.message) for problem in made.problems]
    config = app.preflight.run_config(asked())
    text = app.host.models / "text_encoder"
    assert config.checkpoint.text_encoders == (
        text / "clip_l.safetensors",
        text / "t5xxl_fp16.safetensors",
    )
    assert config.checkpoint.vae == app.host.models / "VAE" / "ae.safetensors"
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    assert job.run(folder.path) == job.FINISHED
    assert folder.read_state().family == "flux"


def test_what_the_host_uses_goes_before_what_it_has(app, tmp_path, monkeypatch):
    used, other = tmp_path / "mine.safetensors", tmp_path / "clip_l.safetensors"
    shutil.copy(app.host.models / "VAE" / "ae.safetensors", used)
    shutil.copy(app.host.models / "text_encoder" / "clip_l.safetensors", other)
    monkeypatch.setattr(app.host, "part_files", lambda: [used, other], raising=False)
    config = app.preflight.run_config(asked()).checkpoint
    assert config.vae == used and other in config.text_encoders


def test_what_is_missing_is_said_beside_the_checkpoint(app):
    (app.host.models / "text_encoder" / "t5xxl_fp16.safetensors").unlink()
    made = app.preflight.check(asked())
    (problem,) = made.problems
    assert (made.ok, problem.field) == (False, "checkpoint")
    assert "T5-XXL (t5xxl_fp16.safetensors, 9.8 GB" in str(problem.message)
    assert str(app.host.models) not in str(problem.message)


def test_a_caption_too_long_for_it_points_to_the_captions(app, tmp_path):
    # max_token_length has no effect on FLUX.1
    (tmp_path / "discs" / "metadata.csv").unlink()
    for number in range(5):
        words = "fox " * (600 if number == 0 else 1)
        (tmp_path / "discs" / f"img{number:02d}.txt").write_text(words, encoding="utf-8")
    (problem,) = app.preflight.check(asked()).problems
    assert (problem.field, "img00.png" in str(problem.message)) == ("captions", True)
    assert "max_token_length" not in str(problem.hint)


def test_settings_that_mean_nothing_for_it_are_said_beside_their_fields(app):
    made = app.preflight.check(asked(train_text_encoder=True, noise_offset=0.1))
    found = {problem.field: problem.severity for problem in made.problems}
    assert found == {"train_text_encoder": "error", "noise_offset": "warning"}


@pytest.fixture
def schnell(app, tmp_path):
    path = tiny_flux.write(tmp_path / "schnell", guided=False)
    path = path.replace(app.host.models / "Stable-diffusion" / "schnell.safetensors")
    app.host.list(path)
    app.host.load(path)
    _held_training_adapter.cache_clear()
    return app


def test_a_distilled_checkpoint_is_tried_and_previewed_in_few_steps(schnell):
    made = schnell.preflight.check(asked(sample_steps=None))
    assert (made.resolved["sample_steps"], made.resolved["sample_guidance"]) == (4, 1.0)
    told = schnell.checkpoints.loaded("en")
    assert (told["steps"], told["cfg"], told["caption_tokens"]) == (4, 1.0, 512)


def test_a_distilled_checkpoints_training_adapter_is_asked_for_before_the_start(schnell):
    made = schnell.preflight.check(asked())
    (problem,) = made.problems
    assert (made.ok, problem.field, problem.severity) == (True, "checkpoint", "warning")
    assert "schnell.safetensors is distilled to few steps" in str(problem.message)
    assert (
        "FLUX.1-schnell-training-adapter/pytorch_lora_weights.safetensors (0.45 GB, ostris/"
        in str(problem.hint)
    )
    assert schnell.preflight.run_config(asked()).checkpoint.training_adapter is None


def test_a_distilled_checkpoints_training_adapter_is_found_among_the_loras(schnell):
    file = schnell.host.paths().lora_dir / "FLUX.1-schnell-training-adapter" / "v2.safetensors"
    file.parent.mkdir(parents=True)
    name = "transformer.single_transformer_blocks.0.proj_mlp"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, 8), f"{name}.lora_B.weight": torch.ones(8, 1)}, file
    )
    made = schnell.preflight.check(asked())
    assert made.problems == ()
    assert ("Training adapter", "v2.safetensors") in [(one.label, one.value) for one in made.facts]
    assert schnell.preflight.run_config(asked()).checkpoint.training_adapter == file
    _held_training_adapter.cache_clear()
    file.write_bytes(file.read_bytes()[:50])
    (problem,) = schnell.preflight.check(asked()).problems
    assert (problem.field, problem.severity) == ("checkpoint", "error")
    assert "v2.safetensors" in str(problem.message)
