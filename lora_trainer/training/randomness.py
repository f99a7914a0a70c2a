"""Random numbers that depend only on seed, purpose and step.

Each step draws from its own generator, so a resumed run draws the same numbers without saved state.
Numbers are drawn on the CPU, so that a seed gives the same result on every device.
"""

from __future__ import annotations

import hashlib
import random

import torch


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed from a hash, equal on every platform."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def tensor_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derived_seed(seed, purpose, *numbers))


def number_generator(seed: int, purpose: str, *numbers: int) -> random.Random:
    return random.Random(derived_seed(seed, purpose, *numbers))


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators, which dropout uses, for one step of one process."""
    # a single process draws what it drew before there were several
    numbers = (step, rank) if rank else (step,)
    torch.manual_seed(derived_seed(seed, "dropout", *numbers))
