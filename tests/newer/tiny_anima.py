"""A tiny Anima in the files that a host has: made on the spot, with random weights."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lora_trainer.families import anima
from lora_trainer.families.components.anima import build_conditioner, build_transformer
from lora_trainer.families.components.qwen3 import build_qwen3
from lora_trainer.families.components.qwen_image import build_vae

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
    "vocab_size": 300,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "rope_theta": 1_000_000.0,
}
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
    return made


def tensors(prefix: str = "net.") -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint, by their published names."""
    made = models_of()
    found = {
        prefix + anima.native_name(name): tensor
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
    return write(Path(tempfile.mkdtemp(prefix="anima")) / "models")


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        path,
        metadata={"modelspec.resolution": "64x64"},
    )


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
