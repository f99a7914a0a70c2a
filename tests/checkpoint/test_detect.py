"""What a checkpoint is, told by its header."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.checkpoint.detect import Sidecar, detect, detect_file, read_sidecar
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.errors import CheckpointError
from tests.checkpoint.samples import FAMILIES, full_shapes, header_of, tiny_file

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    return {family: full_shapes(family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_full_size_checkpoints_is_found(shapes: dict, family: str) -> None:
    detected = detect(header_of(shapes[family]))
    assert (detected.family.id, detected.has_vae) == (family, True)
    assert detected.prediction_type == {"sd1": "epsilon", "sd2": None, "sdxl": "epsilon"}[family]
    assert not detected.zero_terminal_snr


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_tiny_checkpoints_is_found(tmp_path: Path, family: str) -> None:
    assert detect_any(tiny_file(tmp_path, family)).family.id == family


def test_a_text_encoder_under_other_names_is_found(shapes: dict) -> None:
    novelai = {
        name.replace("transformer.text_model.", "transformer."): shape
        for name, shape in shapes["sd1"].items()
    }
    assert detect(header_of(novelai)).family.id == "sd1"
    assert detect(header_of(novelai)).text_encoders[0].prefix == "cond_stage_model.transformer."
    turbo = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): shape
        for name, shape in shapes["sd2"].items()
    }
    assert detect(header_of(turbo)).family.id == "sd2"
    assert detect(header_of(turbo)).text_encoders[0].prefix == "conditioner.embedders.0.model."


def test_marker_tensors_mean_v_prediction_and_zero_terminal_snr(shapes: dict) -> None:
    detected = detect(header_of(shapes["sdxl"] | {"v_pred": (0,), "ztsnr": (0,)}))
    assert (detected.prediction_type, detected.zero_terminal_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "v_prediction"}, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        (
            {
                "modelspec.prediction_type": "epsilon",
                "modelspec.architecture": "stable-diffusion-v2-512",
            },
            "epsilon",
        ),
        ({"modelspec.title": "something"}, None),
    ],
)
def test_the_metadata_tells_what_sd2_names_cannot(
    shapes: dict, metadata: dict, found: str | None
) -> None:
    assert detect(header_of(shapes["sd2"], metadata=metadata)).prediction_type == found


def test_the_sidecar_is_obeyed_as_the_webui_obeys_it(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd1")
    assert read_sidecar(file) is None
    file.with_suffix(".yaml").write_text(
        "model:\n  params:\n    parameterization: v\n    linear_start: 0.001\n    linear_end:"
        " 0.02\n",
        encoding="utf-8",
    )
    assert read_sidecar(file) == Sidecar(
        prediction_type="v_prediction", beta_start=0.001, beta_end=0.02
    )
    detected = detect_file(file)
    assert detected.prediction_type == "v_prediction"
    assert (detected.beta_start, detected.beta_end) == (0.001, 0.02)


def test_the_sidecar_of_sgm_models_is_understood(tmp_path: Path) -> None:
    sgm = (
        "model: {params: {denoiser_config: {params: {scaling_config: {target:"
        " sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}}}}"
    )
    (tmp_path / "x.yaml").write_text(sgm, encoding="utf-8")
    assert read_sidecar(tmp_path / "x.safetensors") == Sidecar(prediction_type="v_prediction")


def test_a_sidecar_without_v_means_epsilon_for_sd2(shapes: dict) -> None:
    detected = detect(header_of(shapes["sd2"]), Sidecar(prediction_type="epsilon"))
    assert detected.prediction_type == "epsilon"


@pytest.mark.parametrize("content", ["just a note", "model:\n  - 1", "a: [", "model: {params: 3}"])
def test_a_sidecar_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"x\.yaml is not a WebUI model configuration"):
        read_sidecar(tmp_path / "x.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_written_checkpoint_says_what_it_predicts(
    tmp_path: Path, family: str, prediction_type: str
) -> None:
    file = tiny_file(
        tmp_path,
        family,
        torch.float16,
        prediction_type=prediction_type,
        zero_terminal_snr=prediction_type == "v_prediction",
    )
    detected = detect_file(file)
    assert (detected.prediction_type, detected.zero_terminal_snr) == (
        prediction_type,
        prediction_type == "v_prediction",
    )


OTHER_FILES = {
    "a LoRA, not a checkpoint": {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (8, 1280)
    },
    "a LoRA, not": {"base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight": (8, 320)},
    "a textual-inversion embedding": {"emb_params": (4, 768)},
    "a textual-inversion": {"clip_l": (4, 768), "clip_g": (4, 1280)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a ControlNet, not": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "an AnimateDiff motion module": {
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)
    },
    "a Stable Diffusion 3 model": {
        UNET + "x_embedder.proj.weight": (1536, 16, 2, 2),
        UNET + "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
    },
    "an AuraFlow model": {"joint_transformer_blocks.0.attn.to_q.weight": (3072, 3072)},
    "an AuraFlow": {UNET + "double_layers.0.attn.w1q.weight": (3072, 3072)},
    "a HunyuanVideo model": {
        UNET + "img_in.proj.weight": (3072, 16, 1, 2, 2),
        UNET + "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        UNET + "double_blocks.0.img_attn.norm.key_norm.weight": (128,),
        UNET + "vector_in.in_layer.weight": (3072, 768),
        UNET + "txt_in.individual_token_refiner.blocks.0.mlp.0.weight": (12288, 3072),
    },
    "a FLUX model": {UNET + "double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "a FLUX model of": {"double_blocks.0.img_attn.qkv.weight": (9216, 3072)},
    "a FLUX.2 model": {"double_stream_modulation_img.lin.weight": (18432, 3072)},
    "a Chroma model": {"distilled_guidance_layer.in_proj.weight": (5120, 64)},
    "a Stable Cascade model": {"clip_txt_pooled_mapper.weight": (8192, 1280)},
    "a diffusion transformer": {"adaln_single.linear.weight": (6912, 1152)},
    "a Stable Video Diffusion model": {UNET + "input_blocks.1.1.time_stack.0.norm1.weight": (320,)},
    "a UNet alone": {"input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a UNet alone, in diffusers' names": {"conv_in.weight": (320, 4, 3, 3)},
    "the EMA copy of a UNet alone": {
        "model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3)
    },
    "a VAE alone": {"decoder.conv_in.weight": (512, 4, 3, 3)},
    "a VAE alone, not": {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)},
    "a VAE": {"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1), "conv1.weight": (32, 32)},
    "a text encoder alone": {"text_model.encoder.layers.0.layer_norm1.weight": (768,)},
    "a model of an unknown kind (it holds fc.weight)": {"fc.weight": (10, 10)},
}


@pytest.mark.parametrize("sentence", OTHER_FILES)
def test_what_is_no_checkpoint_is_named(sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        detect(header_of(OTHER_FILES[sentence], path="dir/name.safetensors"))
    assert str(caught.value).startswith(f"{Path('dir/name.safetensors')} is {sentence}")
    assert str(caught.value.hint)


CHANGES = {
    "is an inpainting checkpoint (9 input channels)": {
        UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)
    },
    "is an instruct-pix2pix checkpoint": {UNET + "input_blocks.0.0.weight": (320, 8, 3, 3)},
    "is a depth-to-image checkpoint": {UNET + "input_blocks.0.0.weight": (320, 5, 3, 3)},
    "has 7 input channels instead of 4": {UNET + "input_blocks.0.0.weight": (320, 7, 3, 3)},
    "is an unCLIP checkpoint": {"embedder.model.ln_final.weight": (768,)},
    "is a depth-to-image": {"depth_model.model.pretrained.act_postprocess3.0.project.0.bias": (1,)},
    "is an AltDiffusion checkpoint": {
        "cond_stage_model.roberta.embeddings.word_embeddings.weight": (1, 1)
    },
    "is an EDM checkpoint": {"edm_mean": (4,), "edm_std": (4,)},
    "is an LCM-distilled model": {UNET + "time_embed.cond_proj.weight": (320, 256)},
    "is quantised": {UNET + "input_blocks.1.0.in_layers.2.scale_weight": (1,)},
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_checkpoint_of_a_kind_that_cannot_be_trained_on_is_named(
    shapes: dict, sentence: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        detect(header_of(shapes["sd1"] | CHANGES[sentence]))
    assert sentence in str(caught.value)
    assert str(caught.value.hint)


def test_the_sdxl_refiner_is_named(shapes: dict) -> None:
    refiner = {
        name.replace("conditioner.embedders.1.", "conditioner.embedders.0."): shape
        for name, shape in shapes["sdxl"].items()
        if "embedders.0" not in name
    }
    with pytest.raises(CheckpointError, match="is an SDXL refiner, which cannot be used alone"):
        detect(header_of(refiner))


def test_a_checkpoint_without_its_text_encoder_is_named(shapes: dict) -> None:
    with pytest.raises(CheckpointError, match="has no text encoder"):
        detect(
            header_of(
                {
                    name: shape
                    for name, shape in shapes["sd1"].items()
                    if not name.startswith("cond_stage_model.")
                }
            )
        )


def test_quantised_weights_are_named(shapes: dict) -> None:
    with pytest.raises(CheckpointError, match=r"are quantised \(U8\)"):
        detect(header_of(shapes["sd1"], dtype="U8"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_all_floating_point_types_are_accepted(shapes: dict, dtype: str) -> None:
    assert detect(header_of(shapes["sd1"], dtype=dtype)).family.id == "sd1"


@pytest.mark.parametrize(
    ("stated", "side"),
    [
        ("512x512", 512),
        ("1024x1024", 1024),
        ("768x1344", 1016),
        ("1024", 1024),
        ("512, 768", 624),
        ("(512, 768)", 624),
        ("512 X 768", 624),
        ("large", None),
        ("", None),
        ("9" * 5000 + "x512", None),
        ("0x0", None),
        ("-512x512x512", None),
        ("x" * 100_000, None),
        ("inf", None),
    ],
)
def test_the_size_of_the_pictures_is_read_from_the_metadata(
    shapes: dict, stated: str, side: int | None
) -> None:
    assert (
        detect(header_of(shapes["sd1"], metadata={"modelspec.resolution": stated})).resolution
        == side
    )


@pytest.mark.parametrize(
    "content",
    [
        "[" * 5000,
        "model: {params: {linear_start: 1" + "0" * 400 + "}}",
        "model: {params: {linear_start: .nan}}",
    ],
)
def test_a_sidecar_of_any_kind_is_read_or_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(content)
    try:
        sidecar = read_sidecar(tmp_path / "x.safetensors")
    except CheckpointError as error:
        assert "is not a WebUI model configuration" in str(error)
    else:
        assert sidecar is not None and sidecar.beta_start is None


@pytest.mark.parametrize(
    "listed",
    [
        "[]",
        "{}",
        '{"a": 1}',
        '{"a": ["x"]}',
        '{"a": "../../secret.safetensors"}',
        '{"a": "/etc/passwd"}',
        "[" * 5000,
    ],
)
def test_an_index_that_names_no_files_of_its_folder_is_told(listed: str, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        '{"weight_map": ' + listed + "}"
    )
    with pytest.raises(CheckpointError, match=r"does not name the model's files|cannot be read"):
        detect_any(tmp_path)
