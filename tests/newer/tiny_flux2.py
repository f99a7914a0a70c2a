"""A tiny FLUX.2 klein in the files that a host has: made on the spot, with random weights; and the
headers of full-size ones, without weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from lora_trainer.checkpoint import names
from lora_trainer.families.components.flux2 import build_transformer, build_vae
from lora_trainer.families.components.qwen3 import build_qwen3
from tests.families import tiny_flux
from tests.newer import tiny_anima, tiny_z_image
from tests.scratch import scratch_folder

PREFIX = "model.diffusion_model."
WIDTH = 16
TRANSFORMER: dict[str, Any] = {
    "in_channels": 128,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 3 * WIDTH,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": [4, 4, 4, 4],
    "guidance_embeds": False,
}
QWEN3 = {
    "vocab_size": 330,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 30,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_theta": 1_000_000.0,
}
VAE = {
    "block_out_channels": (16, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "sample_size": 64,
}
LOUD = 7.0
FULL = {
    "4B": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "9B": {
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
}
FULL_QWEN3 = {
    "4B": {"hidden_size": 2560, "intermediate_size": 9728},
    "9B": {"hidden_size": 4096, "intermediate_size": 12288},
}
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.to_out.0.weight": "img_attn.proj.weight",
    "ff.linear_in.weight": "img_mlp.0.weight",
    "ff.linear_out.weight": "img_mlp.2.weight",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_add_out.weight": "txt_attn.proj.weight",
    "ff_context.linear_in.weight": "txt_mlp.0.weight",
    "ff_context.linear_out.weight": "txt_mlp.2.weight",
}
SINGLE = {
    "attn.to_qkv_mlp_proj.weight": "linear1.weight",
    "attn.to_out.weight": "linear2.weight",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}


@functools.cache
def models_of() -> dict[str, Any]:
    """transformer, qwen3, vae, as diffusers and transformers make them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "transformer": build_transformer(TRANSFORMER),
            "qwen3": build_qwen3(QWEN3),
            "vae": build_vae(VAE),
        }
        for model in made.values():
            model.requires_grad_(False).eval()
        # a flow that is far off, so that there is something to learn
        made["transformer"].proj_out.weight *= LOUD
        made["vae"].bn.running_mean.normal_(0.0, 0.3)
        made["vae"].bn.running_var.uniform_(0.5, 2.0)
    return made


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors under the published names: written anew, not with our tables."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        if module in OUTSIDE:
            if module == "norm_out.linear":
                tensor = torch.cat(tensor.chunk(2)[::-1])
            found[f"{OUTSIDE[module]}.weight"] = tensor
            continue
        blocks, number, inside = name.split(".", 2)
        if blocks == "single_transformer_blocks":
            found[f"single_blocks.{number}.{SINGLE[inside]}"] = tensor
        elif inside in INSIDE:
            found[f"double_blocks.{number}.{INSIDE[inside]}"] = tensor
    for name in state:
        for first, others, kind in (
            ("attn.to_q.", ("attn.to_k.", "attn.to_v."), "img"),
            ("attn.add_q_proj.", ("attn.add_k_proj.", "attn.add_v_proj."), "txt"),
        ):
            if f".{first}" in name:
                rows = [state[name.replace(first, one)] for one in (first, *others)]
                number = name.split(".")[1]
                found[f"double_blocks.{number}.{kind}_attn.qkv.weight"] = torch.cat(rows)
    return found


def tensors(prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    state = native(models_of()["transformer"].state_dict())
    return {prefix + name: tensor for name, tensor in state.items()}


def vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    """Under the published names: the quantisation layers are inside encoder and decoder."""
    modules = names.vae_modules(vae.config)
    found = {"bn.num_batches_tracked": torch.tensor(1)}
    for name, tensor in vae.state_dict().items():
        if name.startswith("bn."):
            found[name] = tensor
        elif "quant_conv" in name:
            found[("decoder." if name.startswith("post") else "encoder.") + name] = tensor
        else:
            stored = names.stored_in_vae(name, modules, prefix="")
            found[stored.name] = tensor if stored.form == "same" else tensor[:, :, None, None]
    return found


def write(folder: Path, name: str = "flux-2-klein-base-4b.safetensors") -> Path:
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
    tiny_anima.save(vae_tensors(made["vae"]), folder / "VAE" / "flux2-vae.safetensors")
    tiny_z_image.tokenizer().save(str(folder / "text_encoder" / "qwen3" / "tokenizer.json"))
    return checkpoint


@functools.cache
def written() -> Path:
    """The same, once a process."""
    return write(scratch_folder("klein") / "models")


def full_transformer(size: str, **changes: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a checkpoint of full size."""
    with torch.device("meta"):
        state = native(build_transformer({**FULL[size], **changes}).state_dict())
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def write_full_size(folder: Path, size: str, **changes: int) -> Path:
    """Files of the published sizes without content (sparse), with the tiny tokenizer; returns the
    checkpoint. changes: of the transformer's configuration.
    """
    for place in ("text_encoder/qwen3", "VAE"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        encoder = build_qwen3(
            {
                "vocab_size": 151936,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                **FULL_QWEN3[size],
            }
        ).state_dict()
        vae = {name: one for name, one in vae_tensors(build_vae({})).items() if "num_b" not in name}
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in encoder.items()}
    tiny_flux.sparse(folder / "text_encoder" / "qwen_3.safetensors", shapes)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.items()}
    tiny_flux.sparse(folder / "VAE" / "flux2-vae.safetensors", shapes, "F32")
    tiny_z_image.tokenizer().save(str(folder / "text_encoder" / "qwen3" / "tokenizer.json"))
    name = f"flux-2-klein-base-{size.lower()}.safetensors"
    return tiny_flux.sparse(folder / "Stable-diffusion" / name, full_transformer(size, **changes))
