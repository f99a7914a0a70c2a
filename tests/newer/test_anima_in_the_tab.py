"""The tab's plan for an Anima checkpoint is what the worker then does."""

from __future__ import annotations

import pytest

from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.webui.settings.preflight import PlanRequest
from lora_trainer.worker import job
from tests.made import draw_images
from tests.newer import tiny_anima as tiny
from tests.webui.drafts import app as make_app


@pytest.fixture
def app(tmp_path):
    made = make_app(tmp_path)
    made.host.kind = "neo"
    made.datasets.folders["discs"] = draw_images(tmp_path / "discs", 5)
    checkpoint = tiny.write(made.host.models)
    made.host.list(checkpoint)
    made.host.load(checkpoint)
    return made


def request(**settings):
    values = {"max_train_steps": 2, "batch_size": 1, "lora_rank": 2, **settings}
    return PlanRequest(dataset="discs", checkpoint="loaded", name="ink", settings=values)


def test_the_plan_finds_the_parts_and_the_worker_trains_on_them(app):
    made = app.preflight.check(request())
    assert made.ok, [str(problem.message) for problem in made.problems]
    assert made.steps == 2 and made.problems == ()
    config = app.preflight.run_config(request())
    models = app.host.models
    assert config.checkpoint.text_encoders == (
        models / "text_encoder" / "qwen_3_06b_base.safetensors",
    )
    assert config.checkpoint.vae == models / "VAE" / "qwen_image_vae.safetensors"
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    assert job.run(folder.path) == job.FINISHED
    assert folder.read_state().family == "anima"


def test_a_part_that_is_missing_is_said_beside_the_checkpoint(app):
    (app.host.models / "VAE" / "qwen_image_vae.safetensors").unlink()
    made = app.preflight.check(request())
    (problem,) = made.problems
    assert (made.ok, problem.field, problem.severity) == (False, "checkpoint", "error")
    assert "qwen_image_vae.safetensors" in str(problem.message)


def test_settings_of_diffusion_models_are_refused_or_remarked(app):
    made = app.preflight.check(request(train_text_encoder=True, min_snr_gamma=5.0))
    told = [(problem.field, str(problem.message)) for problem in made.problems]
    assert any("are not trained" in message for _, message in told), told
    assert not made.ok
