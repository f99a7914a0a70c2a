"""Z-Image's transformer and text states in diffusers' and transformers' models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_trainer.families.base import TextStates
from lora_trainer.families.components.text import join_rows


def build_transformer(config: dict[str, Any]) -> Any:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel.from_config(config)


def penultimate_state(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Token ids of one text -> (1, length, C): what the last layer is given."""
    device = model.embed_tokens.weight.device
    output = model(
        input_ids=torch.tensor([list(ids)], device=device),
        output_hidden_states=True,
        use_cache=False,
    )
    hidden: torch.Tensor = output.hidden_states[-2]
    return hidden


def join_captions(rows: Sequence[TextStates]) -> TextStates:
    """Rows -> one batch, with a mask only where their lengths differ."""
    if len({row.hidden.shape[1] for row in rows}) == 1:
        return TextStates(torch.cat([row.hidden for row in rows]))
    masked = [
        TextStates(row.hidden, mask=torch.ones(row.hidden.shape[:2], device=row.hidden.device))
        for row in rows
    ]
    return join_rows(masked)


def predicted_flow(
    model: Any, noisy: torch.Tensor, times: torch.Tensor, text: TextStates
) -> torch.Tensor:
    """Noisy latents (B, C, h, w), times (B,) in (0, 1) -> the flow (B, C, h, w). The model counts
    times from noise to image, and gives image - noise.
    """
    dtype = next(model.parameters()).dtype
    hidden = text.hidden.to(dtype)
    captions = list(hidden)
    if text.mask is not None:
        lengths = text.mask.sum(1).long().tolist()
        captions = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    images = list(noisy.to(dtype).unsqueeze(2))
    found = model(images, 1 - times.float(), captions, return_dict=False)[0]
    return -torch.stack(list(found)).squeeze(2)
