"""Z-Image Turbo with its training adapter: in the base's weights while it is trained, in no picture
and in no file.
"""

from __future__ import annotations

import json
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer import families
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import LoraFileError
from lora_trainer.lora.describe import describe
from lora_trainer.lora.training_adapter import find_adapter, open_adapter
from lora_trainer.runs import events
from lora_trainer.settings import training
from lora_trainer.settings.training import LoraSettings, SampleSettings
from lora_trainer.training.preview import sample_latents
from lora_trainer.worker import job
from tests.families import tiny_flux
from tests.made import begin, losses
from tests.newer import tiny_anima
from tests.newer import tiny_z_image as tiny

Z_IMAGE = families.get("zimage")
KIND = Z_IMAGE.distilled.adapter
RANK = 2


def layers():
    """All linear layers of the main blocks, as the published adapter has them."""
    model = tiny.models_of()["transformer"]
    return {
        path: layer
        for path, layer in model.named_modules()
        if path.startswith("layers.") and isinstance(layer, torch.nn.Linear)
    }


def write_adapter(path, seed=0, dtype=torch.float32):
    """One in the published one's layout: diffusers' paths, PEFT's ends, no alpha."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in layers().items():
        for end, shape in (
            ("lora_A", (RANK, layer.in_features)),
            ("lora_B", (layer.out_features, RANK)),
        ):
            values = torch.randn(shape, generator=generator, dtype=torch.float32) * 0.15
            tensors[f"diffusion_model.{name}.{end}.weight"] = values.to(dtype)
    save_file(tensors, path)
    return path


def merged(path):
    """The transformer's weights with the adapter in them, calculated by hand."""
    state = {
        name: one.clone() for name, one in tiny.models_of()["transformer"].state_dict().items()
    }
    file = load_file(path)
    for name in layers():
        down, up = (file[f"diffusion_model.{name}.{end}.weight"] for end in ("lora_A", "lora_B"))
        state[f"{name}.weight"] += up.float() @ down.float()
    return state


@pytest.fixture
def turbo(tmp_path):
    """The checkpoint and the folder for LoRAs of a WebUI."""
    return tiny.write(tmp_path / "models", "z_image_turbo_bf16.safetensors")


@pytest.fixture
def adapter_file(tmp_path, turbo):
    return write_adapter(tmp_path / "models" / "Lora" / "sub" / KIND.file)


def run(tmp_path, base, name="ink", **changes):
    folder = begin(
        tmp_path, name, base_model=str(base), **{"device": "cpu", "max_train_steps": 2, **changes}
    )
    return folder, job.run(folder.path)


def warnings(folder):
    return [one for one in folder.read_events() if isinstance(one, events.Warned)]


def opened(turbo, path):
    checkpoint = open_checkpoint(turbo)
    return checkpoint, TrainingAdapter.of(open_adapter(path), checkpoint.outline())


# --- in the weights, and out of the pictures ------------------------------------------------------


def test_its_difference_is_in_the_weights_that_are_loaded(turbo, adapter_file):
    checkpoint, adapter = opened(turbo, adapter_file)
    unet = checkpoint.load_unet(torch.float32, added=adapter.delta)
    expected, plain = merged(adapter_file), tiny.models_of()["transformer"].state_dict()
    for name, weight in unet.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    changed = [name for name in expected if not torch.equal(expected[name], plain[name])]
    # seven layers and the modulation in each of two blocks
    assert len(changed) == 2 * 8


