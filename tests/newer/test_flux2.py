"""FLUX.2 klein, from the files that a host has to a LoRA that the host loads. Predictions, latents
and samples are compared with diffusers' own model and pipeline.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lora_trainer import families
from lora_trainer.adapters.export import DIFFUSERS_FILE_NAME
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.errors import CheckpointError
from lora_trainer.families import flux2
from lora_trainer.families.components.flux2 import sampling_shift
from lora_trainer.families.components.qwen3 import SPECIAL
from lora_trainer.lora import host_layers
from lora_trainer.planner.accounting import account
from lora_trainer.settings import training
from lora_trainer.training.preview import sample_latents
from lora_trainer.worker import job
from tests.families import tiny_flux
from tests.made import begin
from tests.newer import tiny_anima
from tests.newer import tiny_flux2 as tiny

CAPTIONS = ["a big zorbl in the center, blue background", "yellow and red", ""]
SIZES = ("4B", "9B")
TEXT_LENGTH = 48
KLEIN, KLEIN_9B = families.get("klein4b"), families.get("klein9b")
LAYERS = {"4B": 5 * 8 + 20 * 2, "9B": 8 * 8 + 24 * 2}
"""In a double block qkv, proj and two of the MLP, twice; in a single one linear1 and linear2."""


@pytest.fixture(scope="module")
def parts():
    return open_checkpoint(tiny.written()).load(torch.float32)


@pytest.fixture(scope="module")
def pipeline(parts):
    """diffusers' own, of the same models."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.tokenizers[0],
        pad_token="<|endoftext|>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{{ '<|im_start|>assistant\n' }}"
            "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        ),
    )
    models = tiny.models_of()
    transformer = Flux2Transformer2DModel(**tiny.TRANSFORMER).eval()
    transformer.load_state_dict(models["transformer"].state_dict())
    made = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=models["vae"],
        text_encoder=models["qwen3"],
        tokenizer=tokenizer,
        transformer=transformer,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def few_tokens(monkeypatch):
    """Shorter texts: the time of a step is that of its tokens."""
    monkeypatch.setattr(flux2, "TEXT_LENGTH", TEXT_LENGTH)


def run(tmp_path, name="ink", **changes):
    asked = {"device": "cpu", "base_model": str(tiny.written()), **changes}
    folder = begin(tmp_path, name, **asked)
    assert job.run(folder.path) == job.FINISHED
    return folder


def encode(parts, captions):
    with torch.no_grad():
        return KLEIN.encode_captions(parts, captions, clip_skip=1, max_token_length=75)


# --- files ----------------------------------------------------------------------------------------


def test_the_files_names_are_those_that_diffusers_reads():
    read = convert_flux2_transformer_checkpoint_to_diffusers(tiny.tensors(""))
    state = tiny.models_of()["transformer"].state_dict()
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize(
    ("name", "is_told"),
    [("flux-2-klein-4b", True), ("flux-2-klein-base-4b", False), ("my merge", False)],
)
def test_the_distilled_one_is_told_with_what_to_train_instead(tmp_path, name, is_told):
    path = tmp_path / f"{name}.safetensors"
    tiny_anima.save(tiny.tensors(), path)
    notes = [str(note) for note in detect_file(path).notes]
    assert any("train on FLUX.2 klein base" in note for note in notes) is is_told


@pytest.mark.parametrize("size", SIZES)
def test_both_sizes_are_told_by_their_widths_and_want_their_own_text_encoder(tmp_path, size):
    path = tiny_flux.sparse(tmp_path / "some.safetensors", tiny.full_transformer(size))
    detected = detect_file(path)
    encoder = {"4B": ("qwen3_4b", 2560), "9B": ("qwen3_8b", 4096)}[size]
    assert detected.family.name == f"FLUX.2 klein {size}"
    assert dict(detected.widths) == dict([encoder, ("flux2_vae", 32)])


def test_flux2_dev_is_refused_by_name(tmp_path):
    shapes = tiny.full_transformer("4B", num_attention_heads=48, joint_attention_dim=15360)
    path = tiny_flux.sparse(tmp_path / "some.safetensors", shapes)
    with pytest.raises(CheckpointError, match=r"FLUX.2 dev"):
        detect_file(path)
    shapes = tiny.full_transformer("4B", guidance_embeds=True)
    with pytest.raises(CheckpointError, match=r"FLUX.2 dev"):
        detect_file(tiny_flux.sparse(path, shapes))


