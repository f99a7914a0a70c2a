"""A tiny FLUX.1 with its text encoders, VAE and tokenizer, made on the spot; and the header of one
of full size, without weights.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lora_trainer.checkpoint import names
from lora_trainer.checkpoint.header import BYTES_EACH
from tests.scratch import scratch_folder

CLIP_WIDTH, T5_WIDTH = 32, 48
PREFIX = "model.diffusion_model."
WORDS = "a red green blue orange purple black white yellow disc on zrb".split()
CONFIG = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": CLIP_WIDTH,
    "axes_dims_rope": (4, 14, 14),
}


def build(*, guided: bool = True, **changes: Any) -> dict[str, Any]:
    """Models by part; the same weights each time."""
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(**{**CONFIG, **changes}, guidance_embeds=guided)
    # what goes in comes out, with a constant that the blocks add: something that a LoRA can mend
    width = min(transformer.inner_dim, transformer.config.in_channels)
    for layer in (transformer.x_embedder, transformer.proj_out):
        layer.weight.data.zero_()[:width, :width] = torch.eye(width)[: layer.weight.shape[0]]
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        norm = getattr(block, "norm1", None) or block.norm
        norm.linear.bias.data += 1.0
        last = block.proj_out if hasattr(block, "proj_out") else block.ff.net[2]
        last.bias.data += torch.randn(last.bias.shape)
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=CLIP_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            vocab_size=49408,
            eos_token_id=49407,
            bos_token_id=49406,
            pad_token_id=49407,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS) + 4,
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    vae = AutoencoderKL(
        latent_channels=16,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    found = {"transformer": transformer, "clip": clip, "t5": t5, "vae": vae}
    return {name: model.eval().requires_grad_(False) for name, model in found.items()}


def tokenizer() -> Tokenizer:
    """A tokenizer.json of T5's kind, of few words."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    vocabulary += [(f"\u2581{word}", -2.0) for word in WORDS] + [("\u2581", -9.0)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return made


def native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors under the published names: written anew, not with our tables."""
    found: dict[str, torch.Tensor] = {}
    fused: dict[str, list[torch.Tensor]] = {}
    order = ("to_q", "to_k", "to_v", "proj_mlp")
    text = ("add_q_proj", "add_k_proj", "add_v_proj")
    outside = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    for embedder, name in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        for number, layer in ((1, "in"), (2, "out")):
            path = f"time_text_embed.{embedder}_embedder.linear_{number}"
            outside[path] = f"{name}_in.{layer}_layer"
    inside = {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
    }
    single = {
        "norm.linear": "modulation.lin",
        "proj_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    }
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in outside:
            if module == "norm_out.linear":
                tensor = torch.cat(tensor.chunk(2)[::-1])
            found[f"{outside[module]}.{kind}"] = tensor
            continue
        blocks, number, path = module.split(".", 2)
        is_double = blocks == "transformer_blocks"
        block = f"{'double' if is_double else 'single'}_blocks.{number}."
        renamed = (inside if is_double else single).get(path)
        if renamed is not None:
            found[f"{block}{renamed}.{'scale' if 'norm.' in renamed else kind}"] = tensor
            continue
        layer = path.removeprefix("attn.")
        target = "linear1"
        if is_double:
            target = "img_attn.qkv" if layer in order else "txt_attn.qkv"
        place = order.index(layer) if layer in order else text.index(layer)
        fused.setdefault(f"{block}{target}.{kind}", [torch.empty(0)] * 4)[place] = tensor
    return {**found, **{name: torch.cat(tensors) for name, tensors in fused.items()}}


def vae_tensors(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    modules = names.vae_modules(vae.config)
    stored = {name: names.stored_in_vae(name, modules, prefix="") for name in vae.state_dict()}
    return {
        stored[name].name: tensor[:, :, None, None] if stored[name].form != "same" else tensor
        for name, tensor in vae.state_dict().items()
    }


def write(folder: Path, *, prefix: str = PREFIX, guided: bool = True, **changes: Any) -> Path:
    """A models folder as a WebUI has it. Returns the checkpoint's path."""
    made = build(guided=guided, **changes)
    for name in ("Stable-diffusion", "text_encoder/t5", "VAE"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "Stable-diffusion" / "flux-tiny.safetensors"
    tensors = native(made["transformer"].state_dict())
    metadata = {"modelspec.resolution": "64x64"}
    save_file({prefix + k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    save_file(made["clip"].state_dict(), folder / "text_encoder/clip_l.safetensors")
    t5 = {k: v for k, v in made["t5"].state_dict().items() if "embed_tokens" not in k}
    save_file(t5, folder / "text_encoder/t5xxl_fp16.safetensors")
    save_file(
        {k: v.contiguous() for k, v in vae_tensors(made["vae"]).items()},
        folder / "VAE/ae.safetensors",
    )
    tokenizer().save(str(folder / "text_encoder/t5/tokenizer.json"))
    return path


@cache
def tiny_flux() -> Path:
    """The checkpoint of a models folder that is made once a test session."""
    return write(scratch_folder("tiny-flux"))


def sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A file with this header and no weights: a hole in the disk."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = prod(shape) * BYTES_EACH[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def full_size(folder: Path) -> Path:
    """A models folder of full size without weights: the published shapes."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072))
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )
        vae = AutoencoderKL(
            latent_channels=16,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        tensors = native(transformer.state_dict())
        shapes = {f"{PREFIX}{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
        ae = {name: tuple(tensor.shape) for name, tensor in vae_tensors(vae).items()}
    sparse(folder / "VAE/ae.safetensors", ae, "F32")
    for name, model in (("clip_l", clip), ("t5xxl_fp16", t5)):
        own = {k: tuple(v.shape) for k, v in model.state_dict().items() if "embed_tokens" not in k}
        sparse(folder / f"text_encoder/{name}.safetensors", own, "F16")
    (folder / "text_encoder/t5").mkdir(exist_ok=True)
    tokenizer().save(str(folder / "text_encoder/t5/tokenizer.json"))
    return sparse(folder / "Stable-diffusion/flux1-dev.safetensors", shapes)
