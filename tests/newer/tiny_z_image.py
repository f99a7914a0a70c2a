"""A tiny Z-Image in the files that a host has: made on the spot, with random weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lora_trainer.families.components.qwen3 import SPECIAL, build_qwen3
from lora_trainer.families.components.z_image import build_transformer
from tests.families import tiny_flux
from tests.newer import tiny_anima
from tests.scratch import scratch_folder

TRANSFORMER = {
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 40,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
}
LOUD = 4.0


@functools.cache
def models_of() -> dict[str, Any]:
    """transformer, qwen3, vae, as diffusers and transformers make them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "transformer": build_transformer(TRANSFORMER),
            "qwen3": build_qwen3({**tiny_anima.QWEN3, "num_hidden_layers": 3}),
            "vae": tiny_flux.build()["vae"],
        }
        for model in made.values():
            model.requires_grad_(False).eval()
        # a flow that is far off, so that there is something to learn
        made["transformer"].all_final_layer["2-1"].linear.weight *= LOUD
        torch.nn.init.normal_(made["transformer"].x_pad_token)
        torch.nn.init.normal_(made["transformer"].cap_pad_token)
    return made


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors under the published names: written anew, not with our tables."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        if ".attention.to_q." in name:
            rows = [state[name.replace("to_q", other)] for other in ("to_q", "to_k", "to_v")]
            found[name.replace("to_q", "qkv")] = torch.cat(rows)
            continue
        for ours, theirs in (
            ("all_x_embedder.2-1.", "x_embedder."),
            ("all_final_layer.2-1.", "final_layer."),
            ("attention.to_out.0.", "attention.out."),
            ("attention.norm_q.", "attention.q_norm."),
            ("attention.norm_k.", "attention.k_norm."),
        ):
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def tensors(prefix: str = "model.diffusion_model.") -> dict[str, torch.Tensor]:
    state = native(models_of()["transformer"].state_dict())
    return {prefix + name: tensor for name, tensor in state.items()}


def write(folder: Path, name: str = "z_image.safetensors") -> Path:
    """A WebUI's folder of models; returns the checkpoint."""
    made = models_of()
    for place in ("Stable-diffusion", "text_encoder/qwen3", "VAE"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "Stable-diffusion" / name
    tiny_anima.save(tensors(), checkpoint)
    tiny_anima.save(
        {f"model.{name}": tensor for name, tensor in made["qwen3"].state_dict().items()},
        folder / "text_encoder" / "qwen_3_4b.safetensors",
    )
    tiny_anima.save(tiny_flux.vae_tensors(made["vae"]), folder / "VAE" / "ae.safetensors")
    tokenizer().save(str(folder / "text_encoder" / "qwen3" / "tokenizer.json"))
    return checkpoint


def tokenizer() -> Tokenizer:
    made = tiny_anima.qwen3_tokenizer()
    made.add_special_tokens(list(SPECIAL))
    return made


@functools.cache
def written() -> Path:
    """The same, once a process."""
    return write(scratch_folder("z_image") / "models")


def write_full_size(folder: Path) -> Path:
    """Files of the published sizes without content (sparse), with the tiny tokenizer; returns the
    checkpoint.
    """
    path = tiny_flux.full_size(folder).with_name("z_image.safetensors")
    qwen3 = {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    with torch.device("meta"):
        transformer = native(build_transformer({}).state_dict())
        encoder = build_qwen3(qwen3).state_dict()
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in encoder.items()}
    tiny_flux.sparse(folder / "text_encoder" / "qwen_3_4b.safetensors", shapes)
    (folder / "text_encoder" / "qwen3").mkdir(exist_ok=True)
    tokenizer().save(str(folder / "text_encoder" / "qwen3" / "tokenizer.json"))
    return tiny_flux.sparse(path, {name: tuple(one.shape) for name, one in transformer.items()})
