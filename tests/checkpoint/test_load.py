"""Opening checkpoints: the same weights, and the same answers, as the reference loader's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from lora_trainer import families
from lora_trainer.checkpoint.detect import detect_file
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.errors import CheckpointError
from lora_trainer.families.components.ldm import answers_like_v_prediction
from tests.checkpoint.samples import FAMILIES, random_parts, tiny_file
from tests.made import small_checkpoint

FLOAT32 = torch.float32


def pipeline_of(family: str) -> Any:
    """diffusers' own pipeline around the tiny models."""
    parts, tokenizers = random_parts(family), families.get(family).tokenizers()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            parts.vae, *parts.text_encoders, *tokenizers, parts.unet, scheduler
        )
    return StableDiffusionPipeline(
        parts.vae,
        *parts.text_encoders,
        *tokenizers,
        parts.unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Diffusers folders of the tiny models."""
    paths = {family: tmp_path_factory.mktemp("diffusers folders") / family for family in FAMILIES}
    for family, path in paths.items():
        pipeline_of(family).save_pretrained(path)
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_file(tmp_path_factory.mktemp("文件 夹"), family) for family in FAMILIES}


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 49406, (2, 75), generator=generator)
    return {
        "latents": torch.randn(2, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([20, 800]),
        "image": torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1,
        "tokens": torch.cat([torch.full((2, 1), 49406), tokens, torch.full((2, 1), 49407)], dim=1),
        "sizes": torch.tensor([[1024.0, 768, 0, 16, 1024, 1024], [512, 512, 0, 0, 1024, 1024]]),
    }


@torch.no_grad()
def answers(
    unet: Any, vae: Any, text_encoders: tuple[Any, ...], inputs: dict[str, torch.Tensor]
) -> Iterator[torch.Tensor]:
    """What the models make of the inputs, text encoder to UNet."""
    outputs = [encoder(inputs["tokens"], output_hidden_states=True) for encoder in text_encoders]
    text, conditions = outputs[0].last_hidden_state, {}
    if len(outputs) == 2:
        text = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        conditions = {
            "added_cond_kwargs": {
                "text_embeds": outputs[1].text_embeds,
                "time_ids": inputs["sizes"],
            }
        }
        yield outputs[1].text_embeds
    yield text
    yield unet(
        inputs["latents"], inputs["timesteps"], encoder_hidden_states=text, **conditions
    ).sample
    latents = vae.encode(inputs["image"]).latent_dist.mean
    yield latents
    yield vae.decode(latents).sample


def assert_same_answers(
    one: tuple[Any, ...], other: tuple[Any, ...], inputs: dict[str, torch.Tensor], tolerance: float
) -> None:
    for answer, expected in zip(answers(*one, inputs), answers(*other, inputs), strict=True):
        assert expected.std() > 1e-3
        assert (answer - expected).abs().max() <= tolerance * expected.abs().max()


def models_of(parts: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    return parts.unet, parts.vae, parts.text_encoders


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_checkpoint_answers_as_the_models_it_was_written_from(
    files: dict, family: str, inputs: dict
) -> None:
    assert_same_answers(
        models_of(open_checkpoint(files[family]).load(FLOAT32)),
        models_of(random_parts(family)),
        inputs,
        1e-6,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_checkpoint_answers_as_the_reference_loaders(
    files: dict, folders: dict, tmp_path: Path, family: str, inputs: dict
) -> None:
    """diffusers reads the same file with a converter of its own; the folder gives it configurations
    only.
    """
    configurations = tmp_path / "configurations"
    for file in folders[family].rglob("*.*"):
        if file.suffix in (".json", ".txt"):
            target = configurations / file.relative_to(folders[family])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    loader = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    reference = loader.from_single_file(
        str(files[family]), config=str(configurations), local_files_only=True
    )
    encoders = (
        (reference.text_encoder, reference.text_encoder_2)
        if family == "sdxl"
        else (reference.text_encoder,)
    )
    ours = models_of(open_checkpoint(files[family]).load(FLOAT32))
    assert_same_answers(ours, (reference.unet, reference.vae, encoders), inputs, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_diffusers_folder_answers_as_the_file(
    files: dict, folders: dict, family: str, inputs: dict
) -> None:
    checkpoint = open_checkpoint(folders[family])
    assert (checkpoint.family.id, checkpoint.title) == (family, family)
    assert checkpoint.schedule == NoiseSchedule()
    assert_same_answers(
        models_of(checkpoint.load(FLOAT32)),
        models_of(open_checkpoint(files[family]).load(FLOAT32)),
        inputs,
        1e-6,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_models_are_frozen_in_eval_mode_and_wholly_in_memory(
    files: dict, family: str
) -> None:
    parts = open_checkpoint(files[family]).load(torch.bfloat16)
    for model in (parts.unet, parts.vae, *parts.text_encoders):
        assert not model.training
        assert all(
            parameter.dtype == torch.bfloat16 and not parameter.requires_grad
            for parameter in model.parameters()
        )
        assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    for encoder in parts.text_encoders:
        assert encoder.text_model.embeddings.position_ids.tolist() == [list(range(77))]
    assert len(parts.tokenizers) == len(parts.text_encoders)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_stored_in_another_type_are_converted_exactly(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = open_checkpoint(tiny_file(tmp_path, "sd1", dtype)).load_unet(FLOAT32).state_dict()
    for name, tensor in random_parts("sd1").unet.state_dict().items():
        assert torch.equal(weights[name], tensor.to(dtype).to(FLOAT32)), name


def test_sd2_uses_its_text_encoder_up_to_the_last_layer_but_one(files: dict, inputs: dict) -> None:
    (encoder,) = open_checkpoint(files["sd2"]).load_text_encoders(FLOAT32)
    stored = {name.split(".")[4] for name in load_file(files["sd2"]) if ".resblocks." in name}
    assert stored == {"0", "1", "2", "3"}
    assert encoder.config.num_hidden_layers == 3


def changed(
    tmp_path: Path,
    file: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    name: str = "changed.safetensors",
) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, tmp_path / name)
    return tmp_path / name


def test_ema_copies_and_training_leftovers_change_nothing(
    files: dict, tmp_path: Path, inputs: dict
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
            tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = torch.zeros_like(
                tensors[name]
            )
        tensors |= {
            "model_ema.decay": torch.tensor(0.99),
            "alphas_cumprod": torch.rand(1000),
            "first_stage_model.loss.logvar": torch.zeros(1),
        }
        tensors["cond_stage_model.logit_scale"] = torch.tensor(1.0)

    checkpoint = open_checkpoint(changed(tmp_path, files["sd1"], add))
    assert_same_answers(
        models_of(checkpoint.load(FLOAT32)), models_of(random_parts("sd1")), inputs, 1e-6
    )
    assert checkpoint.notes == []


def test_novelais_text_encoder_names_are_read(files: dict, tmp_path: Path, inputs: dict) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "transformer.text_model." in name]:
            tensors[name.replace("transformer.text_model.", "transformer.")] = tensors.pop(name)

    parts = open_checkpoint(changed(tmp_path, files["sd1"], rename)).load(FLOAT32)
    assert_same_answers(models_of(parts), models_of(random_parts("sd1")), inputs, 1e-6)


def test_missing_weights_are_named(files: dict, tmp_path: Path) -> None:
    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]

    with pytest.raises(
        CheckpointError,
        match=r"missing from .*changed.safetensors: model.diffusion_model.middle_block.0.in_layers.2"
        r".weight",
    ):
        open_checkpoint(changed(tmp_path, files["sd1"], remove)).load_unet(FLOAT32)

    def remove_many(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".out_layers." in name]:
            if not name.endswith("3.weight"):
                del tensors[name]

    with pytest.raises(
        CheckpointError,
        match=r"66 weights are missing from .* \(model.diffusion_model.*, \.\.\.\)",
    ):
        open_checkpoint(changed(tmp_path, files["sd1"], remove_many)).load_unet(FLOAT32)


def test_weights_of_an_unexpected_shape_are_named(files: dict, tmp_path: Path) -> None:
    def transpose(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.diffusion_model.time_embed.0.weight"] = (
            tensors["model.diffusion_model.time_embed.0.weight"].t().contiguous()
        )

    with pytest.raises(
        CheckpointError,
        match=r"time_embed.0.weight in .* has shape \[32, 128\] instead of \[128, 32\]",
    ):
        open_checkpoint(changed(tmp_path, files["sd1"], transpose)).load_unet(FLOAT32)


PARTS = {
    "UNet": "model.diffusion_model.output_blocks.3.1.proj_in.weight",
    "VAE": "first_stage_model.encoder.down.1.block.0.conv1.bias",
    "text encoder": (
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    ),
}


def with_number(file: Path, tmp_path: Path, name: str, value: float, dtype: torch.dtype) -> Path:
    """The file in another type, with one number of one tensor replaced by `value`."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {other: tensor.to(dtype) for other, tensor in tensors.items()}
        tensors[name].view(-1)[-1] = value

    return changed(tmp_path, file, spoil)


@pytest.mark.parametrize(
    ("part", "dtype", "value"),
    [
        *((part, torch.float32, math.nan) for part in PARTS),
        ("VAE", torch.float32, -math.inf),
        ("VAE", torch.float16, math.inf),
        ("UNet", torch.bfloat16, -math.nan),
        ("VAE", torch.float64, math.nan),
        ("text encoder", torch.float8_e4m3fn, math.nan),
        ("VAE", torch.float8_e5m2, -math.inf),
    ],
)
def test_a_part_with_a_number_that_is_not_finite_is_called_broken(
    tmp_path: Path, part: str, dtype: torch.dtype, value: float
) -> None:
    checkpoint = open_checkpoint(
        with_number(small_checkpoint(), tmp_path, PARTS[part], value, dtype)
    )
    load = {
        "UNet": checkpoint.load_unet,
        "VAE": checkpoint.load_vae,
        "text encoder": checkpoint.load_text_encoders,
    }[part]
    for read in (checkpoint.require_usable, load):
        with pytest.raises(CheckpointError) as caught:
            read(FLOAT32)
        path = tmp_path / "changed.safetensors"
        assert (
            str(caught.value)
            == f"the {part} in {path} is broken: {PARTS[part]} has NaN or infinite values"
        )


@pytest.mark.parametrize("dtype", [torch.float64, FLOAT32, torch.bfloat16])
def test_a_number_beyond_fp16_is_refused_for_fp16_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(
        with_number(small_checkpoint(), tmp_path, PARTS["UNet"], -65536, dtype)
    )
    checkpoint.require_usable(torch.bfloat16)
    for read in (checkpoint.require_usable, checkpoint.load_unet):
        with pytest.raises(
            CheckpointError, match=r"proj_in.weight in .* has values that are too large for fp16"
        ):
            read(torch.float16)
    checkpoint = open_checkpoint(
        with_number(small_checkpoint(), tmp_path, PARTS["UNet"], -65280, dtype)
    )
    assert (
        checkpoint.load_unet(torch.float16)
        .state_dict()["up_blocks.1.attentions.1.proj_in.weight"]
        .min()
        == -65280
    )


def test_a_broken_part_that_is_not_used_is_no_matter(tmp_path: Path) -> None:
    save_file(vae_tensors(small_checkpoint()), tmp_path / "vae.safetensors")
    broken = with_number(small_checkpoint(), tmp_path, PARTS["VAE"], math.nan, FLOAT32)
    open_checkpoint(broken, vae=tmp_path / "vae.safetensors").require_usable(FLOAT32)


def test_weights_the_unet_has_no_place_for_are_noted(files: dict, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight"
        ] = torch.zeros(2)

    checkpoint = open_checkpoint(changed(tmp_path, files["sd1"], add))
    checkpoint.load_unet(FLOAT32)
    checkpoint.load_unet(FLOAT32)
    assert [note.values["count"] for note in checkpoint.notes] == [1]
    assert "to_k_ip" in str(checkpoint.notes[0])


def test_a_file_that_shrinks_after_opening_is_named(tmp_path: Path) -> None:
    file = tiny_file(tmp_path)
    checkpoint = open_checkpoint(file)
    file.write_bytes(file.read_bytes()[:200_000])
    with pytest.raises(CheckpointError, match="ends in the middle of a tensor"):
        checkpoint.load_unet(FLOAT32)


def vae_tensors(file: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in load_file(file).items()
        if name.startswith("first_stage_model.")
    }


def vae_answer(vae: Any, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(vae.encode(inputs["image"]).latent_dist.mean).sample


@pytest.mark.parametrize(
    "kind",
    [
        "cut out of a checkpoint",
        "bare names",
        "diffusers names",
        "old diffusers names",
        "diffusers folder",
    ],
)
def test_a_vae_of_its_own_replaces_the_one_inside(
    files: dict, folders: dict, tmp_path: Path, kind: str, inputs: dict
) -> None:
    file = tmp_path / "vae.safetensors"
    tensors = {name: tensor * 0.5 for name, tensor in vae_tensors(files["sd1"]).items()}
    expected = open_checkpoint(
        changed(tmp_path, files["sd1"], lambda all_tensors: all_tensors.update(tensors))
    ).load_vae(FLOAT32)
    if kind == "cut out of a checkpoint":
        save_file(tensors, file)
    elif kind == "bare names":
        save_file(
            {name.removeprefix("first_stage_model."): tensor for name, tensor in tensors.items()},
            file,
        )
    elif kind == "diffusers names":
        save_file(expected.state_dict(), file)
    elif kind == "old diffusers names":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = dict(expected.state_dict())
        for name in [name for name in state if ".attentions." in name]:
            new_name = name
            for new, before in old.items():
                new_name = new_name.replace(f".{new}.", f".{before}.")
            state[new_name] = state.pop(name)
        save_file(state, file)
    else:
        file = tmp_path / "vae folder"
        expected.save_pretrained(file)
    checkpoint = open_checkpoint(files["sd1"], vae=file)
    vae = checkpoint.load_vae(FLOAT32)
    torch.testing.assert_close(
        vae_answer(vae, inputs), vae_answer(expected, inputs), rtol=1e-4, atol=1e-5
    )
    assert vae.config.scaling_factor == 0.18215
    assert not torch.allclose(vae_answer(vae, inputs), vae_answer(random_parts("sd1").vae, inputs))


MIXED = {"group_norm": "norm"}
ATTENTION_NAMES = {
    "CompVis layers, diffusers attention": ("mid.attn_1", {}),
    "CompVis layers, diffusers attention but its norm": ("mid.attn_1", MIXED),
    "CompVis layers, old diffusers attention": (
        "mid.attn_1",
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", **MIXED},
    ),
    "diffusers attention among CompVis layers": ("mid_block.attentions.0", {}),
}


@pytest.mark.parametrize("kind", ATTENTION_NAMES)
@pytest.mark.parametrize(
    ("linear", "prefix"), [(True, "first_stage_model."), (False, "")], ids=["linear", "1x1, bare"]
)
def test_a_vae_in_mixed_names_is_read(
    files: dict, tmp_path: Path, kind: str, prefix: str, linear: bool, inputs: dict
) -> None:
    place, leaves = ATTENTION_NAMES[kind]
    compvis = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    renamed = {}
    for name, tensor in vae_tensors(files["sd1"]).items():
        half, attention, inside = name.partition(".mid.attn_1.")
        if attention:
            leaf, end = inside.rsplit(".", 1)
            name = f"{half}.{place}.{leaves.get(compvis[leaf], compvis[leaf])}.{end}"
            tensor = tensor.flatten(1) if linear and tensor.ndim == 4 else tensor
        renamed[prefix + name.removeprefix("first_stage_model.")] = tensor.contiguous()
    save_file(renamed, tmp_path / "vae.safetensors")
    vae = open_checkpoint(files["sd1"], vae=tmp_path / "vae.safetensors").load_vae(FLOAT32)
    assert torch.equal(
        vae_answer(vae, inputs), vae_answer(open_checkpoint(files["sd1"]).load_vae(FLOAT32), inputs)
    )


def test_a_checkpoint_with_diffusers_vae_names_inside_is_read(
    files: dict, tmp_path: Path, inputs: dict
) -> None:
    expected = open_checkpoint(files["sd1"]).load_vae(FLOAT32)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in vae_tensors(files["sd1"]):
            del tensors[name]
        tensors |= {
            "first_stage_model." + name: tensor for name, tensor in expected.state_dict().items()
        }

    vae = open_checkpoint(changed(tmp_path, files["sd1"], rename)).load_vae(FLOAT32)
    assert torch.equal(vae_answer(vae, inputs), vae_answer(expected, inputs))


@pytest.mark.parametrize(
    ("base", "other"), [("sd1", "sdxl"), ("sd2", "sdxl"), ("sdxl", "sd1"), ("sdxl", "sd2")]
)
def test_a_vae_that_says_it_is_of_another_family_is_refused(
    files: dict, folders: dict, tmp_path: Path, base: str, other: str
) -> None:
    sentence = (
        "is one of SD1 or SD2, which does not fit an SDXL"
        if base == "sdxl"
        else "is one of SDXL, which does not fit a checkpoint of SD1"
    )
    architecture = {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-512",
        "sdxl": "stable-diffusion-xl-v1-base",
    }[other] + "/vae"
    save_file(
        vae_tensors(files[other]),
        tmp_path / "named.safetensors",
        {"modelspec.architecture": architecture},
    )
    for vae in (
        files[other],
        folders[other],
        folders[other] / "vae",
        tmp_path / "named.safetensors",
    ):
        with pytest.raises(CheckpointError, match=sentence):
            open_checkpoint(files[base], vae=vae)


def test_the_vae_of_another_checkpoint_of_the_family_is_taken(files: dict, folders: dict) -> None:
    for vae in (files["sd1"], folders["sd1"], folders["sd1"] / "vae"):
        assert (
            open_checkpoint(files["sd2"], vae=vae).load_vae(FLOAT32).config.scaling_factor
            == 0.18215
        )


def test_a_vae_setting_that_is_no_vae_is_named(files: dict, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds no VAE"):
        open_checkpoint(files["sd1"], vae=tmp_path / "x.safetensors")
    (tmp_path / "vae.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match=r"is a pickle \(.ckpt, .pt\)"):
        open_checkpoint(files["sd1"], vae=tmp_path / "vae.pt")


def test_a_checkpoint_without_vae_asks_for_one(files: dict, tmp_path: Path) -> None:
    def remove(tensors: dict[str, torch.Tensor]) -> None:
        for name in vae_tensors(files["sd1"]):
            del tensors[name]

    file = changed(tmp_path, files["sd1"], remove)
    with pytest.raises(CheckpointError, match="has no VAE"):
        open_checkpoint(file).load_vae(FLOAT32)
    save_file(vae_tensors(files["sd1"]), tmp_path / "vae.safetensors")
    assert (
        open_checkpoint(file, vae=tmp_path / "vae.safetensors")
        .load_vae(FLOAT32)
        .config.latent_channels
        == 4
    )


def test_the_schedule_is_what_the_file_says_unless_told_otherwise(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sdxl", prediction_type="v_prediction", zero_terminal_snr=True)
    assert open_checkpoint(file).schedule == NoiseSchedule(
        prediction_type="v_prediction", zero_terminal_snr=True
    )
    told = open_checkpoint(file, prediction_type="epsilon", zero_terminal_snr=False)
    assert told.schedule == NoiseSchedule(prediction_type="epsilon", zero_terminal_snr=False)


def test_zero_terminal_snr_with_epsilon_is_noted(files: dict) -> None:
    checkpoint = open_checkpoint(files["sd1"], zero_terminal_snr=True)
    assert checkpoint.schedule.zero_terminal_snr
    assert "zero_terminal_snr is on" in str(checkpoint.notes[0])


def test_a_narrow_sd2_checkpoint_that_says_nothing_is_taken_for_epsilon_with_a_note(
    files: dict,
) -> None:
    file = files["sd2"].with_name("silent.safetensors")
    save_file(load_file(files["sd2"]), file)
    assert detect_file(file).prediction_type is None
    checkpoint = open_checkpoint(file)
    assert checkpoint.schedule.prediction_type == "epsilon"
    assert ["epsilon is assumed" in str(note) for note in checkpoint.notes] == [True]
    assert (
        open_checkpoint(file, prediction_type="v_prediction").schedule.prediction_type
        == "v_prediction"
    )


@pytest.mark.parametrize(("answer", "is_v"), [(-2.0, True), (0.5, False), (-0.4, False)])
def test_a_dark_answer_to_a_bright_input_means_v_prediction(answer: float, is_v: bool) -> None:
    from tests.tiny import tiny_unet

    unet = tiny_unet("sd2")
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.constant_(unet.conv_out.bias, answer)
    assert answers_like_v_prediction(unet) is is_v


def test_folders_are_told_apart(folders: dict, tmp_path: Path) -> None:
    assert [detect_any(folders[family]).family.id for family in FAMILIES] == list(FAMILIES)
    with pytest.raises(CheckpointError, match=r"is a folder without model_index.json"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value.hint) == f"Name the file inside it: {tmp_path / 'model.safetensors'}"


def copy_folder(source: Path, target: Path) -> Path:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
    return target


def edit(file: Path, **values: Any) -> None:
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8"
    )


def test_the_folders_schedule_is_read(folders: dict, tmp_path: Path) -> None:
    folder = copy_folder(folders["sdxl"], tmp_path / "x")
    edit(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    assert open_checkpoint(folder).schedule == NoiseSchedule(
        prediction_type="v_prediction", zero_terminal_snr=True
    )


def test_a_folder_with_half_precision_files_only_is_read(folders: dict, tmp_path: Path) -> None:
    folder = copy_folder(folders["sd1"], tmp_path / "x")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(file.stem + ".fp16.safetensors"))
    assert open_checkpoint(folder).load_unet(FLOAT32).config.cross_attention_dim == 32


def test_weights_split_over_several_files_are_read(
    folders: dict, tmp_path: Path, inputs: dict
) -> None:
    folder = copy_folder(folders["sd1"], tmp_path / "x")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    random_parts("sd1").unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    assert_same_answers(
        models_of(open_checkpoint(folder).load(FLOAT32)),
        models_of(random_parts("sd1")),
        inputs,
        1e-6,
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda folder: edit(folder / "unet" / "config.json", in_channels=9),
            "is an inpainting checkpoint",
        ),
        (
            lambda folder: edit(folder / "unet" / "config.json", in_channels=8),
            "an instruct-pix2pix checkpoint",
        ),
        (
            lambda folder: edit(folder / "unet" / "config.json", time_cond_proj_dim=256),
            "is an LCM-distilled model",
        ),
        (
            lambda folder: edit(folder / "unet" / "config.json", class_embed_type="projection"),
            "is a model of an unknown kind",
        ),
        (
            lambda folder: edit(
                folder / "scheduler" / "scheduler_config.json", prediction_type="sample"
            ),
            "predicts sample, which is not supported",
        ),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "has no config.json"),
        (
            lambda folder: (folder / "unet" / "config.json").write_text("[", encoding="utf-8"),
            "cannot be read",
        ),
        (
            lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(),
            "holds no .safetensors weights",
        ),
        (
            lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
                folder / "vae" / "x.bin"
            ),
            r"as pickles \(.bin\)",
        ),
        (
            lambda folder: (folder / "unet").rename(folder / "transformer"),
            "is a StableDiffusionPipeline, which is not supported",
        ),
    ],
)
def test_each_unusable_folder_gets_its_own_sentence(
    folders: dict, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    folder = copy_folder(folders["sd1"], tmp_path / "x")
    change(folder)
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(folder)


def test_nothing_is_asked_of_the_network(files: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert open_checkpoint(files["sdxl"]).load(torch.bfloat16).family.id == "sdxl"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_the_layers_but_no_weights(files: dict, family: str) -> None:
    outline, whole = open_checkpoint(files[family]).outline(), random_parts(family)
    for one, other in [
        (outline.unet, whole.unet),
        *zip(outline.text_encoders, whole.text_encoders, strict=True),
    ]:
        assert [name for name, _ in one.named_modules()] == [
            name for name, _ in other.named_modules()
        ]
        assert all(parameter.is_meta for parameter in one.parameters())


@pytest.mark.parametrize("kept", ["same", "int8"])
def test_what_was_outlined_is_what_is_loaded_and_the_next_outline_is_empty(files, kept):
    checkpoint = open_checkpoint(files["sd1"])
    outline = checkpoint.outline().unet
    first, again = (checkpoint.load_unet(FLOAT32, kept=kept) for _ in range(2))
    assert first is outline and again is not first
    alone = open_checkpoint(files["sd1"]).load_unet(FLOAT32, kept=kept).state_dict()
    for one in (first, again):
        state = one.state_dict()
        assert state.keys() == alone.keys()
        assert all(torch.equal(state[name], alone[name]) for name in alone)
    assert all(parameter.is_meta for parameter in checkpoint.outline().unet.parameters())


@pytest.mark.parametrize("key", ["text_encoders", "tokenizers"])
def test_files_that_a_family_has_no_use_for_are_refused(tmp_path, key):
    asked = tmp_path if key == "tokenizers" else [tmp_path / "clip_l.safetensors"]
    with pytest.raises(CheckpointError, match=f"{key} is set, but checkpoints of SD1.5 need none"):
        open_checkpoint(tiny_file(tmp_path, "sd1", FLOAT32), **{key: asked})
