"""Files for the embedded checkpoint in a real WebUI: the checkpoint, its sidecar NAME.yaml, and a
folder with the text encoder's configuration.

Without a sidecar a WebUI assumes one of the usual sizes. A1111 and reForge read NAME.yaml; its
`version` is the text encoder's folder with what `openai/clip-vit-large-patch14` would have:
configuration and vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_trainer import files
from lora_trainer.checkpoint.load import Checkpoint, open_checkpoint
from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.demo import EMBEDDED


def write_host_files(folder: Path, name: str = "drawn-world", checkpoint: Path = EMBEDDED) -> Path:
    """Write the checkpoint and its files into `folder` (models/Stable-diffusion). Returns the
    checkpoint's path. The sidecar has the text encoder's absolute path.
    """
    target = folder / f"{name}.safetensors"
    files.write_bytes(target, checkpoint.read_bytes())
    opened = open_checkpoint(target)
    encoder_folder = folder / f"{name}-text-encoder"
    _write_text_encoder(opened, encoder_folder)
    files.write_text(
        target.with_suffix(".yaml"),
        yaml.safe_dump(
            host_config(opened, encoder_folder.resolve()), sort_keys=False, allow_unicode=True
        ),
    )
    return target


def host_config(checkpoint: Checkpoint, encoder_folder: Path) -> dict[str, Any]:
    """The WebUI's configuration of an SD1 checkpoint whose widths are whole multiples of the
    first.
    """
    assert checkpoint.vae is not None
    schedule = checkpoint.schedule
    assert isinstance(schedule, NoiseSchedule), "SD1 is a diffusion model"
    return {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": schedule.beta_start,
                "linear_end": schedule.beta_end,
                "num_timesteps_cond": 1,
                "log_every_t": 200,
                "timesteps": schedule.step_count,
                "first_stage_key": "jpg",
                "cond_stage_key": "txt",
                "image_size": 8,
                "channels": 4,
                "cond_stage_trainable": False,
                "conditioning_key": "crossattn",
                "monitor": "val/loss_simple_ema",
                "scale_factor": checkpoint.vae.config["scaling_factor"],
                "use_ema": False,
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": _unet(checkpoint.unet.config),
                },
                "first_stage_config": {
                    "target": "ldm.models.autoencoder.AutoencoderKL",
                    "params": _vae(checkpoint.vae.config),
                },
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                    "params": {"version": encoder_folder.as_posix()},
                },
            },
        }
    }


def _unet(config: Mapping[str, Any]) -> dict[str, Any]:
    channels = config["block_out_channels"]
    attention = [
        2**level
        for level, block in enumerate(config["down_block_types"])
        if block.startswith("CrossAttn")
    ]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "attention_resolutions": attention,
        "num_res_blocks": config["layers_per_block"],
        "channel_mult": [width // channels[0] for width in channels],
        "num_heads": 8,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae(config: Mapping[str, Any]) -> dict[str, Any]:
    channels = config["block_out_channels"]
    return {
        "embed_dim": config["latent_channels"],
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": config["latent_channels"],
            "resolution": 64,
            "in_channels": 3,
            "out_ch": 3,
            "ch": channels[0],
            "ch_mult": [width // channels[0] for width in channels],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }


def _write_text_encoder(checkpoint: Checkpoint, folder: Path) -> None:
    config = dict(checkpoint.text_encoders[0].config) | {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
    }
    files.write_text(folder / "config.json", json.dumps(config, indent=2))
    # only what the host's transformers 4.30 reads; newer versions write more
    files.write_text(
        folder / "tokenizer_config.json",
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}),
    )
    with tempfile.TemporaryDirectory(prefix="lora-trainer-") as scratch:
        for written in checkpoint.tokenizers()[0].save_vocabulary(scratch):
            files.write_bytes(folder / Path(written).name, Path(written).read_bytes())
