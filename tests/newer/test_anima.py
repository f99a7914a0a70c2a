"""Anima, from the files that a host has to a LoRA that the host loads. Predictions are compared with
diffusers' own modules and pipeline steps.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from transformers import PreTrainedTokenizerFast

from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import CheckpointError
from lora_trainer.families import anima
from lora_trainer.families.anima import ANIMA
from lora_trainer.families.base import TextStates
from lora_trainer.families.components import qwen_image
from lora_trainer.families.components.anima import TEXT_LENGTH
from lora_trainer.jobs.start import start_worker
from lora_trainer.packages import FAMILY_PACKAGES
from lora_trainer.planner.accounting import account
from lora_trainer.settings import training
from lora_trainer.training.preview import sample_latents
from lora_trainer.worker import job
from tests.made import begin
from tests.newer import tiny_anima as tiny

CAPTIONS = ["a big zorbl in the center, blue background", "yellow and red", ""]
TARGETS = ("self_attn", "cross_attn", "mlp")


@pytest.fixture(scope="module")
def parts():
    return open_checkpoint(tiny.written()).load(torch.float32)


def encode(parts, captions):
    with torch.no_grad():
        return ANIMA.encode_captions(parts, captions, clip_skip=1, max_token_length=75)


# --- files ----------------------------------------------------------------------------------------


def test_a_model_for_other_inputs_is_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    name = "net.x_embedder.proj.1.weight"
    tiny.save({**tiny.tensors(), name: torch.zeros(96, 72)}, path)
    with pytest.raises(CheckpointError, match="18 input channels instead of 17"):
        detect_file(path)


def test_parts_that_are_missing_are_named_with_where_they_are(tmp_path):
    path = tiny.write(tmp_path)
    (tmp_path / "VAE" / "qwen_image_vae.safetensors").unlink()
    (tmp_path / "text_encoder" / "qwen_3_06b_base.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).require_parts()
    told = str(caught.value.message)
    assert "Qwen3-0.6B (qwen_3_06b_base.safetensors" in told
    assert "Qwen-Image VAE (qwen_image_vae.safetensors" in told and "llm_adapter" not in told


def test_an_all_in_one_file_needs_no_other(tmp_path):
    path = tmp_path / "whole.safetensors"
    made = tiny.models_of()
    encoder = {
        f"text_encoders.qwen3_06b.transformer.model.{name}": tensor
        for name, tensor in made["qwen3"].state_dict().items()
    }
    vae = {f"vae.{anima.vae_name(n)}": tensor for n, tensor in made["vae"].state_dict().items()}
    tiny.save({**tiny.tensors("model.diffusion_model."), **encoder, **vae}, path)
    checkpoint = open_checkpoint(path)
    checkpoint.require_parts()
    assert checkpoint.separate_paths == ((), None)
    encoder, _ = checkpoint.load_text_encoders(torch.float32)
    expected = made["qwen3"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


def test_the_vaes_names_are_those_of_the_published_file():
    names = {anima.vae_name(name) for name in tiny.models_of()["vae"].state_dict()}
    assert len(names) == len(tiny.models_of()["vae"].state_dict())
    assert {
        "conv1.weight",
        "conv2.bias",
        "encoder.conv1.weight",
        "encoder.downsamples.0.residual.0.gamma",
        "encoder.downsamples.2.resample.1.weight",
        "encoder.downsamples.3.shortcut.weight",
        "encoder.downsamples.5.time_conv.weight",
        "encoder.middle.1.to_qkv.weight",
        "encoder.head.2.weight",
        "decoder.middle.0.residual.0.gamma",
        "decoder.middle.1.norm.gamma",
        "decoder.upsamples.3.time_conv.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.11.resample.1.weight",
        "decoder.upsamples.14.residual.6.weight",
        "decoder.head.0.gamma",
    } <= names
    assert not any("block" in name or "resnet" in name for name in names)


def test_qwens_vocabulary_does_where_a_host_has_no_tokenizer_json(tmp_path):
    path = tiny.write(tmp_path)
    folder = tmp_path / "text_encoder" / "qwen3"
    tokenizer = tiny.qwen3_tokenizer()
    tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    found, _ = open_checkpoint(path).tokenizers()
    text = "a big zorbl, yellow"
    assert found.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids
    (folder / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(path).tokenizers()


# --- what it computes -----------------------------------------------------------------------------


def test_text_states_are_those_of_diffusers_whatever_the_batch(parts):
    made = tiny.models_of()
    qwen3, t5 = parts.tokenizers
    # as published, T5's ends each text
    ending = PreTrainedTokenizerFast(tokenizer_object=t5, pad_token="<pad>", eos_token="</s>")

    def t5_with_end(texts, **options):
        return ending([f"{text}</s>" for text in texts], **options)

    components = SimpleNamespace(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=qwen3, pad_token="<|endoftext|>"),
        t5_tokenizer=t5_with_end,
        text_encoder=made["qwen3"],
    )
    with torch.no_grad():
        found = AnimaTextEncoderStep.encode_prompt(
            components, CAPTIONS, None, False, 512, torch.device("cpu"), torch.float32
        )
        expected = made["conditioner"](
            found["qwen_prompt_embeds"],
            found["t5_input_ids"],
            target_attention_mask=found["t5_attention_mask"],
            source_attention_mask=found["qwen_attention_mask"],
        )
    ours = encode(parts, CAPTIONS).hidden
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)
    for row, caption in zip(ours, CAPTIONS, strict=True):
        alone = encode(parts, [caption]).hidden[0]
        assert torch.allclose(row[: len(alone)], alone, atol=1e-6)
        assert not row[len(alone) :].any()


def test_long_captions_end_where_the_model_does(parts):
    states = encode(parts, ["zorbl " * 600])
    assert states.hidden.shape == (1, TEXT_LENGTH, 32)
    assert ANIMA.count_tokens(parts.tokenizers, "a big zorbl") == 3


def test_the_prediction_is_that_of_diffusers_model_with_its_padding_mask(parts, monkeypatch):
    def resize(mask, size, interpolation):
        return mask.new_zeros((*mask.shape[:2], *size))

    # torchvision, which is not here, resizes a mask of zeros
    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST=0)
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
    theirs = CosmosTransformer3DModel(
        **{**tiny.TRANSFORMER, "in_channels": 16, "concat_padding_mask": True}
    ).eval()
    theirs.load_state_dict(tiny.models_of()["transformer"].state_dict())
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 16, 6, 8, generator=generator)
    times = torch.tensor([0.2, 0.9])
    text = encode(parts, CAPTIONS[:2])
    with torch.no_grad():
        ours = ANIMA.predict(parts.unet, noisy, times, text, torch.ones(2, 6))
        expected = theirs(
            noisy.unsqueeze(2),
            times,
            F.pad(text.hidden, (0, 0, 0, TEXT_LENGTH - text.hidden.shape[1])),
            padding_mask=torch.zeros(1, 1, 48, 64),
            return_dict=False,
        )[0]
    assert torch.allclose(ours, expected[:, :, 0], atol=1e-6)
    alone = TextStates(encode(parts, CAPTIONS[1:2]).hidden)
    with torch.no_grad():
        single = ANIMA.predict(parts.unet, noisy[1:], times[1:], alone, torch.ones(1, 6))
    assert torch.allclose(ours[1:], single, atol=1e-5)


def test_previews_are_sampled_as_the_published_pipeline_samples(parts):
    settings = training.SampleSettings(sample_steps=5, sample_guidance=4.0, sample_seed=3)
    prompt, negative = encode(parts, CAPTIONS[:1]), encode(parts, [""])
    ours = sample_latents(parts, prompt, negative, settings, (64, 48))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    latents = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for time in scheduler.timesteps:
            flows = [
                ANIMA.predict(parts.unet, latents, time[None] / 1000, text, torch.ones(1, 6))
                for text in (negative, prompt)
            ]
            guided = flows[0] + 4.0 * (flows[1] - flows[0])
            latents = scheduler.step(guided, time, latents, return_dict=False)[0]
    assert torch.allclose(ours, latents, atol=1e-4)


def test_latents_are_normalised_per_channel_and_back(parts):
    vae = tiny.models_of()["vae"]
    pixels = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    moments = ANIMA.encode_images(parts.vae, pixels)
    assert moments.shape == (2, 32, 6, 8)
    with torch.no_grad():
        mode = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        mean, spread = (
            torch.tensor(values).view(1, 16, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        decoded = vae.decode(mode).sample[:, :, 0] / 2 + 0.5
    assert torch.allclose(moments[:, :16], ((mode - mean) / spread).squeeze(2), atol=1e-5)
    assert torch.allclose(ANIMA.decode(parts.vae, moments[:, :16]), decoded.clamp(0, 1), atol=1e-5)


def test_training_times_are_not_shifted_unless_asked():
    checkpoint = open_checkpoint(tiny.written())
    process = ANIMA.noise_process(checkpoint.schedule)
    middle = process.quantiles(torch.tensor([0.5]), (1, 16, 8, 8))
    assert middle.item() == pytest.approx(0.5)
    asked = open_checkpoint(tiny.written(), timestep_shift=3.0)
    shifted = ANIMA.noise_process(asked.schedule).quantiles(torch.tensor([0.5]), (1, 16, 8, 8))
    assert shifted.item() == pytest.approx(0.75)


# --- the LoRA -------------------------------------------------------------------------------------


def test_text_encoders_are_not_trained(tmp_path):
    folder = begin(tmp_path, base_model=str(tiny.written()), device="cpu", train_text_encoder=True)
    assert job.run(folder.path) == job.FAILED
    assert "are not trained" in str(folder.read_state().failure.message)


def test_a_worker_of_its_own_takes_the_newer_libraries(tmp_path):
    folder = begin(tmp_path, base_model=str(tiny.written()), device="cpu", max_train_steps=2)
    assert start_worker(folder, environ={"PYTHONPATH": ""}).wait() == 0
    versions = json.loads(folder.worker.read_text(encoding="utf-8"))["versions"]
    wanted = {package.name: package.version for package in FAMILY_PACKAGES["newer"]}
    for name in ("diffusers", "transformers", "peft", "safetensors"):
        assert versions[name] == wanted[name]


@pytest.mark.slow
def test_the_planner_counts_a_step_at_full_width_without_weights(tmp_path):
    # four of 28 blocks: the time is theirs
    checkpoint = tiny.write_full_size(tmp_path, num_layers=4)
    config = training.from_mapping(
        {
            "train_data_dir": str(tmp_path),
            "base_model": str(checkpoint),
            "output_dir": str(tmp_path / "run"),
            "resolution": 256,
            "batch_size": 1,
            "lora_rank": 8,
            "blocks_to_swap": 4,
        }
    )
    found = account(open_checkpoint(checkpoint), config, torch.bfloat16)
    gib = 2**30
    # in bfloat16 a block is 0.13 GiB; what stays are two blocks and the rest
    assert 0.2 * gib < found.weights < 0.5 * gib
    # in a block 8 times inputs and outputs of eight attention layers and two of the MLP
    sides = 4 * (2048 + 2048) + 2 * (2048 + 2048) + 2 * (1024 + 2048) + 2 * (2048 + 8192)
    assert found.adapters == 4 * 4 * 8 * sides
    assert found.optimizer == pytest.approx(2 * found.adapters, rel=1e-3)


def test_large_pictures_are_encoded_and_decoded_in_tiles_like_whole_ones(monkeypatch):
    # of an eighth: the time is that of the pixels
    monkeypatch.setattr(qwen_image, "TILE", 128)
    vae = open_checkpoint(tiny.written()).load_vae(torch.float32)
    pixels = torch.rand(1, 3, 160, 144, generator=torch.Generator().manual_seed(2)) * 2 - 1
    whole = ANIMA.encode_images(vae, pixels)
    picture = ANIMA.decode(vae, whole[:, :16])
    ANIMA.tile(vae)
    tiled = ANIMA.encode_images(vae, pixels)
    assert tiled.shape == whole.shape
    # the middle of the first tile does not see the edge
    assert torch.allclose(tiled[..., :8, :8], whole[..., :8, :8], atol=0.05)
    assert not torch.equal(tiled, whole)
    assert ANIMA.decode(vae, whole[:, :16]).shape == picture.shape
