"""What a real WebUI needs beside the embedded checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CLIPTextConfig, CLIPTokenizer

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.families.stable_diffusion import SD1
from tests.checkpoint.write import write_checkpoint
from tests.demo.host_files import write_host_files
from tests.embedded.make_unet import new_text_encoder, new_unet
from tests.embedded.make_vae import new_vae


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("Stable diffusion ü")
    parts = Parts(
        family=SD1,
        schedule=NoiseSchedule(),
        unet=new_unet(),
        vae=new_vae(),
        text_encoders=(new_text_encoder(),),
    )
    checkpoint = write_checkpoint(parts, folder / "made.safetensors", torch.float16)
    return write_host_files(folder / "models", "small world", checkpoint)


def test_the_checkpoint_its_sidecar_and_its_text_encoder_lie_together(written: Path) -> None:
    names = {
        path.relative_to(written.parent).as_posix()
        for path in written.parent.rglob("*")
        if path.is_file()
    }
    assert names == {
        "small world.safetensors",
        "small world.yaml",
        "small world-text-encoder/config.json",
        "small world-text-encoder/tokenizer_config.json",
        "small world-text-encoder/vocab.json",
        "small world-text-encoder/merges.txt",
    }


def test_the_sidecar_describes_the_models_in_the_file(written: Path) -> None:
    params = yaml.safe_load(written.with_suffix(".yaml").read_text(encoding="utf-8"))["model"][
        "params"
    ]
    unet, vae = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    assert (
        unet["model_channels"],
        unet["channel_mult"],
        unet["attention_resolutions"],
        unet["num_res_blocks"],
        unet["context_dim"],
    ) == (96, [1, 1], [1, 2], 1, 48)
    assert (vae["ch"], vae["ch_mult"], vae["num_res_blocks"]) == (96, [1, 1, 1, 1], 1)
    assert (params["scale_factor"], params["linear_start"], params["linear_end"]) == (
        0.18215,
        0.00085,
        0.012,
    )
    assert (
        Path(params["cond_stage_config"]["params"]["version"])
        == (written.parent / "small world-text-encoder").resolve()
    )


def test_the_text_encoders_folder_gives_its_widths_and_the_same_tokens(written: Path) -> None:
    folder = written.parent / "small world-text-encoder"
    config = CLIPTextConfig.from_pretrained(folder)
    assert (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_act,
    ) == (48, 3, 1, "quick_gelu")
    words = "a big red star, sumiwash style, 星"
    assert (
        CLIPTokenizer.from_pretrained(folder)(words, padding="max_length").input_ids
        == SD1.tokenizers()[0](words, padding="max_length").input_ids
    )
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 49408


def test_the_checkpoint_still_opens_with_its_sidecar(written: Path) -> None:
    opened = open_checkpoint(written)
    assert opened.family is SD1
    assert opened.schedule == NoiseSchedule()
