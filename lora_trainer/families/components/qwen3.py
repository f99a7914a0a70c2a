"""Qwen3 language models as text encoders (transformers' Qwen3Model)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_trainer.families.tokenizer_kinds import SPECIAL


def build_qwen3(config: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**config))


def qwen3_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The frequencies of its rotary embedding, which are in no file."""
    frequencies, _ = model.rotary_emb.rope_init_fn(model.config, torch.device("cpu"))
    return {"rotary_emb.inv_freq": frequencies}


def read_vocabulary(path: Path) -> Any:
    """The tokenizer of vocab.json, with merges.txt beside it."""
    from transformers import Qwen2TokenizerFast

    merges = path.with_name("merges.txt")
    tokenizer = Qwen2TokenizerFast(str(path), str(merges)).backend_tokenizer
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def last_hidden_state(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Token ids of one text -> (1, length, C), after the final norm. No ids: one row of zeros."""
    weight = model.embed_tokens.weight
    if not ids:
        return torch.zeros(1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    hidden: torch.Tensor = model(
        input_ids=torch.tensor([list(ids)], device=weight.device), use_cache=False
    ).last_hidden_state
    return hidden
