"""A tiny Anima in the files that a host has: made on the spot, with random weights."""

from __future__ import annotations

import functools
import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lora_trainer.families import anima
from lora_trainer.families.components.anima import build_conditioner, build_transformer
from lora_trainer.families.components.qwen3 import build_qwen3
from lora_trainer.families.components.qwen_image import build_vae
from tests.families.promises import save
from tests.scratch import scratch_folder

TRANSFORMER = {
    "in_channels": 17,
    "out_channels": 16,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
    "adaln_lora_dim": 8,
    "rope_scale": (1.0, 4.0, 4.0),
    "concat_padding_mask": False,
    "extra_pos_embed_type": None,
}
FULL = {
    **TRANSFORMER,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
}
CONDITIONER = {
    "source_dim": 40,
    "target_dim": 32,
    "model_dim": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2.0,
    "target_vocab_size": 64,
    "min_sequence_length": 1,
}
QWEN3 = {
    "vocab_size": 330,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "rope_theta": 1_000_000.0,
}
GATE, LOUD = 30.0, 4.0
WORDS = "a big zorbl in the center, blue background, on the right with yellow and red".split()


@functools.cache
def models_of(seed: int = 0) -> dict[str, Any]:
    """transformer, conditioner, qwen3, vae, as diffusers and transformers make them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {
            "transformer": build_transformer(TRANSFORMER),
            "conditioner": build_conditioner(CONDITIONER),
            "qwen3": build_qwen3(QWEN3),
            "vae": build_vae({"base_dim": 8}),
        }
        for model in made.values():
            model.requires_grad_(False).eval()
        # gates of about one, so that the blocks decide on the flow, and a flow that is far off
        for block in made["transformer"].transformer_blocks:
            for norm in (block.norm1, block.norm2, block.norm3):
                norm.linear_2.weight *= GATE
        made["transformer"].proj_out.weight *= LOUD
    return made


def native_name(name: str, config: dict[str, Any] = TRANSFORMER) -> str:
    """The published name of a tensor of the transformer."""
    module, _, kind = name.rpartition(".")
    return f"{anima.ANIMA.native_layers(config)[module].path}.{kind}"


def tensors(prefix: str = "net.") -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint, by their published names."""
    made = models_of()
    found = {
        prefix + native_name(name): tensor
        for name, tensor in made["transformer"].state_dict().items()
    }
    return found | {
        f"{prefix}{anima.ADAPTER}{name}": tensor
        for name, tensor in made["conditioner"].state_dict().items()
    }


def write(folder: Path, prefix: str = "net.") -> Path:
    """A WebUI's folder of models; returns the checkpoint."""
    made = models_of()
    for name in ("Stable-diffusion", "text_encoder/qwen3", "text_encoder/t5", "VAE"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "Stable-diffusion" / "anima.safetensors"
    save(tensors(prefix), checkpoint)
    save(
        {f"model.{name}": tensor for name, tensor in made["qwen3"].state_dict().items()},
        folder / "text_encoder" / "qwen_3_06b_base.safetensors",
    )
    save(
        {anima.vae_name(name): tensor for name, tensor in made["vae"].state_dict().items()},
        folder / "VAE" / "qwen_image_vae.safetensors",
    )
    qwen3_tokenizer().save(str(folder / "text_encoder" / "qwen3" / "tokenizer.json"))
    t5_tokenizer().save(str(folder / "text_encoder" / "t5" / "tokenizer.json"))
    return checkpoint


@functools.cache
def written() -> Path:
    """The same, once a process."""
    return write(scratch_folder("anima") / "models")


def qwen3_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    return tokenizer


def t5_tokenizer() -> Tokenizer:
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz,."))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((one, -3.0) for one in letters)]
    pieces += [(f"▁{word}", -2.0) for word in dict.fromkeys(WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def write_full_size(folder: Path, **changes: int) -> Path:
    """Files of the published sizes without content (sparse), with the tiny tokenizers; returns the
    checkpoint. changes: of the transformer's configuration.
    """
    write(folder)
    config = {**FULL, **changes}
    with torch.device("meta"):
        made = {
            "transformer": build_transformer(config),
            "conditioner": build_conditioner({"min_sequence_length": 1}),
            "qwen3": build_qwen3(
                {
                    "vocab_size": 151936,
                    "hidden_size": 1024,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 16,
                    "num_key_value_heads": 8,
                    "head_dim": 128,
                }
            ),
            "vae": build_vae({}),
        }
    shapes = {
        name: {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for name, model in made.items()
    }
    checkpoint = folder / "Stable-diffusion" / "anima.safetensors"
    _write_sparse(
        checkpoint,
        {f"net.{native_name(name, config)}": shape for name, shape in shapes["transformer"].items()}
        | {f"net.{anima.ADAPTER}{name}": shape for name, shape in shapes["conditioner"].items()},
    )
    _write_sparse(
        folder / "text_encoder" / "qwen_3_06b_base.safetensors",
        {f"model.{name}": shape for name, shape in shapes["qwen3"].items()},
    )
    _write_sparse(
        folder / "VAE" / "qwen_image_vae.safetensors",
        {anima.vae_name(name): shape for name, shape in shapes["vae"].items()},
    )
    return checkpoint


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)
