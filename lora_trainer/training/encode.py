"""Captions -> text states and pixels -> latents, as the WebUI makes them when it generates.

Text facts from A1111 1.10.1 (modules/sd_hijack_clip.py, sd_hijack_open_clip.py): a prompt is cut
into pieces of 75 tokens; a piece is preferably cut after a comma in its last 20 tokens; each piece
is wrapped in its own start and end and encoded by itself; the pieces' states are laid end to end;
the pooled state is the first piece's. clip_skip counts SD1's layers from the end; SD2 and SDXL have
theirs fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lora_trainer.checkpoint.parts import Parts
from lora_trainer.dataset.tokens import PIECE, piece_ends

START, END = 49406, 49407


@dataclass(frozen=True)
class TextStates:
    """What the UNet is told: hidden (B, 77 x pieces, C); pooled (B, P) for SDXL, else None."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> TextStates:
        return TextStates(
            self.hidden.to(device), None if self.pooled is None else self.pooled.to(device)
        )

    def detach(self) -> TextStates:
        return TextStates(
            self.hidden.detach(), None if self.pooled is None else self.pooled.detach()
        )

    def row(self, index: int) -> TextStates:
        return TextStates(
            self.hidden[index : index + 1],
            None if self.pooled is None else self.pooled[index : index + 1],
        )


def cut_into_pieces(tokens: Sequence[int], most: int) -> list[list[int]]:
    """Token ids, without start and end -> 1 to `most` pieces of at most 75; what is beyond is left
    out.
    """
    ends = piece_ends(tokens)[:most]
    return [list(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def encode_captions(
    parts: Parts, captions: Sequence[str], *, clip_skip: int = 1, max_token_length: int = PIECE
) -> TextStates:
    """Captions -> text states, one row each. Gradients flow if the text encoders' parameters ask
    for them.

    Shorter captions are filled up with empty pieces to the longest one's count, as the WebUI does
    in a batch.
    """
    most = max_token_length // PIECE
    cut = [cut_into_pieces(_token_ids(parts.tokenizers[0], caption), most) for caption in captions]
    count = max(len(pieces) for pieces in cut)
    filled = [pieces + [[]] * (count - len(pieces)) for pieces in cut]
    states, pooled = [], []
    for position in range(count):
        hidden, pool = _encode_pieces(parts, [pieces[position] for pieces in filled], clip_skip)
        states.append(hidden)
        pooled.append(pool)
    return TextStates(torch.cat(states, 1), pooled[0])


def join_rows(rows: Sequence[TextStates], empty: TextStates | None = None) -> TextStates:
    """Rows -> one batch. Rows of fewer pieces are filled up with `empty`, the states of an empty
    piece (1, 77, C).
    """
    longest = max(row.hidden.shape[1] for row in rows)
    filled = []
    for row in rows:
        missing = longest - row.hidden.shape[1]
        if missing:
            assert empty is not None, "rows of different lengths"
            padding = [empty.hidden.to(row.hidden)] * (missing // empty.hidden.shape[1])
            filled.append(torch.cat([row.hidden, *padding], 1))
        else:
            filled.append(row.hidden)
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return TextStates(torch.cat(filled), torch.cat(pooled) if pooled else None)


def _token_ids(tokenizer: Any, caption: str) -> list[int]:
    return list(
        tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
    )


def _encode_pieces(
    parts: Parts, pieces: Sequence[Sequence[int]], clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    hidden, pooled = [], None
    for encoder, tokenizer in zip(parts.text_encoders, parts.tokenizers, strict=True):
        padding = tokenizer.pad_token_id
        rows = [[START, *piece, END, *[padding] * (PIECE - len(piece))] for piece in pieces]
        ids = torch.tensor(rows, device=next(encoder.parameters()).device)
        if parts.family == "sdxl":
            output = encoder(ids, output_hidden_states=True)
            # both of SDXL's encoders give their last but one layer, without the final norm
            hidden.append(output.hidden_states[-2])
            pooled = output.text_embeds if hasattr(output, "text_embeds") else pooled
        elif parts.family == "sd2" or clip_skip == 1:
            # SD2's file is cut to the layers in use, so its last one is what the WebUI calls the
            # last but one
            hidden.append(encoder(ids).last_hidden_state)
        else:
            layers = encoder(ids, output_hidden_states=True).hidden_states
            chosen = layers[-min(clip_skip, len(layers) - 1)]
            hidden.append(encoder.text_model.final_layer_norm(chosen))
    return torch.cat(hidden, -1), pooled


def encode_image(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> moments (B, 8, H/8, W/8) float32 on the CPU: mean and
    standard deviation of the scaled latent.
    """
    parameter = next(vae.parameters())
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        distribution = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist
    scale = vae.config.scaling_factor
    moments: torch.Tensor = torch.cat([distribution.mean, distribution.std], 1).float() * scale
    return moments.cpu()


def draw_latents(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Moments (B, 8, h, w) and normal noise (B, 4, h, w) -> latents (B, 4, h, w)."""
    mean, deviation = moments.chunk(2, 1)
    return mean + deviation * noise


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w) in [0, 1], float32 on the CPU."""
    parameter = next(vae.parameters())
    # the UNet's autocast is not for the VAE: SDXL's overflows in fp16
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        pixels = vae.decode(
            (latents / vae.config.scaling_factor).to(parameter.device, parameter.dtype)
        ).sample
    return F.hardtanh(pixels.float().cpu() / 2 + 0.5, 0.0, 1.0)
