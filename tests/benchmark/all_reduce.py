"""What adding up the gradients costs on paper: the tables of docs/several-cards.md.

    python -m tests.benchmark.all_reduce

A ring all-reduce moves 2 (n - 1) / n times the gradients through each card's link (Patarasuk and
Yuan 2009, doi 10.1016/j.jpdc.2008.09.002), in 2 (n - 1) rounds. The gradients are float32; their
number is `adapters.size.parameter_count` of the published architecture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_trainer import environment

environment.activate(environment.find_tests_overlay())
environment.activate()

from lora_trainer.adapters.size import parameter_count  # noqa: E402
from lora_trainer.checkpoint.folder import detect_any  # noqa: E402
from lora_trainer.settings.training import LoraSettings  # noqa: E402
from tests.benchmark.memory_table import file_of  # noqa: E402

FAMILIES = {"sd1": "SD1.5", "sdxl": "SDXL", "flux": "FLUX.1"}
RANKS = (8, 16, 32, 64)
COUNTS = (2, 4, 8, 16, 32, 64)
BYTES_EACH = 4


class Link(NamedTuple):
    """Bytes a second in each direction, as named, and seconds a round takes in addition."""

    name: str
    bytes_per_second: float
    seconds_per_round: float


LINKS = (
    Link("PCIe 4.0 x16", 31.5e9, 10e-6),
    Link("100 Gbit/s Ethernet", 12.5e9, 30e-6),
    Link("10 Gbit/s Ethernet", 1.25e9, 30e-6),
)


def seconds(weights: int, count: int, link: Link) -> float:
    """Of one all-reduce."""
    moved = 2 * (count - 1) / count * weights * BYTES_EACH
    return moved / link.bytes_per_second + 2 * (count - 1) * link.seconds_per_round


def counted(folder: Path) -> Mapping[str, Mapping[int, int]]:
    """Family -> rank -> number of weights, of a LoRA with the default layers."""
    found = {}
    for family in FAMILIES:
        path = file_of(folder, family)
        detected = detect_any(path)
        layers = detected.family.layer_shapes(path, detected)
        found[family] = {
            rank: parameter_count(detected.family, layers, LoraSettings(lora_rank=rank))
            for rank in RANKS
        }
    return found


def tables(weights: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| rank | " + " | ".join(FAMILIES.values()) + " |"
    yield "| --- |" + " --- |" * len(FAMILIES)
    for rank in RANKS:
        cells = (
            f"{weights[family][rank] / 1e6:.1f} M, {weights[family][rank] * BYTES_EACH / 1e6:.0f} MB"
            for family in FAMILIES
        )
        yield f"| {rank} | " + " | ".join(cells) + " |"
    for link in LINKS:
        yield ""
        yield f"{link.name}, milliseconds a step:"
        yield ""
        yield "| model, rank | " + " | ".join(f"{count} cards" for count in COUNTS) + " |"
        yield "| --- |" + " --- |" * len(COUNTS)
        for family, name in FAMILIES.items():
            for rank in (RANKS[0], RANKS[-1]):
                cells = (
                    _milliseconds(seconds(weights[family][rank], count, link)) for count in COUNTS
                )
                yield f"| {name}, {rank} | " + " | ".join(cells) + " |"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.1f}" if value < 0.1 else f"{value * 1e3:.0f}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print("\n".join(tables(counted(Path(made)))))
