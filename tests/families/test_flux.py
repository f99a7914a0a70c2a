"""FLUX.1: what is loaded, predicted, trained and written equals what diffusers and the WebUIs have.
Its models here are tiny, of the true architecture.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from lora_trainer import families
from lora_trainer.adapters.apply import LoraTag, applied, effects
from lora_trainer.adapters.export import DIFFUSERS_FILE_NAME, verify
from lora_trainer.adapters.injected import target_layers
from lora_trainer.adapters.size import parameter_count
from lora_trainer.adapters.training_adapter import TrainingAdapter
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.tokenizer import load_tokenizers
from lora_trainer.errors import CheckpointError
from lora_trainer.families import flux
from lora_trainer.families.base import TextStates
from lora_trainer.frozen.layers import homes
from lora_trainer.lora import host_layers
from lora_trainer.lora.describe import describe
from lora_trainer.lora.layouts import UNET
from lora_trainer.lora.names import base_layers, module_names
from lora_trainer.lora.training_adapter import find_adapter
from lora_trainer.settings import training
from lora_trainer.settings.training import LoraSettings, SampleSettings
from lora_trainer.training.preview import sample_latents
from lora_trainer.worker import job
from tests.families import tiny_flux
from tests.families.tiny_flux import PREFIX
from tests.made import begin, losses

FLUX = families.get("flux")
PROMPT = "a red disc on white"


@pytest.fixture
def parts():
    return open_checkpoint(tiny_flux.tiny_flux()).load(torch.float32)


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# --- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_every_part_is_found_and_loaded_from_its_own_file(tmp_path, prefix):
    path = tiny_flux.write(tmp_path, prefix=prefix)
    checkpoint = open_checkpoint(path)
    checkpoint.require_parts()
    checkpoint.require_usable(torch.float32)
    loaded, made = checkpoint.load(torch.float32), tiny_flux.build()
    same_weights(loaded.unet, made["transformer"])
    same_weights(loaded.text_encoders[0], made["clip"])
    same_weights(loaded.text_encoders[1], made["t5"])
    same_weights(loaded.vae, made["vae"])
    assert loaded.vae.config.shift_factor == 0.1159
    assert (checkpoint.native_resolution, checkpoint.notes) == (64, [])


def test_the_files_names_are_those_that_diffusers_reads():
    """What `tiny_flux.native` writes is of the published kind: diffusers' own converter, which
    knows only the published width, gives it back. One number a row is enough.
    """
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    state = {
        name: torch.randn(tensor.shape[0], *(1,) * (tensor.dim() - 1))
        for name, tensor in model.state_dict().items()
    }
    read = convert_flux_transformer_checkpoint_to_diffusers(tiny_flux.native(state))
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


def test_an_all_in_one_file_has_its_parts_inside(tmp_path):
    path = tiny_flux.write(tmp_path / "parts")
    whole = dict(load_file(path))
    for file, prefix in (
        ("text_encoder/clip_l", "text_encoders.clip_l.transformer."),
        ("text_encoder/t5xxl_fp16", "text_encoders.t5xxl.transformer."),
        ("VAE/ae", "vae."),
    ):
        tensors = load_file(tmp_path / f"parts/{file}.safetensors")
        whole |= {prefix + name: tensor for name, tensor in tensors.items()}
    (tmp_path / "alone").mkdir()
    save_file(whole, tmp_path / "alone/whole.safetensors")
    checkpoint = open_checkpoint(
        tmp_path / "alone/whole.safetensors", tokenizers=tmp_path / "parts/text_encoder"
    )
    checkpoint.require_parts()
    assert checkpoint.separate_paths == ((), None) and checkpoint.detected.has_vae
    loaded, made = checkpoint.load(torch.float32), tiny_flux.build()
    same_weights(loaded.text_encoders[1], made["t5"])
    same_weights(loaded.unet, made["transformer"])
    assert checkpoint.notes == []


def diffusers_folder(tmp_path: Path) -> Path:
    made = tiny_flux.build()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_flux.tokenizer(), pad_token="<pad>")
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=made["clip"],
        tokenizer=load_tokenizers(["clip"])[0],
        text_encoder_2=made["t5"],
        tokenizer_2=tokenizer,
        transformer=made["transformer"],
        vae=made["vae"],
    )
    pipeline.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def test_a_diffusers_folder_is_loaded_with_its_tokenizer(tmp_path):
    folder = diffusers_folder(tmp_path)
    assert detect_any(folder).family is FLUX
    checkpoint = open_checkpoint(folder)
    checkpoint.require_parts()
    loaded, made = checkpoint.load(torch.float32), tiny_flux.build()
    same_weights(loaded.unet, made["transformer"])
    same_weights(loaded.text_encoders[1], made["t5"])
    same_weights(loaded.vae, made["vae"])
    assert loaded.tokenizers[1].encode("a disc").ids == tiny_flux.tokenizer().encode("a disc").ids


def changed(tmp_path, **tensors):
    path = tiny_flux.write(tmp_path)
    save_file({**load_file(path), **tensors}, path)
    return path


QKV = PREFIX + "double_blocks.0.img_attn.qkv.weight"


@pytest.mark.parametrize(
    "extra",
    [
        {PREFIX + "scaled_fp8": torch.zeros(2)},
        {"scaled_fp8": torch.zeros(2)},
        {QKV.replace("weight", "scale_weight"): torch.ones(1)},
        {QKV + ".absmax": torch.ones(1)},
        {QKV + ".quant_state.bitsandbytes__nf4": torch.ones(1)},
        {QKV: torch.zeros(192, 64, dtype=torch.uint8)},
    ],
    ids=lambda extra: next(iter(extra)).rpartition(".")[2],
)
def test_quantised_weights_are_named_with_what_to_use_instead(tmp_path, extra):
    with pytest.raises(CheckpointError, match="quantised") as caught:
        detect_file(changed(tmp_path, **extra))
    assert "bf16" in str(caught.value.hint)


@pytest.mark.parametrize("channels", [384, 128])
def test_kindred_models_are_told_by_their_inputs(tmp_path, channels):
    path = tiny_flux.write(tmp_path, in_channels=channels, out_channels=64)
    with pytest.raises(CheckpointError, match="Fill" if channels == 384 else "Canny, Depth"):
        detect_file(path)


def test_kontext_is_told_by_its_name_or_metadata(tmp_path):
    path = tiny_flux.write(tmp_path)
    save_file(load_file(path), path, metadata={"modelspec.title": "Flux.1 Kontext dev"})
    with pytest.raises(CheckpointError, match="is FLUX.1 Kontext"):
        detect_file(path)
    save_file(load_file(path), path)
    assert detect_file(path).variant == "dev"
    with pytest.raises(CheckpointError, match="is FLUX.1 Kontext"):
        detect_file(path.rename(path.with_name("flux1-kontext-dev.safetensors")))


def test_schnell_is_told_and_sampled_in_four_steps(tmp_path):
    checkpoint = open_checkpoint(tiny_flux.write(tmp_path, guided=False))
    assert (checkpoint.detected.variant, checkpoint.detected.is_distilled) == ("schnell", True)
    assert checkpoint.schedule.shift_for((1, 16, 64, 64)) == 1.0
    assert checkpoint.family.usual_sampling(is_distilled=checkpoint.detected.is_distilled) == (
        4,
        1.0,
    )
    same_weights(checkpoint.load_unet(torch.float32), tiny_flux.build(guided=False)["transformer"])


def test_schnells_training_adapter_is_found_by_its_folder(tmp_path):
    path = tiny_flux.write(tmp_path, guided=False)
    family = open_checkpoint(path).family
    kind = family.distilled.adapter
    state = tiny_flux.build(guided=False)["transformer"].state_dict()
    tensors, expected = {}, dict(state)
    for name in ("transformer_blocks.0.attn.add_k_proj", "single_transformer_blocks.1.proj_mlp"):
        rows, columns = state[f"{name}.weight"].shape
        up, down = torch.randn(rows, 2), torch.randn(2, columns)
        tensors |= {f"transformer.{name}.lora_A.weight": down}
        tensors |= {f"transformer.{name}.lora_B.weight": up}
        expected[f"{name}.weight"] = state[f"{name}.weight"] + up @ down
    file = tmp_path / "models" / "Lora" / kind.file
    file.parent.mkdir(parents=True)
    save_file(tensors, file)
    found = find_adapter(path, family, kind, [tmp_path / "models" / "Lora"])
    assert found is not None and found.header.path == file
    checkpoint = open_checkpoint(path)
    adapter = TrainingAdapter.of(found, checkpoint.outline())
    unet = checkpoint.load_unet(torch.float32, added=adapter.delta)
    for name, weight in unet.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_other_models_with_such_blocks_are_not_taken_for_it(tmp_path):
    path = tiny_flux.write(tmp_path)
    tensors = {name: one for name, one in load_file(path).items() if "vector_in" not in name}
    save_file({**tensors, "distilled_guidance_layer.in_proj.weight": torch.ones(1, 1)}, path)
    with pytest.raises(CheckpointError, match="a Chroma model"):
        detect_file(path)


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path):
    path = tiny_flux.write(tmp_path)
    (tmp_path / "text_encoder/t5xxl_fp16.safetensors").unlink()
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="T5-XXL") as caught:
        checkpoint.require_parts()
    assert "9.8 GB" in str(caught.value) and "CLIP-L" not in str(caught.value)


# --- what is predicted ----------------------------------------------------------------------------


def test_it_encodes_and_samples_as_diffusers_pipeline(tmp_path, parts):
    pipeline = FluxPipeline.from_pretrained(diffusers_folder(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    ours = FLUX.encode_captions(parts, [PROMPT, ""], clip_skip=1, max_token_length=75)
    for row, text in enumerate((PROMPT, "")):
        hidden, pooled, _ = pipeline.encode_prompt(text, None, max_sequence_length=512)
        torch.testing.assert_close(ours.hidden[row : row + 1], hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.pooled[row : row + 1], pooled, rtol=1e-5, atol=1e-5)
    settings = SampleSettings(sample_steps=3, sample_seed=11)
    with torch.no_grad():
        found = sample_latents(parts, ours.row(0), ours.row(1), settings, (64, 96))
    noise = torch.randn((1, 16, 12, 8), generator=torch.Generator().manual_seed(11))
    wanted = pipeline(
        prompt=PROMPT,
        width=64,
        height=96,
        num_inference_steps=3,
        guidance_scale=3.5,
        latents=pipeline._pack_latents(noise, 1, 16, 12, 8),
        output_type="latent",
    ).images
    wanted = pipeline._unpack_latents(wanted, 96, 64, 8)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    shown = FLUX.decode(parts.vae, found)
    with torch.no_grad():
        reference = pipeline.vae.decode(wanted / 0.3611 + 0.1159).sample
    torch.testing.assert_close(shown, (reference / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


def inputs(parts):
    generator = torch.Generator().manual_seed(5)
    text = TextStates(
        torch.randn(2, 7, tiny_flux.T5_WIDTH, generator=generator),
        torch.randn(2, tiny_flux.CLIP_WIDTH, generator=generator),
    )
    noisy = torch.randn(2, 16, 8, 12, generator=generator)
    return noisy, torch.tensor([0.25, 0.75]), text, torch.zeros(2, 6)


def predicted(parts):
    with torch.no_grad():
        return FLUX.predict(parts.unet, *inputs(parts))


def test_a_prediction_in_training_is_the_models_with_guidance_of_one(parts):
    noisy, times, text, _ = inputs(parts)
    with torch.no_grad():
        wanted = parts.unet(
            hidden_states=FluxPipeline._pack_latents(noisy, 2, 16, 8, 12),
            timestep=times,
            guidance=torch.ones(2),
            pooled_projections=text.pooled,
            encoder_hidden_states=text.hidden,
            txt_ids=torch.zeros(7, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32),
        ).sample
    wanted = FluxPipeline._unpack_latents(wanted, 64, 96, 8)
    torch.testing.assert_close(predicted(parts), wanted)


def test_images_become_latents_of_the_published_scale_and_shift(parts):
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, deviation = FLUX.encode_images(parts.vae, pixels).chunk(2, 1)
    with torch.no_grad():
        distribution = parts.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, (distribution.mean - 0.1159) * 0.3611)
    torch.testing.assert_close(deviation, distribution.std * 0.3611)


# --- what is trained ------------------------------------------------------------------------------


@pytest.fixture
def few_tokens(monkeypatch):
    """Texts of 16 tokens instead of 512, for speed."""
    monkeypatch.setattr(flux, "TEXT_LENGTH", 16)


def run(tmp_path, name="ink", **changes):
    (tmp_path / "Lora").mkdir(exist_ok=True)
    folder = begin(
        tmp_path,
        name,
        base_model=str(tiny_flux.tiny_flux()),
        lora_dir=str(tmp_path / "Lora"),
        sample_steps=2,
        **{"learning_rate": 1e-2, "lora_rank": 4, **changes},
    )
    assert job.run(folder.path) == job.FINISHED, folder.read_state()
    return folder


def test_a_training_halves_its_loss_and_what_it_writes_is_what_it_learned(tmp_path, few_tokens):
    folder = run(
        tmp_path,
        epochs=30,
        lora_alpha=3.0,
        images=4,
        sample_prompts=[PROMPT],
        trigger_word="zrb",
        sample_strengths=[0.0, 1.0],
    )
    found = losses(folder)
    assert sum(found[-8:]) / 8 < 0.5 * sum(found[:4]) / 4, (found[:4], found[-8:])
    delivered = tmp_path / "Lora" / "ink.safetensors"
    parts = open_checkpoint(tiny_flux.tiny_flux()).load(torch.float32)
    report = verify(delivered, module_names(parts))
    # per double block qkv, proj and two of the MLP, twice; per single block linear1 and linear2
    assert (report.module_count, report.idle_modules) == (2 * 8 + 2 * 2, 0)
    header = load_file(delivered)
    up = header["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    assert up.shape == (7 * 64, 16) and up[:64, 4:].count_nonzero() == 0
    assert float(header["lora_unet_single_blocks_0_linear1.alpha"]) == 12.0
    sidecar = json.loads(delivered.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["sd version"] == "Flux"
    previews = sorted(folder.previews.glob("*.png"))
    pictures = [Image.open(path) for path in previews]
    assert len({picture.tobytes() for picture in pictures}) > 1
    assert all(picture.size == (64, 64) for picture in pictures)
    assert "CFG scale: 1, Distilled CFG Scale: 3.5" in pictures[0].text["parameters"]

    described = describe(delivered, base_layers(parts))
    assert described.families == ("flux",)
    assert (described.unmatched, described.misshapen) == ((), ())

    # merged into the file's own tensors, as a WebUI does
    base = predicted(parts)
    with applied(parts, [LoraTag(delivered, 1.0)]):
        ours = predicted(parts)
    assert not torch.allclose(ours, base, atol=1e-3)
    tensors = load_file(tiny_flux.tiny_flux())
    flat = {
        "lora_unet_" + name.removeprefix(PREFIX).removesuffix(".weight").replace(".", "_"): name
        for name in tensors
    }
    for name, change in effects(delivered).items():
        tensors[flat[name]] = tensors[flat[name]] + change
    models = tmp_path / "merged/models"
    merged = tiny_flux.write(models)
    save_file(tensors, merged)
    theirs = predicted(open_checkpoint(merged).load(torch.float32))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    # and by diffusers' own loader
    pipeline = FluxPipeline.from_pretrained(
        diffusers_folder(tmp_path), text_encoder=None, text_encoder_2=None, vae=None
    )
    pipeline.load_lora_weights(folder.path, weight_name=DIFFUSERS_FILE_NAME)
    pipeline.fuse_lora()
    parts.unet = pipeline.transformer
    # float16 files
    torch.testing.assert_close(predicted(parts), ours, rtol=2e-3, atol=2e-3)


def test_it_learns_with_what_saves_memory(tmp_path, few_tokens):
    usual = losses(run(tmp_path, "usual", epochs=2, seed=3))
    for number, saving in enumerate(
        (
            {"base_precision": "int8", "gradient_checkpointing": True},
            {"base_precision": "fp8", "mixed_precision": "bf16"},
        )
    ):
        found = losses(run(tmp_path, f"small{number}", epochs=2, seed=3, **saving))
        assert found == pytest.approx(usual, rel=0.05)


def test_blocks_that_are_swapped_predict_the_same(parts):
    checkpoint = open_checkpoint(tiny_flux.tiny_flux())
    wanted = predicted(parts)
    for kept in ("same", "int8"):
        unet = checkpoint.load_unet(torch.float32, kept=kept, swapped=3)
        assert len(FLUX.blocks(unet)) == 4 and len(homes(unet)) == 1
        parts.unet = unet
        tolerance = 1e-5 if kept == "same" else 0.05
        torch.testing.assert_close(predicted(parts), wanted, rtol=tolerance, atol=tolerance)


def test_t5_in_8_bits_gives_nearly_the_same_states(parts):
    wanted = FLUX.encode_captions(parts, [PROMPT], clip_skip=1, max_token_length=75)
    checkpoint = open_checkpoint(tiny_flux.tiny_flux())
    parts.text_encoders = checkpoint.load_text_encoders(torch.float32, kept="int8")
    assert (
        parts.text_encoders[1].encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.int8
    )
    found = FLUX.encode_captions(parts, [PROMPT], clip_skip=1, max_token_length=75)
    torch.testing.assert_close(found.hidden, wanted.hidden, rtol=0.1, atol=0.1)
    assert torch.equal(found.pooled, wanted.pooled)


def test_a_lora_goes_on_from_its_own_file(tmp_path, few_tokens):
    run(tmp_path, "first", epochs=2)
    first = tmp_path / "Lora/first.safetensors"
    folder = run(
        tmp_path, "second", epochs=1, learning_rate=0.0, init_lora=str(first), lora_rank=None
    )
    assert training.read(folder.config).lora.lora_rank == 4
    before, after = effects(first), effects(tmp_path / "Lora/second.safetensors")
    assert before.keys() == after.keys()
    for name, change in before.items():
        torch.testing.assert_close(after[name], change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_text_encoder": True},
        {"zero_terminal_snr": True},
        {"prediction_type": "v_prediction"},
        {"bucket_step": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_mean_nothing_are_refused(tmp_path, changes):
    folder = begin(tmp_path, base_model=str(tiny_flux.tiny_flux()), **changes)
    assert job.run(folder.path) == job.FAILED
    assert next(iter(changes)) in folder.read_state().failure.message


# --- the names in a WebUI -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    return tiny_flux.full_size(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("host", ["forge", "neo"])
def test_at_full_size_every_key_is_one_that_the_webui_finds(full_size, host):
    checkpoint = open_checkpoint(full_size)
    parts = checkpoint.outline()
    name, rows = FLUX.layer_names(parts), FLUX.fused_rows(parts)
    known = host_layers.names(host, "flux")
    shapes = module_names(parts)
    ((_, _, paths), *_) = target_layers(parts, LoraSettings())
    learned = {name("unet", path) for path in paths}
    assert len(learned) == 19 * 8 + 38 * 2
    for key in learned:
        place = known[key]
        assert place.part == UNET and tuple(place.shape) == shapes[key], key
    # the rows are those of the WebUI's own table for diffusers' names
    for path in paths:
        ours = rows("unet", path)
        theirs = known.get(f"transformer.{path}")
        if theirs is not None and ours is not None:
            assert (theirs.first, theirs.shape[0]) == (ours.first, ours.count), path
    # every layer that can have a LoRA has a place, trained or not
    assert {key for key in shapes if key.startswith("lora_unet_")} <= known.keys()


def test_the_tab_foretells_the_size_of_its_lora(full_size):
    checkpoint = open_checkpoint(full_size)
    shapes = FLUX.layer_shapes(full_size, checkpoint.detected)
    count = parameter_count(FLUX, shapes, LoraSettings(lora_rank=1))
    wide, inner = 3072, 12288
    double = 2 * (4 * (wide + wide) + 2 * (wide + inner))
    single = 3 * (wide + wide) + (wide + inner) + (wide + inner + wide)
    assert count == 19 * double + 38 * single
    assert checkpoint.unet_parameter_count == pytest.approx(11.9e9, rel=0.01)