@pytest.mark.parametrize("is_distilled", [False, True])
def test_a_diffusers_folder_is_loaded_with_its_tokenizer(tmp_path, pipeline, is_distilled):
    models = tiny.models_of()
    for name in ("transformer", "vae"):
        models[name].save_pretrained(tmp_path / name)
    whole = Qwen3ForCausalLM(Qwen3Config(**tiny.QWEN3))
    whole.model.load_state_dict(models["qwen3"].state_dict())
    whole.save_pretrained(tmp_path / "text_encoder")
    pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": is_distilled}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    detected = detect_any(tmp_path)
    assert (detected.family, len(detected.notes)) == (KLEIN, int(is_distilled))
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require_parts()
    parts = checkpoint.load(torch.float32)
    for ours, theirs in (
        (parts.unet, models["transformer"]),
        (parts.vae, models["vae"]),
        (parts.text_encoders[0], models["qwen3"]),
    ):
        expected = theirs.state_dict()
        assert all(torch.equal(one, expected[name]) for name, one in ours.state_dict().items())
    assert parts.tokenizers[0].encode("a big").ids == pipeline.tokenizer("a big").input_ids


def test_a_vae_under_diffusers_names_with_a_decoder_of_other_widths_is_loaded(tmp_path):
    path = tiny.write(tmp_path)
    file = tmp_path / "VAE" / "flux2-vae.safetensors"
    vae = tiny.build_vae({**tiny.VAE, "decoder_block_out_channels": (16, 16, 32, 32)})
    save_file(vae.state_dict(), file)
    loaded = open_checkpoint(path).load(torch.float32).vae
    expected = vae.state_dict()
    assert all(torch.equal(one, expected[name]) for name, one in loaded.state_dict().items())


# --- what it computes -----------------------------------------------------------------------------


def test_text_states_are_those_of_the_pipeline(parts, pipeline):
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(CAPTIONS, device=torch.device("cpu"))
    ours = encode(parts, CAPTIONS)
    assert ours.hidden.shape == (3, 512, 3 * tiny.WIDTH) and ours.mask is None
    torch.testing.assert_close(ours.hidden, expected, rtol=1e-4, atol=1e-4)


def test_the_template_is_made_of_single_tokens(parts):
    (tokenizer,) = parts.tokenizers
    ids = tokenizer.encode(flux2.TEMPLATE.format(""), add_special_tokens=False).ids
    special = [tokenizer.token_to_id(one) for one in SPECIAL]
    assert sum(one in special for one in ids) == 5
    assert special == list(range(special[0], special[0] + 26)) or special[0] == 0


def test_latents_are_those_of_the_pipeline_and_become_images_again(parts, pipeline):
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = KLEIN.encode_images(parts.vae, pixels)
    assert ours.shape == (2, 256, 4, 3)
    mean, deviation = ours.chunk(2, 1)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4)
    assert deviation.count_nonzero() == 0
    decoded = KLEIN.decode(parts.vae, mean)
    with torch.no_grad():
        latents = parts.vae.encode(pixels).latent_dist.mode()
        direct = (parts.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, direct, rtol=1e-3, atol=1e-4)


