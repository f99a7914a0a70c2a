"""Z-Image, from the files that a host has to a LoRA that the host loads. Predictions are compared
with diffusers' own model and pipeline.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from transformers import PreTrainedTokenizerFast

from lora_trainer import families
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import CheckpointError
from lora_trainer.families.components.qwen3 import SPECIAL, read_vocabulary
from lora_trainer.planner.accounting import account
from lora_trainer.settings import training
from lora_trainer.training.preview import sample_latents
from tests.newer import tiny_anima
from tests.newer import tiny_z_image as tiny

CAPTIONS = ["a big zorbl in the center, blue background", "yellow and red", ""]
Z_IMAGE = families.get("zimage")


@pytest.fixture(scope="module")
def parts():
    return open_checkpoint(tiny.written()).load(torch.float32)


def encode(parts, captions):
    with torch.no_grad():
        return Z_IMAGE.encode_captions(parts, captions, clip_skip=1, max_token_length=75)


# --- files ----------------------------------------------------------------------------------------


def test_lumina_2_is_another_model(tmp_path):
    path = tmp_path / "some.safetensors"
    tiny_anima.save(
        {name: one for name, one in tiny.tensors().items() if "pad_token" not in name}, path
    )
    with pytest.raises(CheckpointError):
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
