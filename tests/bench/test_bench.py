"""Models of random weights in published architectures, and what a training on one is measured to
be.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from lora_trainer.bench import command, models, run, speed
from lora_trainer.bench.command import bench, to_json, to_text
from lora_trainer.bench.run import timing_of
from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import ConfigError, RunError
from lora_trainer.runs import events
from tests.benchmark.published_models import MODELS, NEWER
from tests.families import tiny_flux
from tests.made import small_checkpoint, worker_here


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """How fast this machine is does not matter here."""
    monkeypatch.setattr(speed, "SIDE", {"cpu": 64})
    monkeypatch.setattr(speed, "SECONDS", 0.0)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model of a few layers as the only published one."""
    shapes = {name: info.shape for name, info in read_header(small_checkpoint()).tensors.items()}
    content = {"title": "Tiny", "resolution": 64, "tensors": {"base_model": shapes}}
    folder = tmp_path / "published"
    folder.mkdir()
    with gzip.open(folder / "tiny.json.gz", "wt", encoding="utf-8") as file:
        json.dump(content, file)
    monkeypatch.setattr(models, "PUBLISHED", folder)
    return models.named("tiny")


OF_THESE_LIBRARIES = [name for name in MODELS if name not in NEWER]


@pytest.mark.parametrize("name", OF_THESE_LIBRARIES)
def test_the_architectures_are_the_published_ones(name):
    stated = MODELS[name].stated()
    model = models.named(name)
    assert (model.title, model.resolution) == (stated["title"], stated["resolution"])
    assert model.tensors == stated["tensors"]


def test_a_published_model_has_its_published_size():
    """In GB: SDXL, and FLUX.1 with CLIP-L, T5-XXL and VAE."""
    assert models.named("sdxl").byte_count == pytest.approx(6.94e9, rel=0.005)
    assert models.named("flux1").byte_count == pytest.approx(33.7e9, rel=0.005)


def test_models_of_different_libraries_are_not_mixed():
    assert models.packages_of(["sd15", "flux1"]) == ""
    assert models.packages_of(["anima"]) == "newer"
    with pytest.raises(ConfigError, match="sd15, anima need different versions"):
        models.packages_of(["sd15", "anima"])


def test_random_weights_keep_activations_at_their_size(tiny, tmp_path):
    [path] = tiny.write(tmp_path / "models").values()
    unet = open_checkpoint(path).load_unet(torch.float32)
    for name, weight in unet.named_parameters():
        if weight.dim() == 1:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
    weight = unet.get_submodule("mid_block.resnets.0.conv1").weight
    assert weight.std() * weight[0].numel() ** 0.5 == pytest.approx(1, abs=0.1)
    # the next time nothing is written
    before = path.stat().st_mtime_ns
    assert tiny.write(tmp_path / "models")["base_model"].stat().st_mtime_ns == before


def test_an_unknown_model_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="bench has no model sd3") as caught:
        models.named("sd3")
    assert "anima, flux1, klein4b, sd15, sd21, sdxl, zimage" in str(caught.value.hint)


def test_a_training_is_measured_by_its_events():
    happened = [
        events.Started(time=102.0),
        events.Phase(phase="checking", time=102.5),
        events.Planned(device="a card", precision="bf16", time=103.0),
        events.Phase(phase="encoding", time=104.0),
        events.Progress(step=1, time=104.5),
        events.Phase(phase="loading", time=107.0),
        events.Phase(phase="training", time=109.0),
        events.Progress(step=1, loss=0.5, time=119.0, memory=70),
        events.Progress(step=2, loss=0.4, time=122.0, memory=80),
        events.Progress(step=3, loss=0.3, time=123.0, memory=80),
        events.Progress(step=4, loss=0.2, time=125.0, memory=80),
        events.Progress(step=5, loss=0.1, time=126.5, memory=75),
        events.Phase(phase="exporting", time=127.0),
    ]
    found = timing_of(happened, started=100.0, host_peak=7)
    assert found.phases == {
        "starting": 2.0,
        "checking": 2.0,
        "encoding": 3.0,
        "loading": 2.0,
        "training": 10.0,
    }
    assert found.first_step == 19.0
    # the second step, three seconds, belongs to the warm-up
    assert (found.fastest_step, found.seconds_per_step, found.slowest_step) == (1.0, 1.5, 2.0)
    assert (found.peak, found.host_peak) == (80, 7)
    assert found.losses == (0.5, 0.4, 0.3, 0.2, 0.1)
    with pytest.raises(RunError, match="2 steps are too few"):
        timing_of(happened[:9], started=100.0)