def test_previews_are_sampled_as_the_pipeline_samples(parts, pipeline):
    settings = training.SampleSettings(sample_steps=4, sample_guidance=3.0, sample_seed=3)
    prompt, negative = encode(parts, CAPTIONS[:1]), encode(parts, [""])
    latents = sample_latents(parts, prompt, negative, settings, (64, 48))
    ours = KLEIN.decode(parts.vae, latents)
    noise = torch.randn(1, 128, 3, 4, generator=torch.Generator().manual_seed(3))
    expected = pipeline(
        prompt=CAPTIONS[0],
        width=64,
        height=48,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_the_shift_of_samples_depends_on_size_and_steps():
    # exp(compute_empirical_mu(4096, 50)) and of 6400 tokens, where steps do not count
    assert sampling_shift((1, 128, 64, 64), 50) == pytest.approx(7.557, abs=0.01)
    assert sampling_shift((1, 128, 80, 80), 4) == sampling_shift((1, 128, 80, 80), 50)


def test_times_of_training_are_shifted_by_the_number_of_tokens():
    shift = KLEIN.schedule(None).shift_for
    assert shift((1, 128, 64, 64)) == pytest.approx(3.158, abs=0.001)
    assert shift((1, 128, 16, 16)) == pytest.approx(1.649, abs=0.001)


# --- the LoRA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["9B"])
def test_every_layer_that_learns_has_the_hosts_name_at_the_larger_size_too(size):
    family = families.get(f"klein{size.lower()}")
    with torch.device("meta"):
        model = Flux2Transformer2DModel(**tiny.FULL[size])
    known, native = host_layers.names("neo", family.id), family.native_layers(model.config)
    ends = tuple(one.rpartition("*")[2] for one in family.unet_targets)
    learning = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path.endswith(ends)
    }
    assert len({native[path].path for path in learning}) == LAYERS[size]
    for path, layer in learning.items():
        own = native[path]
        place = known["lora_unet_" + own.path.replace(".", "_")]
        rows = layer.out_features if own.rows is None else own.rows.of
        assert (place.layer, place.shape) == (own.path, (rows, layer.in_features))
    assert {name.removesuffix(".weight") for name in model.state_dict()} == set(native)


def test_diffusers_loads_its_form_of_the_file(tmp_path, few_tokens, pipeline):
    folder = run(tmp_path, max_train_steps=8, learning_rate=5e-3, lora_rank=4)
    flat = load_file(folder.path / "ink.safetensors")
    state = load_file(folder.path / DIFFUSERS_FILE_NAME)
    pipeline.load_lora_weights(state)
    try:
        layer = pipeline.transformer.single_transformer_blocks[1].attn.to_out
        name = "lora_unet_single_blocks_1_linear2"
        change = layer.get_delta_weight(layer.active_adapters[0])
        up, down = flat[f"{name}.lora_up.weight"], flat[f"{name}.lora_down.weight"]
        expected = up.float() @ down.float() * float(flat[f"{name}.alpha"]) / down.shape[0]
        torch.testing.assert_close(change.float(), expected, rtol=1e-2, atol=1e-5)
    finally:
        pipeline.unload_lora_weights()


@pytest.mark.parametrize(
    ("name", "sampling"), [("klein-4b", (4, 1.0)), ("klein-base-4b", (20, 4.0))]
)
def test_previews_of_the_distilled_one_have_few_steps_and_no_guidance(
    tmp_path, few_tokens, name, sampling
):
    path = tiny.write(tmp_path / "models", f"flux-2-{name}.safetensors")
    folder = run(tmp_path, base_model=str(path), max_train_steps=1)
    samples = training.read(folder.config).samples
    assert (samples.sample_steps, samples.sample_guidance) == sampling


@pytest.mark.parametrize(("size", "billions"), [("4B", 3.88), ("9B", 9.08)])
def test_files_of_full_size_are_complete(tmp_path, size, billions):
    opened = open_checkpoint(tiny.write_full_size(tmp_path, size))
    opened.require_parts()
    assert opened.unet_parameter_count == pytest.approx(billions * 1e9, rel=0.01)


def test_the_planner_counts_a_step_at_full_width_without_weights(tmp_path):
    # three of 25 blocks: the time is theirs
    blocks = {"num_layers": 1, "num_single_layers": 2}
    checkpoint = tiny.write_full_size(tmp_path, "4B", **blocks)
    config = training.from_mapping(
        {
            "train_data_dir": str(tmp_path),
            "base_model": str(checkpoint),
            "output_dir": str(tmp_path / "run"),
            "resolution": 256,
            "batch_size": 1,
            "lora_rank": 4,
        }
    )
    found = account(open_checkpoint(checkpoint), config, torch.bfloat16)
    shapes = tiny.full_transformer("4B", **blocks).values()
    assert found.weights == pytest.approx(2 * sum(map(math.prod, shapes)), rel=0.01)
    width = 3072
    # q, k, v and out, and two layers of the MLP, for image and text; linear1 and linear2
    in_double = 2 * (4 * 2 * width + (width + 6 * width) + (3 * width + width))
    in_single = (width + 9 * width) + (4 * width + width)
    assert found.adapters == 4 * 4 * (in_double + 2 * in_single)
