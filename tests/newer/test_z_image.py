"""Z-Image, from the files that a host has to a LoRA that the host loads. Predictions are compared
with diffusers' own model and pipeline.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from lora_trainer import families
from lora_trainer.adapters.export import export
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import CheckpointError
from lora_trainer.families.components.qwen3 import SPECIAL, read_vocabulary
from lora_trainer.lora import host_layers
from lora_trainer.planner.accounting import account
from lora_trainer.settings import training
from lora_trainer.training import checksummed
from lora_trainer.training.preview import sample_latents
from lora_trainer.worker import job
from tests.made import begin, losses
from tests.newer import tiny_anima
from tests.newer import tiny_z_image as tiny

CAPTIONS = ["a big zorbl in the center, blue background", "yellow and red", ""]
Z_IMAGE = families.get("zimage")


@pytest.fixture(scope="module")
def parts():
    return open_checkpoint(tiny.written()).load(torch.float32)


def run(tmp_path, name="ink", **changes):
    folder = begin(tmp_path, name, base_model=str(tiny.written()), **{"device": "cpu", **changes})
    assert job.run(folder.path) == job.FINISHED
    return folder


def encode(parts, captions):
    with torch.no_grad():
        return Z_IMAGE.encode_captions(parts, captions, clip_skip=1, max_token_length=75)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_it_is_told_by_its_tensors_and_loaded_as_diffusers_model(tmp_path, prefix):
    path = tmp_path / "some.safetensors"
    tiny_anima.save(tiny.tensors(prefix), path)
    detected = detect_file(path)
    assert (detected.family, detected.resolution, detected.notes) == (Z_IMAGE, 64, ())
    checkpoint = open_checkpoint(path)
    unet = checkpoint.load_unet(torch.float32)
    expected = tiny.models_of()["transformer"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unet.state_dict().items())
    assert checkpoint.notes == []


def test_a_file_under_diffusers_names_is_the_same(tmp_path):
    path = tmp_path / "some.safetensors"
    state = tiny.models_of()["transformer"].state_dict()
    tiny_anima.save(state, path)
    assert detect_file(path).family is Z_IMAGE
    unet = open_checkpoint(path).load_unet(torch.float32)
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())


def test_lumina_2_is_another_model(tmp_path):
    path = tmp_path / "some.safetensors"
    tiny_anima.save(
        {name: one for name, one in tiny.tensors().items() if "pad_token" not in name}, path
    )
    with pytest.raises(CheckpointError):
        detect_file(path)


def test_quantised_weights_are_named(tmp_path):
    path = tmp_path / "some.safetensors"
    tensors = tiny.tensors()
    tiny_anima.save({**tensors, "model.diffusion_model.scaled_fp8": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="quantised"):
        detect_file(path)


@pytest.mark.parametrize(
    ("name", "is_told"),
    [
        ("z_image_turbo_bf16", True),
        ("z-image-de-turbo-distill-patched", False),
        ("z_image_bf16", False),
    ],
)
def test_turbo_is_told_by_its_name(tmp_path, name, is_told):
    path = tmp_path / f"{name}.safetensors"
    tiny_anima.save(tiny.tensors(), path)
    assert detect_file(path).is_distilled is is_told


def test_parts_that_are_missing_are_named(tmp_path):
    path = tiny.write(tmp_path)
    (tmp_path / "text_encoder" / "qwen_3_4b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Qwen3-4B \(qwen_3_4b.safetensors"):
        open_checkpoint(path).require_parts()


def test_the_templates_tokens_are_single_ones_in_a_vocabulary_too(tmp_path):
    tokenizer = tiny_anima.qwen3_tokenizer()
    tokenizer.model.save(str(tmp_path))
    read = read_vocabulary(tmp_path / "vocab.json")
    ids = read.encode(f"{SPECIAL[1]}user\n", add_special_tokens=False).ids
    assert ids[0] == read.token_to_id(SPECIAL[1]) and len(ids) < 10
    assert [read.token_to_id(one) for one in SPECIAL] == sorted(map(read.token_to_id, SPECIAL))


def test_a_tokenizer_without_the_templates_tokens_is_completed_and_said_so(tmp_path):
    path = tiny.write(tmp_path)
    tiny_anima.qwen3_tokenizer().save(str(tmp_path / "text_encoder/qwen3/tokenizer.json"))
    checkpoint = open_checkpoint(path)
    (tokenizer,) = checkpoint.tokenizers()
    assert tokenizer.encode(SPECIAL[1]).ids == [tokenizer.token_to_id(SPECIAL[1])]
    (note,) = checkpoint.notes
    assert "no special tokens of Qwen3, such as <|endoftext|>: they were added" in str(note)


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path):
    path = tiny.write(tmp_path)
    made = tiny.tokenizer()
    made.add_tokens([f"more{number}" for number in range(40)])
    made.save(str(tmp_path / "text_encoder/qwen3/tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"qwen_3_4b\.safetensors knows 330") as caught:
        open_checkpoint(path).tokenizers()
    assert "do not belong together" in str(caught.value)


# --- what it computes -----------------------------------------------------------------------------


def test_text_states_are_those_of_the_pipeline(parts):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.tokenizers[0],
        pad_token="<|endoftext|>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{{ '<|im_start|>assistant\n' }}"
        ),
    )
    pipeline = SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=tiny.models_of()["qwen3"],
        _execution_device=torch.device("cpu"),
    )
    with torch.no_grad():
        expected = ZImagePipeline._encode_prompt(pipeline, list(CAPTIONS))
    ours = encode(parts, CAPTIONS)
    assert ours.mask is not None
    for row, mask, theirs in zip(ours.hidden, ours.mask, expected, strict=True):
        assert int(mask.sum()) == len(theirs)
        assert torch.allclose(row[: len(theirs)], theirs, atol=1e-4)


def test_the_prediction_is_the_negative_of_diffusers_at_the_opposite_time(parts):
    theirs = ZImageTransformer2DModel(**tiny.TRANSFORMER).eval()
    theirs.load_state_dict(tiny.models_of()["transformer"].state_dict())
    noisy = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.2, 0.9])
    text = encode(parts, CAPTIONS[:2])
    rows = [encode(parts, [caption]).hidden[0] for caption in CAPTIONS[:2]]
    with torch.no_grad():
        ours = Z_IMAGE.predict(parts.unet, noisy, times, text, torch.ones(2, 6))
        expected = theirs(
            list(noisy.unsqueeze(2)), (1000 - times * 1000) / 1000, rows, return_dict=False
        )[0]
    assert torch.allclose(ours, -torch.stack(expected).squeeze(2), atol=1e-5)


def test_previews_are_sampled_as_hosts_sample(parts):
    settings = training.SampleSettings(sample_steps=4, sample_guidance=3.0, sample_seed=3)
    prompt, negative = encode(parts, CAPTIONS[:1]), encode(parts, [""])
    ours = sample_latents(parts, prompt, negative, settings, (64, 48))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    latents = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for time in scheduler.timesteps:
            flows = [
                Z_IMAGE.predict(parts.unet, latents, time[None] / 1000, text, torch.ones(1, 6))
                for text in (negative, prompt)
            ]
            guided = flows[0] + 3.0 * (flows[1] - flows[0])
            latents = scheduler.step(guided, time, latents, return_dict=False)[0]
    assert torch.allclose(ours, latents, atol=1e-3)


# --- the LoRA -------------------------------------------------------------------------------------


def test_every_layer_that_learns_has_the_hosts_name_at_full_size():
    with torch.device("meta"):
        model = ZImageTransformer2DModel()
    known, native = host_layers.names("neo", "zimage"), Z_IMAGE.native_layers(model.config)
    learning = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path.endswith(Z_IMAGE.unet_targets)
    }
    assert len(learning) == 238
    for path, layer in learning.items():
        own = native[path]
        place = known["lora_unet_" + own.path.replace(".", "_")]
        rows = layer.out_features if own.rows is None else own.rows.of
        assert (place.layer, place.shape) == (own.path, (rows, layer.in_features))


def test_a_training_halves_the_loss_and_its_file_is_the_adapter(tmp_path):
    folder = run(
        tmp_path,
        max_train_steps=60,
        learning_rate=5e-3,
        lora_rank=8,
        batch_size=4,
        validation_split=0,
    )
    told = losses(folder)
    assert sum(told[-5:]) < 0.5 * sum(told[:5])
    file = load_file(folder.path / "ink.safetensors")
    layers = {name.partition(".")[0] for name in file}
    # qkv, out and three of the MLP in four blocks
    assert len(layers) == 4 * 5 and layers <= set(host_layers.names("neo", "zimage"))

    live = open_checkpoint(tiny.written()).load(torch.float32)
    config = training.read(folder.config)
    adapters = add_adapters(live, config.lora, seed=config.training.seed)
    newest = max(folder.state.glob("*.pt"))
    adapters.load_state_dict(checksummed.read_state(newest)["adapters"])
    exact = tmp_path / "exact.safetensors"
    export(adapters, live, exact, metadata={}, dtype=torch.float32)
    file, tensors = load_file(exact), tiny.tensors()
    prefix = "model.diffusion_model."
    flat = {
        "lora_unet_" + name.removeprefix(prefix).removesuffix(".weight").replace(".", "_"): name
        for name in tensors
    }
    for layer in layers:
        down, up = file[f"{layer}.lora_down.weight"], file[f"{layer}.lora_up.weight"]
        scale = float(file[f"{layer}.alpha"]) / down.shape[0]
        tensors[flat[layer]] = tensors[flat[layer]] + scale * up @ down
    merged_path = tmp_path / "merged.safetensors"
    tiny_anima.save(tensors, merged_path)
    merged = open_checkpoint(merged_path).load_unet(torch.float32)
    noisy = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    text = encode(live, CAPTIONS[:2])
    with torch.no_grad():
        found = [
            Z_IMAGE.predict(model, noisy, torch.tensor([0.3, 0.8]), text, torch.ones(2, 6))
            for model in (live.unet, merged, tiny.models_of()["transformer"])
        ]
    assert (found[0] - found[2]).abs().max() > 0.1
    assert torch.allclose(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = run(tmp_path, "whole", max_train_steps=4, save_steps=2)
    half = run(tmp_path, "half", max_train_steps=2, save_steps=2)
    more = training.read(half.config).replace(max_train_steps=4)
    half.config.write_text(training.to_yaml(more), encoding="utf-8")
    assert job.run(half.path) == job.FINISHED
    first, second = (
        load_file(folder.path / f"{name}.safetensors")
        for folder, name in ((whole, "whole"), (half, "half"))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_metadata_and_sidecar_say_what_hosts_look_for(tmp_path):
    (tmp_path / "Lora").mkdir()
    run(
        tmp_path,
        max_train_steps=2,
        lora_dir=str(tmp_path / "Lora"),
        sample_prompts=["a zorbl"],
        sample_steps=2,
    )
    delivered = tmp_path / "Lora" / "ink.safetensors"
    metadata = read_header(delivered).metadata
    assert metadata["ss_base_model_version"] == "zimage"
    sidecar = json.loads(delivered.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["sd version"] == "zit"


def test_the_planner_counts_a_step(tmp_path):
    config = training.from_mapping(
        {
            "train_data_dir": str(tmp_path),
            "base_model": str(tiny.written()),
            "output_dir": str(tmp_path / "run"),
            "resolution": 64,
            "batch_size": 2,
            "lora_rank": 4,
        }
    )
    found = account(open_checkpoint(tiny.written()), config, torch.bfloat16)
    # in each of four blocks four layers of attention and three of the MLP
    sides = 4 * (64 + 64) + 3 * (64 + 170)
    assert found.adapters == 4 * 4 * 4 * sides
    assert found.activations > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "base_precision": "int8"},
    ],
    ids=["bf16", "int8"],
)
def test_it_trains_in_little_memory(tmp_path, changes):
    folder = run(tmp_path, max_train_steps=3, batch_size=2, **changes)
    assert all(torch.tensor(losses(folder)).isfinite())
