"""To add a family is to add one file: one_more/toy.py stands in the folder of families, and nothing
else knows of it.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lora_trainer import families
from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.adapters.export import verify
from lora_trainer.adapters.size import parameter_count
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.families import refusals
from lora_trainer.families.sdxl import SDXL
from lora_trainer.lora.names import base_layers, module_names
from lora_trainer.settings import training
from lora_trainer.webui.settings.checkpoints import read_facts
from lora_trainer.worker import job
from tests.made import begin, checks, losses, measure_after_few_images, tiny_checkpoint

LINEAR = {"lora_unet_query", "lora_unet_value", "lora_unet_wide"}


@pytest.fixture
def toy(monkeypatch):
    folder = Path(__file__).with_name("one_more")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    families.every.cache_clear()
    yield families.get("toy")
    families.every.cache_clear()


@pytest.fixture
def checkpoint(toy, tmp_path):
    from lora_trainer.families.toy import build

    torch.manual_seed(3)
    tensors = {
        f"toy.{model}.{name}": tensor.detach().clone()
        for model in ("denoiser", "text", "vae")
        for name, tensor in build(model).state_dict().items()
    }
    path = tmp_path / "toy.safetensors"
    save_file(tensors, path, metadata={"modelspec.resolution": "64x64"})
    return path


def run(tmp_path, checkpoint, name="ink", **changes):
    (tmp_path / "Lora").mkdir(exist_ok=True)
    folder = begin(
        tmp_path,
        name,
        base_model=str(checkpoint),
        lora_dir=str(tmp_path / "Lora"),
        sample_prompts=["a red disc on black"],
        sample_steps=3,
        **changes,
    )
    assert job.run(folder.path) == job.FINISHED
    return folder


def test_it_is_told_by_its_file_and_the_others_still_by_theirs(toy, checkpoint):
    assert detect_file(checkpoint).family is toy
    assert detect_any(tiny_checkpoint("sdxl")).family is SDXL
    facts = read_facts(checkpoint)
    assert (facts.family, facts.resolution, facts.problem) == (toy, 64, None)


def test_a_training_ends_in_a_verified_lora_and_its_preview(toy, checkpoint, tmp_path, monkeypatch):
    measure_after_few_images(monkeypatch, 2.0)
    folder = run(tmp_path, checkpoint, epochs=4, trigger_word="zrb")
    assert [event.step for event in checks(folder)] == [0, 12]
    assert checks(folder)[0].prompted_change == 0 < checks(folder)[-1].prompted_change
    state = folder.read_state()
    assert (state.status, state.family, state.step) == ("finished", "toy", 12)
    assert len(losses(folder)) == 12
    assert all(torch.isfinite(torch.tensor(losses(folder))))
    parts = open_checkpoint(checkpoint).load(torch.float32)
    delivered = tmp_path / "Lora" / "ink.safetensors"
    report = verify(delivered, module_names(parts))
    assert (report.module_count, report.idle_modules) == (3, 0)
    with safe_open(delivered, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert {name.split(".")[0] for name in names} == LINEAR
    assert metadata["ss_base_model_version"] == "toy_v1"
    assert metadata["modelspec.architecture"] == "toy-flow/lora"
    assert "modelspec.prediction_type" not in metadata
    sidecar = json.loads(delivered.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["sd version"] == "Toy"
    picture = Image.open(next(folder.previews.glob("*.png")))
    assert picture.size == (64, 64) and "Sampler: Euler, " in picture.text["parameters"]


def test_what_the_lora_does_is_what_was_learned(toy, checkpoint, tmp_path):
    run(tmp_path, checkpoint, epochs=3)
    parts = open_checkpoint(checkpoint).load(torch.float32)

    def predicted():
        with torch.no_grad():
            text = toy.encode_captions(parts, ["a", "abc"], clip_skip=1, max_token_length=75)
            noisy = torch.ones(2, 16, 4, 4)
            return toy.predict(parts.unet, noisy, torch.tensor([0.2, 0.9]), text, torch.ones(2, 6))

    before = predicted()
    with applied(parts, [LoraTag(tmp_path / "Lora" / "ink.safetensors", 1.0)]):
        assert not torch.equal(predicted(), before)
    assert torch.equal(predicted(), before)
    found = base_layers(parts).find("unet", "query", flat=True)
    assert found is not None and found.shape == (32, 32)


def test_its_text_encoder_learns_and_a_resumed_run_equals_an_uninterrupted_one(
    toy, checkpoint, tmp_path
):
    changes = {"train_text_encoder": True, "noise_offset": 0.1, "min_snr_gamma": 5.0}
    whole = run(tmp_path, checkpoint, "whole", epochs=2, **changes)
    half = run(tmp_path, checkpoint, "half", epochs=1, **changes)
    more = training.read(half.config).replace(epochs=2, max_train_steps=6)
    half.config.write_text(training.to_yaml(more), encoding="utf-8")
    assert job.run(half.path) == job.FINISHED
    files = [whole.path / "whole.safetensors", half.path / "half.safetensors"]
    tensors = []
    for path in files:
        with safe_open(path, "pt") as file:
            tensors.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert tensors[0].keys() == tensors[1].keys()
    assert {name.split(".")[0] for name in tensors[0]} == {*LINEAR, "lora_te_reader"}
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_the_times_of_training_are_those_that_were_asked_for(toy, checkpoint, tmp_path):
    def times(**asked):
        process = toy.noise_process(open_checkpoint(checkpoint, **asked).schedule)
        return process.draw((1000, 16, 8, 8), torch.Generator().manual_seed(0))

    usual, uniform = times(), times(timestep_distribution="uniform")
    assert torch.equal(usual, times(timestep_distribution="logit_normal"))
    assert usual.std() < uniform.std()
    assert times(timestep_shift=1.0).mean() < usual.mean() < times(timestep_shift=5.0).mean()
    # and a training draws them
    by_default = losses(run(tmp_path, checkpoint, "auto"))
    assert losses(run(tmp_path, checkpoint, "even", timestep_distribution="uniform")) != by_default


def test_a_lora_for_convolutions_is_told_where_there_are_none(toy, tmp_path):
    values = {"train_data_dir": tmp_path, "base_model": tmp_path, "output_dir": tmp_path / "run"}

    def told(family, **changes):
        config = training.from_mapping({**values, **changes})
        return [str(note) for note, _ in refusals.remarks(family, config)]

    sentence = "lora_type is locon, and Toy has no convolutions: a LoRA is trained"
    assert told(toy, lora_type="locon") == [sentence]
    assert told(toy) == told(SDXL, lora_type="locon") == []


def test_the_tab_foretells_the_size_of_its_lora(toy, checkpoint):
    detected = detect_file(checkpoint)
    asked = training.LoraSettings(lora_rank=2)
    # query 32 + 32, value 24 + 32, wide 32 + 64
    assert parameter_count(toy, toy.layer_shapes(checkpoint, detected), asked) == 2 * (64 + 56 + 96)
