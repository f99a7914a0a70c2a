"""Writing a checkpoint in WebUI format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.checkpoint.header import read_header
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import NoiseSchedule
from tests.checkpoint.samples import FAMILIES, random_parts, tiny_file
from tests.checkpoint.write import write_checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_is_read_back_bit_for_bit(tmp_path: Path, family: str) -> None:
    written, read = (
        random_parts(family),
        open_checkpoint(tiny_file(tmp_path, family)).load(torch.float32),
    )
    models = [
        (written.unet, read.unet),
        (written.vae, read.vae),
        *zip(written.text_encoders, read.text_encoders, strict=True),
    ]
    for one, other in models:
        assert type(one) is type(other)
        before, after = one.state_dict(), other.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_survive_the_file(tmp_path: Path, family: str) -> None:
    written, read = (
        random_parts(family),
        open_checkpoint(tiny_file(tmp_path, family)).load(torch.float32),
    )
    unet_keys = (
        "block_out_channels",
        "attention_head_dim",
        "cross_attention_dim",
        "norm_num_groups",
        "use_linear_projection",
        "layers_per_block",
    )
    for key in (
        *unet_keys,
        "down_block_types",
        "up_block_types",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    ):
        assert _plain(read.unet.config[key]) == _plain(written.unet.config[key]), key
    for key in ("block_out_channels", "norm_num_groups", "layers_per_block", "scaling_factor"):
        assert _plain(read.vae.config[key]) == _plain(written.vae.config[key]), key
    for one, other in zip(written.text_encoders, read.text_encoders, strict=True):
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "hidden_act",
            "eos_token_id",
            "projection_dim",
        ):
            assert getattr(other.config, key) == getattr(one.config, key), key


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_the_file_is_as_real_ones_are(tmp_path: Path) -> None:
    header = read_header(tiny_file(tmp_path, "sd1", torch.float16))
    positions = header.tensors.pop(
        "cond_stage_model.transformer.text_model.embeddings.position_ids"
    )  # type: ignore[attr-defined]
    assert (positions.dtype, positions.shape) == ("I64", (1, 77))
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    assert header.shape("first_stage_model.encoder.mid.attn_1.q.weight") == (32, 32, 1, 1)
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert header.metadata["modelspec.prediction_type"] == "epsilon"


def test_query_key_and_value_become_one_tensor_for_open_clip(tmp_path: Path) -> None:
    tensors = load_file(tiny_file(tmp_path, "sd2"))
    attention = random_parts("sd2").text_encoders[0].text_model.encoder.layers[1].self_attn
    expected = torch.cat(
        [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    )
    assert torch.equal(
        tensors["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"], expected
    )


def test_sd2s_unused_last_layer_is_there_and_passes_on_what_it_gets(tmp_path: Path) -> None:
    last = {
        name: tensor
        for name, tensor in load_file(tiny_file(tmp_path, "sd2")).items()
        if ".resblocks.3." in name
    }
    assert len(last) == 12
    assert all(not tensor.any() for tensor in last.values())


def test_the_projection_of_sdxl_is_transposed(tmp_path: Path) -> None:
    tensors = load_file(tiny_file(tmp_path, "sdxl"))
    assert torch.equal(
        tensors["conditioner.embedders.1.model.text_projection"],
        random_parts("sdxl").text_encoders[1].text_projection.weight.t(),
    )


def test_the_schedule_is_written_as_markers_and_metadata(tmp_path: Path) -> None:
    header = read_header(
        tiny_file(tmp_path, "sdxl", prediction_type="v_prediction", zero_terminal_snr=True)
    )
    assert (header.shape("v_pred"), header.shape("ztsnr")) == ((0,), (0,))
    assert header.metadata["modelspec.prediction_type"] == "v"
    plain = read_header(tiny_file(tmp_path, "sdxl"))
    assert (plain.shape("v_pred"), plain.shape("ztsnr")) == (None, None)
    assert (
        read_header(tiny_file(tmp_path, "sd2", prediction_type="v_prediction")).metadata[
            "modelspec.architecture"
        ]
        == "stable-diffusion-v2-768-v"
    )


def test_own_metadata_is_added(tmp_path: Path) -> None:
    file = write_checkpoint(
        random_parts("sd1"),
        tmp_path / "x.safetensors",
        torch.float16,
        metadata={"modelspec.title": "演示"},
    )
    assert read_header(file).metadata["modelspec.title"] == "演示"


def test_a_part_by_itself_is_written(tmp_path: Path) -> None:
    parts = replace(random_parts("sd1"), unet=None, text_encoders=(), schedule=NoiseSchedule())
    header = read_header(write_checkpoint(parts, tmp_path / "vae.safetensors", torch.float32))
    assert {name.split(".")[0] for name in header.tensors} == {"first_stage_model"}


def test_half_a_file_never_bears_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_file(tmp_path)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_file(tmp_path, "sd1", torch.float16)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