@pytest.mark.parametrize(
    ("kept", "dtype", "tolerance"),
    [("same", torch.float32, 2e-5), ("int8", torch.float32, 0.05), ("same", torch.bfloat16, 0.1)],
)
def test_pictures_are_those_of_the_base_as_it_is_with_the_same_lora(
    turbo, adapter_file, kept, dtype, tolerance
):
    checkpoint, adapter = opened(turbo, adapter_file)
    settings = SampleSettings(sample_steps=2, sample_guidance=1.0, sample_seed=3)
    found = []
    for added in (None, adapter.delta):
        parts = checkpoint.load(torch.float32)
        parts.unet = checkpoint.load_unet(dtype, kept=kept, swapped=0, added=added)
        adapters = add_adapters(parts, LoraSettings(lora_rank=2), 0)
        for _, parameter in adapters.parameters():
            torch.nn.init.constant_(parameter, 0.02)
        with torch.no_grad():
            prompt = Z_IMAGE.encode_captions(parts, ["a fox"], clip_skip=1, max_token_length=75)
        if added is not None:
            found.append(sample_latents(parts, prompt, prompt, settings, (64, 64)))
            with adapter.taken_out(parts.unet):
                found.append(sample_latents(parts, prompt, prompt, settings, (64, 64)))
            found.append(sample_latents(parts, prompt, prompt, settings, (64, 64)))
        else:
            found.append(sample_latents(parts, prompt, prompt, settings, (64, 64)))
    plain, with_adapter, without, again = found
    distance = (with_adapter - plain).norm() / plain.norm()
    assert distance > 0.15 and torch.equal(with_adapter, again)
    assert (without - plain).norm() / plain.norm() < tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_precision": "int8", "mixed_precision": "bf16"},
        {"base_precision": "fp8", "gradient_checkpointing": True},
    ],
    ids=["plain", "int8", "fp8"],
)
def test_a_step_is_that_of_the_merged_base_and_the_preview_that_of_turbo(
    tmp_path, turbo, adapter_file, changes
):
    models = tmp_path / "merged" / "models"
    path = tiny.write(models, "z_image_merged.safetensors")
    state = tiny.native(merged(adapter_file))
    tiny_anima.save({f"model.diffusion_model.{name}": one for name, one in state.items()}, path)
    common = {"lora_dir": str(tmp_path / "Lora"), "learning_rate": 1e-3, **changes}
    (tmp_path / "Lora").mkdir()
    ours, code = run(tmp_path, turbo, "ours", **common)
    by_hand, other = run(tmp_path, path, "by_hand", **common)
    assert (code, other) == (job.FINISHED, job.FINISHED)
    assert losses(ours) == pytest.approx(losses(by_hand), rel=1e-5)
    first, second = (
        load_file(folder.path / f"{folder.path.name}.safetensors") for folder in (ours, by_hand)
    )
    # the file is what was learned: it holds nothing of the adapter
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-5)
    samples = training.read(ours.config).samples
    assert (samples.sample_steps, samples.sample_guidance) == (8, 1.0)


def test_the_previews_of_a_run_are_those_of_turbo(tmp_path, turbo, adapter_file):
    settings = {
        "sample_prompts": ["a fox"],
        "sample_strengths": [0.0],
        "sample_steps": 2,
        "mixed_precision": "no",
        "max_train_steps": 1,
    }

    def picture(name, **changes):
        folder, code = run(tmp_path, turbo, name, **settings, **changes)
        assert code == job.FINISHED
        (file,) = folder.previews.glob("*.png")
        return np.asarray(Image.open(file), dtype=float)

    plain, with_adapter = picture("plain", training_adapter="off"), picture("adapted")
    assert np.abs(with_adapter - plain).max() <= 2
    assert np.ptp(plain) > 50


# --- where it comes from --------------------------------------------------------------------------


def test_it_is_found_by_its_name_the_last_version_first(tmp_path, turbo):
    place = tmp_path / "models" / "Lora"
    assert find_adapter(turbo, Z_IMAGE, KIND) is None
    write_adapter(place / "portrait.safetensors")
    assert find_adapter(turbo, Z_IMAGE, KIND) is None
    for name in ("zimage_turbo_training_adapter_v1", "Z-Image-Turbo-Training-Adapter-v3"):
        write_adapter(place / f"{name}.safetensors")
    assert find_adapter(turbo, Z_IMAGE, KIND).name == "zimage_turbo_training_adapter_v1.safetensors"
    write_adapter(place / KIND.file)
    assert find_adapter(turbo, Z_IMAGE, KIND).name == KIND.file
    nearer = write_adapter(turbo.parent / "zimage_turbo_training_adapter_v1.safetensors")
    assert find_adapter(turbo, Z_IMAGE, KIND).header.path == nearer


