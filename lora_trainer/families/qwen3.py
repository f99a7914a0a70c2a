"""Qwen3 as a text encoder in a file of its own: what its header tells, and what families have in
common that take nothing else for text. Without torch.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any

from lora_trainer.checkpoint.header import Header
from lora_trainer.checkpoint.names import Stored
from lora_trainer.checkpoint.parts import Component, PartFile, TokenizerKind, TokenizerOpener
from lora_trainer.families.tokenizer_kinds import QWEN3_4B
from lora_trainer.families.transformer import Transformer, count_blocks, shape_of

PREFIXES = ("model.", "")


def width(header: Header, prefix: str) -> int | None:
    """Width of its hidden states; None: another model. Qwen3-VL has a part for images besides."""
    if prefix + "layers.0.self_attn.q_norm.weight" not in header.tensors:
        return None
    if any(".visual." in name or name.startswith("visual.") for name in header.tensors):
        return None
    found = header.shape(prefix + "embed_tokens.weight")
    return None if found is None or len(found) != 2 else found[1]


def config_of(header: Header, prefix: str) -> dict[str, Any]:
    """Qwen3Config of transformers."""

    def rows(name: str) -> int:
        return shape_of(header, prefix + name)[0]

    vocabulary, size = shape_of(header, prefix + "embed_tokens.weight")
    head = rows("layers.0.self_attn.q_norm.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "intermediate_size": rows("layers.0.mlp.gate_proj.weight"),
        "num_hidden_layers": count_blocks(header, prefix + "layers.{i}.self_attn.q_norm.weight"),
        "num_attention_heads": rows("layers.0.self_attn.q_proj.weight") // head,
        "num_key_value_heads": rows("layers.0.self_attn.k_proj.weight") // head,
        "head_dim": head,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
    }


def component(found: PartFile) -> Component:
    """The text encoder in this file."""
    from lora_trainer.checkpoint.tensors import tensors_of
    from lora_trainer.families.components import qwen3

    return Component(
        part="text encoder",
        config=config_of(found.header, found.prefix),
        tensors=tensors_of(found.headers),
        place=lambda name: Stored(found.prefix + name),
        build=lambda config: qwen3.build_qwen3(dict(config)),
        buffers=qwen3.qwen3_buffers,
        prefix=found.prefix,
    )


class ToldByQwen3(Transformer, ABC):
    """A family of transformers whose only text encoder is a Qwen3."""

    tokenizer_kind: TokenizerKind = QWEN3_4B

    def text_encoder_blocks(self, encoder: Any) -> list[tuple[Any, ...]]:
        return [(block,) for block in encoder.layers]

    def tokenizers_from(self, open_kind: TokenizerOpener) -> tuple[Any, ...]:
        return (open_kind(self.tokenizer_kind),)

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        return len(tokenizers[0].encode(caption, add_special_tokens=False).ids)
