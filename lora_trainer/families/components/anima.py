"""Anima's own models in diffusers: the Cosmos transformer, and the conditioner of its text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

TEXT_LENGTH = 512
"""Rows of text states that the transformer attends to; those beyond the text are zeros."""


def build_transformer(config: dict[str, Any]) -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(**config)


def build_conditioner(config: dict[str, Any]) -> Any:
    from diffusers.models.condition_embedders.condition_embedder_anima import (
        AnimaTextConditioner,
    )

    return AnimaTextConditioner(**config)


def conditioner_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The frequencies of its rotary embedding, which are in no file."""
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaRotaryEmbedding

    config = model.config
    made = AnimaRotaryEmbedding(config.model_dim // config.num_attention_heads)
    return {"rotary_emb.inv_freq": made.inv_freq}


def conditioned(conditioner: Any, source: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The text encoder's states (1, length, C) and T5's token ids of one text -> (1, number of ids,
    width).
    """
    queries = torch.tensor([ids], device=source.device)
    states: torch.Tensor = conditioner(source.to(conditioner.dtype), queries)
    return states


def predicted_flow(
    model: Any, noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Noisy latents (B, C, h, w), times (B,) in (0, 1), text states (B, length, width) -> the flow
    (B, C, h, w).
    """
    dtype = model.dtype
    # the last channel is the mask of padding, of which there is none
    frames = F.pad(noisy.to(dtype), (0, 0, 0, 0, 0, 1)).unsqueeze(2)
    missing = max(TEXT_LENGTH - hidden.shape[1], 0)
    text = F.pad(hidden.to(dtype), (0, 0, 0, missing))
    flow = model(frames, times, text, return_dict=False)[0]
    return flow.squeeze(2)  # type: ignore[no-any-return]