def test_what_was_trained_with_it_says_so(tmp_path, turbo, adapter_file):
    (tmp_path / "Lora").mkdir()
    folder, code = run(tmp_path, turbo, lora_dir=str(tmp_path / "Lora"), author="me")
    assert code == job.FINISHED and warnings(folder) == []
    sidecar = json.loads((tmp_path / "Lora" / "ink.json").read_text(encoding="utf-8"))
    assert sidecar["notes"] == "8 steps, CFG scale 1\nAuthor: me"
    assert training.read(folder.config).checkpoint.training_adapter == adapter_file
    (planned,) = [one for one in folder.read_events() if isinstance(one, events.Planned)]
    assert planned.training_adapter == KIND.file
    file = folder.path / "ink.safetensors"
    metadata = read_header(file).metadata
    assert (
        metadata["ss_training_adapter"] == KIND.file
        and len(metadata["ss_training_adapter_hash"]) == 64
    )
    told = describe(file)
    assert f"with the training adapter {KIND.file}" in told.to_text()
    assert told.sampling == "8 steps, CFG scale 1" and told.sampling in told.to_text()


def test_without_it_a_warning_names_the_file(tmp_path, turbo):
    folder, code = run(tmp_path, turbo)
    (warning,) = warnings(folder)
    assert code == job.FINISHED
    assert "z_image_turbo_bf16.safetensors is distilled to few steps" in str(warning.message)
    for words in (KIND.file, "0.34 GB", "ostris/zimage_turbo_training_adapter", "LoRA folder"):
        assert words in str(warning.hint)
    assert training.read(folder.config).checkpoint.training_adapter == "off"


def test_off_is_followed_in_silence(tmp_path, turbo, adapter_file):
    folder, code = run(tmp_path, turbo, training_adapter="off")
    assert (code, warnings(folder)) == (job.FINISHED, [])


def test_named_for_a_base_that_does_not_look_distilled_it_is_used_with_a_warning(
    tmp_path, adapter_file
):
    base = tiny.write(tmp_path / "models", "my_merge.safetensors")
    folder, code = run(tmp_path, base, training_adapter=str(adapter_file))
    (warning,) = warnings(folder)
    assert code == job.FINISHED
    assert "nothing says that my_merge.safetensors is distilled" in str(warning.message)
    assert training.read(folder.config).samples.sample_steps == 8


# --- what is refused ------------------------------------------------------------------------------


def failure(folder):
    """The last one, in words."""
    found = [one for one in folder.read_events() if isinstance(one, events.Failed)]
    return found[-1].message


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, turbo, adapter_file):
    tensors = load_file(adapter_file)

    def refused(changed, message):
        path = tmp_path / "other.safetensors"
        save_file(changed, path)
        with pytest.raises(LoraFileError, match=message):
            opened(turbo, path)

    more = {**tensors, "diffusion_model.layers.9.attention.to_q.lora_A.weight": torch.ones(2, 64)}
    more["diffusion_model.layers.9.attention.to_q.lora_B.weight"] = torch.ones(64, 2)
    refused(more, "1 of the 17 layers of the training adapter .*layers.9.attention.to_q")
    name = "diffusion_model.layers.0.attention.to_q.lora_A.weight"
    refused({**tensors, name: torch.ones(2, 32)}, "to_q is 64 x 32, and in the base model 64 x 64")
    refused({**tensors, name: torch.full((2, 64), torch.nan)}, "to_q are NaN or infinite")
    sd = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    refused(
        {f"{sd}.lora_down.weight": torch.ones(2, 768), f"{sd}.lora_up.weight": torch.ones(320, 2)},
        "is a LoRA for SD1, and the base is Z-Image",
    )
    with pytest.raises(LoraFileError, match="there is no training adapter"):
        open_adapter(tmp_path / "gone.safetensors")


def test_a_download_that_was_cut_off_is_not_passed_over(tmp_path, turbo, adapter_file):
    adapter_file.write_bytes(adapter_file.read_bytes()[:1000])
    folder, code = run(tmp_path, turbo)
    assert code != job.FINISHED and KIND.file in failure(folder)