def test_a_training_is_run_and_measured(tiny, tmp_path):
    changes = {"resolution": 64, "lora_rank": 4, "target_modules": ["to_q"], "device": "cpu"}
    [result] = bench(["tiny"], 4, changes, tmp_path / "made")
    [shown] = json.loads(to_json([result]))
    assert (shown["model"], shown["resolution"], shown["lora_rank"]) == ("tiny", 64, 4)
    assert shown["batch_size"] == 1 and len(shown["losses"]) == 4
    assert list(shown["phases"])[:2] == ["starting", "checking"]
    assert sum(shown["phases"].values()) == pytest.approx(shown["first_step"])
    assert 0 < shown["fastest_step"] <= shown["seconds_per_step"] <= shown["slowest_step"]
    assert shown["peak"] > 50e6 and shown["host_peak"] > 50e6 and shown["flops"] > 1e6
    assert shown["planned_peak"] > 1e6
    rate = shown["flops"] / shown["seconds_per_step"] / shown["matmul_rate"]
    assert shown["share_of_matmul_rate"] == pytest.approx(rate)
    assert "| tiny resolution 64" in to_text([result])


def test_a_model_in_several_files_with_a_tokenizer_is_measured(tmp_path, monkeypatch):
    models_folder = tmp_path / "tiny flux"
    checkpoint = tiny_flux.write(models_folder)
    encoders = sorted((models_folder / "text_encoder").glob("*.safetensors"))
    parts = {"base_model": checkpoint, "vae": models_folder / "VAE" / "ae.safetensors"}
    parts |= {f"text_encoders.{number}": path for number, path in enumerate(encoders)}
    shapes = {
        name: {key: info.shape for key, info in read_header(path).tensors.items()}
        for name, path in parts.items()
    }
    # the letters of the made tokenizer have to be among its tokens
    (width,) = {shape[1] for shape in shapes["text_encoders.1"].values() if shape[0] == 16}
    shapes["text_encoders.1"]["shared.weight"] = (128, width)
    content = {"title": "F", "resolution": 64, "tokenizers": ["t5"], "tensors": shapes}
    (tmp_path / "published").mkdir()
    with gzip.open(tmp_path / "published" / "f.json.gz", "wt", encoding="utf-8") as file:
        json.dump(content, file)
    monkeypatch.setattr(models, "PUBLISHED", tmp_path / "published")
    # what is measured of a worker of its own is in the test above
    monkeypatch.setattr(run, "start_worker", worker_here)
    changes = {"resolution": 64, "device": "cpu"}
    [result] = bench(["f"], 3, changes, tmp_path / "made")
    assert len(result.timing.losses) == 3 and result.flops > 1e6


def start_one_that_fails(folder):
    """A process in the worker's place."""
    failed = events.Failed(message="no room", hint="Make some.", time=time.time())
    folder.events.write_text(events.to_line(failed) + "\n", encoding="utf-8")
    return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])


def test_a_training_that_fails_says_why(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        # counting a step takes longer than this training
        planned = SimpleNamespace(plan=SimpleNamespace(peak=0))
        patched.setattr(command, "plan", lambda asked: planned)
        patched.setattr(run, "start_worker", start_one_that_fails)
        with pytest.raises(RunError, match="the training failed: no room") as raised:
            list(bench(["tiny"], 4, {"device": "cpu"}, tmp_path))
        assert str(raised.value.hint) == "Make some."
    with pytest.raises(ConfigError, match="no layer is called nothing_of_this_name"):
        list(bench(["tiny"], 4, {"target_modules": ["nothing_of_this_name"]}, tmp_path))
