"""CLIP's and T5's text encoders in files of their own or in a diffusers folder.

clip_pooled(model, tokenizer, texts) -> (B, C)       t5_states(...) -> (B, length, C)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lora_trainer.checkpoint.architecture import text_encoder_config
from lora_trainer.checkpoint.folder import FolderComponent
from lora_trainer.checkpoint.names import Stored, TextEncoderLayout, stored_in_text_encoder
from lora_trainer.checkpoint.parts import Component, PartFile
from lora_trainer.checkpoint.tensors import tensors_of
from lora_trainer.dataset.tokens import PIECE
from lora_trainer.families.components.clip import END, START, token_ids

SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"
"""T5 has one matrix under two names; a file may have either."""


def clip_of_file(found: PartFile) -> Component:
    layout = TextEncoderLayout(found.prefix + "text_model.", "clip")
    return Component(
        part="text encoder",
        config=text_encoder_config(found.header, layout, last_layer_unused=False),
        tensors=tensors_of(found.headers),
        place=lambda name: stored_in_text_encoder(name, layout),
        build=build_clip,
        prefix=found.prefix,
    )


def clip_of_folder(component: FolderComponent) -> Component:
    return _of_folder(component, build_clip)


def t5_of_file(found: PartFile) -> Component:
    tensors, prefix = tensors_of(found.headers), found.prefix

    def place(name: str) -> Stored:
        if name in (SHARED, EMBEDDED):
            names = [prefix + SHARED, prefix + EMBEDDED]
            return Stored(next((one for one in names if one in tensors), names[0]))
        return Stored(prefix + name)

    return Component(
        part="text encoder",
        config=t5_config(found),
        tensors=tensors,
        place=place,
        build=build_t5,
        prefix=prefix,
    )


def t5_of_folder(component: FolderComponent) -> Component:
    tensors = tensors_of(component.headers)
    return Component(
        part="text encoder",
        config=component.config,
        tensors=tensors,
        place=lambda name: Stored(SHARED if name == EMBEDDED and EMBEDDED not in tensors else name),
        build=build_t5,
    )


def t5_config(found: PartFile) -> dict[str, Any]:
    """T5Config of the encoder of T5 1.1, from the shapes in its file."""
    header, prefix = found.header, found.prefix

    def shape(name: str) -> tuple[int, ...]:
        return header.shape(prefix + name) or (0, 0)

    block = "encoder.block.{}.layer."
    first = block.format(0)
    buckets, heads = shape(first + "0.SelfAttention.relative_attention_bias.weight")
    vocabulary, width = max(shape(SHARED), shape(EMBEDDED))
    count = 0
    while prefix + block.format(count) + "0.SelfAttention.k.weight" in header.tensors:
        count += 1
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shape(first + "0.SelfAttention.k.weight")[0] // max(heads, 1),
        "d_ff": shape(first + "1.DenseReluDense.wi_0.weight")[0],
        "num_layers": count,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def build_clip(config: Mapping[str, Any]) -> Any:
    return CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))


def build_t5(config: Mapping[str, Any]) -> Any:
    return T5EncoderModel(T5Config.from_dict(dict(config)))


def _of_folder(component: FolderComponent, build: Any) -> Component:
    return Component(
        part="text encoder",
        config=component.config,
        tensors=tensors_of(component.headers),
        place=Stored,
        build=build,
    )


def clip_pooled(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """The pooled state of one chunk of 75 tokens."""
    padding = tokenizer.pad_token_id
    rows = [token_ids(tokenizer, text)[:PIECE] for text in texts]
    ids = [[START, *row, END, *[padding] * (PIECE - len(row))] for row in rows]
    device = next(model.parameters()).device
    return model(torch.tensor(ids, device=device)).pooler_output  # type: ignore[no-any-return]


def t5_states(model: Any, tokenizer: Tokenizer, texts: Sequence[str], length: int) -> torch.Tensor:
    """The last hidden states of `length` tokens, cut or padded. Padding is attended to, as in the
    model's training.
    """
    padding, end = 0, tokenizer.token_to_id("</s>")
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1] if end is None else end]
        rows.append([*ids, *[padding] * (length - len(ids))])
    device = next(model.parameters()).device
    return model(torch.tensor(rows, device=device)).last_hidden_state  # type: ignore[no-any-return]