def test_a_fused_layers_adapter_is_divided_among_the_layers_of_the_model(tmp_path, turbo):
    down, up = torch.randn(2, 64), torch.randn(192, 2)
    path = tmp_path / "fused.safetensors"
    name = "diffusion_model.layers.0.attention.qkv"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, path)
    _, adapter = opened(turbo, path)
    whole = up @ down
    for number, layer in enumerate(("to_q", "to_k", "to_v")):
        found = adapter.delta(f"layers.0.attention.{layer}")
        torch.testing.assert_close(found, whole[64 * number : 64 * (number + 1)])


def test_the_published_adapters_layers_are_those_of_the_model_of_full_size(tmp_path):
    outline = open_checkpoint(tiny.write_full_size(tmp_path)).outline()
    shapes = {}
    for name, layer in outline.unet.named_modules():
        if name.startswith("layers.") and isinstance(layer, torch.nn.Linear):
            shapes[f"diffusion_model.{name}.lora_A.weight"] = (1, layer.in_features)
            shapes[f"diffusion_model.{name}.lora_B.weight"] = (layer.out_features, 1)
    assert len(shapes) == 2 * 30 * 8
    # v1 is of rank 32: 170 MB; v2 of rank 64: 340 MB
    assert 32 * 2 * sum(map(prod, shapes.values())) == pytest.approx(170e6, rel=0.001)
    path = tiny_flux.sparse(tmp_path / "adapter.safetensors", shapes)
    changes = open_adapter(path)
    assert changes.families == ("zimage",) and set(changes.scales.values()) == {1.0}
    adapter = TrainingAdapter.of(changes, outline)
    assert adapter.delta("layers.29.feed_forward.w2").shape == (3840, 10240)


# --- resume ---------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one_and_needs_the_same_adapter(
    tmp_path, turbo, adapter_file
):
    settings = {"save_steps": 2, "max_train_steps": 4}
    whole, _ = run(tmp_path, turbo, "whole", **settings)
    half, _ = run(tmp_path, turbo, "half", **{**settings, "max_train_steps": 2})
    more = training.read(half.config).replace(max_train_steps=4)
    half.config.write_text(training.to_yaml(more), encoding="utf-8")

    kept = adapter_file.read_bytes()
    adapter_file.unlink()
    assert job.run(half.path) != job.FINISHED
    assert "there is no training adapter" in failure(half)
    write_adapter(adapter_file, seed=1)
    assert job.run(half.path) != job.FINISHED
    assert "is not the one that this run was begun with" in failure(half)
    adapter_file.write_bytes(kept)
    half.config.write_text(training.to_yaml(more.replace(training_adapter="off")), encoding="utf-8")
    assert job.run(half.path) != job.FINISHED
    assert "was begun with a training adapter, and none is used" in failure(half)
    half.config.write_text(training.to_yaml(more), encoding="utf-8")
    assert job.run(half.path) == job.FINISHED
    first, second = (
        load_file(folder.path / f"{folder.path.name}.safetensors") for folder in (whole, half)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_run_that_was_begun_without_one_goes_on_without_one(tmp_path, turbo):
    settings = {"save_steps": 2, "max_train_steps": 4}
    whole, _ = run(tmp_path, turbo, "whole", **settings)
    half, _ = run(tmp_path, turbo, "half", **{**settings, "max_train_steps": 2})
    path = write_adapter(tmp_path / "models" / "Lora" / KIND.file)

    def go_on(asked):
        more = training.read(half.config).replace(max_train_steps=4, training_adapter=asked)
        half.config.write_text(training.to_yaml(more), encoding="utf-8")
        return job.run(half.path)

    assert go_on(str(path)) != job.FINISHED
    assert "this run was begun without a training adapter" in failure(half)
    # as a run of a version without this setting
    assert go_on(None) == job.FINISHED
    first, second = (
        load_file(folder.path / f"{folder.path.name}.safetensors") for folder in (whole, half)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
