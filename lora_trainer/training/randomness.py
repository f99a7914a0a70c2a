"""Random numbers that depend on the seed, the purpose and the step alone.

Each step draws from a generator made for it, so a resumed run draws what an uninterrupted one would
have drawn, with no state to keep. Numbers are drawn on the CPU: a seed means the same on every
device.
"""

from __future__ import annotations

import hashlib
import random

import torch


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for one purpose: 63 bits from a hash, equal on every platform."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def tensor_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derived_seed(seed, purpose, *numbers))


def number_generator(seed: int, purpose: str, *numbers: int) -> random.Random:
    return random.Random(derived_seed(seed, purpose, *numbers))


def seed_dropout(seed: int, *numbers: int) -> None:
    """Dropout layers draw from torch's global state, of all devices: set it for one step."""
    torch.manual_seed(derived_seed(seed, "dropout", *numbers))
