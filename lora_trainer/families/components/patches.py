"""Latents <-> sequences of 2x2 patches, as FLUX.1's transformer takes them."""

from __future__ import annotations

import torch

SIDE = 2


def packed(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C); within a patch: channel, row, column."""
    count, channels, height, width = latents.shape
    patches = latents.reshape(count, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The reverse: (B, h/2 * w/2, 4 C) -> (B, C, h, w)."""
    count, _, numbers = patches.shape
    rows, columns = height // SIDE, width // SIDE
    grid = patches.reshape(count, rows, columns, numbers // SIDE**2, SIDE, SIDE)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, height, width)


def positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Of the patches of latents of this size: 0, row and column, (h/2 * w/2, 3)."""
    rows, columns = height // SIDE, width // SIDE
    grid = torch.zeros(rows, columns, 3, device=device)
    grid[..., 1] += torch.arange(rows, device=device)[:, None]
    grid[..., 2] += torch.arange(columns, device=device)
    return grid.flatten(0, 1)
