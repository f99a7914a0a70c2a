"""Makes lora_trainer/planner/constants.json anew, and compares the closed formula with the
accounting over a grid.

    python -m tests.benchmark.memory_table                 the constants of all families: an hour
    python -m tests.benchmark.memory_table --families sd1  only these, the others are kept
    python -m tests.benchmark.memory_table --families anima --only models steps frozen
                                                           alone: it needs the newer libraries
    python -m tests.benchmark.memory_table --families flux --only models steps frozen --kinds half
    python -m tests.benchmark.memory_table --only models   only what --only names, the rest is kept:
                                                           models, steps, frozen, locon, dropout
    python -m tests.benchmark.memory_table --grid          the comparison, as a table for BENCHMARKS.md

A full-size checkpoint is a sparse file of zeros; no weight is read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lora_trainer import environment

NEWER = ("anima", "klein4b", "klein9b", "zimage")
"""Families that need the newer libraries, which a process has instead of the others."""

environment.activate(environment.find_tests_overlay())
environment.activate()
if any(family in sys.argv for family in NEWER):
    environment.activate(environment.find_family_overlay("newer").require())

import torch  # noqa: E402

from lora_trainer.checkpoint.load import Checkpoint, open_checkpoint  # noqa: E402
from lora_trainer.frozen.layers import layers_in  # noqa: E402
from lora_trainer.planner import accounting, formula  # noqa: E402
from lora_trainer.settings import training as settings  # noqa: E402
from lora_trainer.settings.training import RunConfig  # noqa: E402
from tests.checkpoint.samples import FAMILIES, full_file  # noqa: E402
from tests.families import tiny_flux  # noqa: E402

KINDS = {"full": torch.float32, "half": torch.bfloat16}
"""Precision in the table -> the frozen model's dtype. float16 is as large as bfloat16."""
LORA_TYPES = ("lora", "locon")
SMALL, LARGE = 640, 1280
"""Sides of the two sizes: large enough that activations, not gradients, make the peak."""
LOW, HIGH = 8, 64
KNOWN = ("models", "steps", "frozen", "locon", "dropout")
GRID = (
    ("half", False, {"resolution": 512, "batch_size": 1, "lora_rank": 8}),
    ("half", True, {"resolution": 768, "batch_size": 4, "lora_rank": 32}),
    ("half", False, {"resolution": 1024, "batch_size": 1, "lora_rank": 128}),
    ("full", True, {"resolution": 512, "batch_size": 2, "lora_rank": 16}),
)
"""Precision, checkpointing and settings of `--grid`; none is one that the constants are fitted
to.
"""


def config_of(**changes: Any) -> RunConfig:
    """A run's settings with these values; 512 pixels unless stated."""
    values = {"train_data_dir": ".", "base_model": ".", "output_dir": "run", "resolution": 512}
    asked = settings.from_mapping({**values, **changes})
    return settings.settle(asked, asked.dataset.resolution, 1000)


def measure(checkpoint: Checkpoint, kind: str, **changes: Any) -> accounting.StepMemory:
    """A step as on a card."""
    return accounting.account(checkpoint, config_of(**changes), KINDS[kind])


def models_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of the models, and what the VAE takes."""
    shapes = checkpoint.family.layer_shapes(checkpoint.path, checkpoint.detected)
    outline = checkpoint.outline()
    small, large = (512, 512), (1024, 1024)
    encoding = [accounting.encoding_peak(checkpoint, size) for size in (small, large)]
    decoding = [accounting.decoding_peak(checkpoint, size) for size in (small, large)]
    pixels = prod(large) - prod(small)
    text_weights = sum(_weights(one) for one in outline.text_encoders)
    in_8_bits = config_of(base_precision="int8")
    text_bytes = accounting.text_encoding_peak(checkpoint, in_8_bits, torch.bfloat16, "cuda")
    return {
        "matrix_weights": sum(prod(shape) for _, shape in shapes["unet"]),
        "unet_weights": _weights(outline.unet),
        "text_encoder_weights": text_weights,
        # a byte less each
        "text_encoder_kept": 2 * text_weights - text_bytes,
        "block_weights": [
            sum(layer.weight.numel() for layer in layers_in(block))
            for block in checkpoint.family.blocks(outline.unet)
        ],
        "encoding": _line(encoding, prod(small), pixels),
        "decoding": _line(decoding, prod(small), pixels),
    }


def _weights(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _line(peaks: Sequence[float], first: int, pixels: int) -> dict[str, float]:
    slope = (peaks[1] - peaks[0]) / pixels
    return {"fixed": round(peaks[0] - slope * first), "per_pixel": round(slope, 1)}


def step_of(
    checkpoint: Checkpoint, kind: str, checkpointing: bool, lora_type: str
) -> dict[str, Any]:
    """Five steps, solved for the constants of `formula.Step`."""

    def step(resolution: int, **changes: Any) -> tuple[float, float]:
        asked = {"gradient_checkpointing": checkpointing, "lora_type": lora_type, **changes}
        return activations(checkpoint, kind, resolution=resolution, **asked)

    low, weights = step(SMALL, lora_rank=LOW)
    high, _ = step(LARGE, lora_rank=LOW)
    two, _ = step(LARGE, lora_rank=LOW, batch_size=2)
    ranked, more_weights = step(LARGE, lora_rank=HIGH)
    text, text_weights = low, weights
    if checkpoint.family.trains_text_encoders:
        text, text_weights = step(SMALL, lora_rank=LOW, train_text_encoder=True)
    per_weight = max(0.0, (high - (two - high)) / weights)
    slope = (high - low) / (LARGE**2 - SMALL**2)
    per_rank = (ranked - high - per_weight * (more_weights - weights)) / (LARGE**2 * (HIGH - LOW))
    return {
        "lora_type": lora_type,
        "precision": kind,
        "checkpointing": checkpointing,
        "per_weight": round(per_weight, 3),
        "per_image": round(low - per_weight * weights - slope * SMALL**2),
        "per_pixel": round(slope - LOW * per_rank, 2),
        "per_pixel_and_rank": round(per_rank, 4),
        "per_text": round(max(0.0, text - low - per_weight * (text_weights - weights))),
    }


def activations(checkpoint: Checkpoint, kind: str, **changes: Any) -> tuple[float, float]:
    """Bytes of a step's activations and gradients, and the number of LoRA weights."""
    found = measure(checkpoint, kind, **changes)
    print(checkpoint.family.id, kind, changes, found, file=sys.stderr, flush=True)
    return found.activations + found.gradients, found.adapters / 4


def frozen_of(checkpoint: Checkpoint, step: dict[str, Any]) -> dict[str, Any]:
    """The constants of a step with layers of `frozen`: two steps, by which it differs from the
    other one in what an image takes.
    """
    asked = {
        "gradient_checkpointing": step["checkpointing"],
        "lora_type": step["lora_type"],
        "lora_rank": LOW,
        "base_precision": "int8",
    }
    (low, weights), (high, _) = (
        activations(checkpoint, step["precision"], resolution=side, **asked)
        for side in (SMALL, LARGE)
    )
    slope = (high - low) / (LARGE**2 - SMALL**2)
    return {
        "per_image": round(low - step["per_weight"] * weights - slope * SMALL**2),
        "per_pixel": round(slope - LOW * step["per_pixel_and_rank"], 2),
    }


def dropout_of(checkpoint: Checkpoint, step: dict[str, Any]) -> dict[str, Any]:
    """What `lora_dropout` adds to what an image takes."""
    asked = {
        "gradient_checkpointing": step["checkpointing"],
        "lora_type": step["lora_type"],
        "lora_rank": LOW,
    }
    added = []
    for side in (SMALL, LARGE):
        (dropped, _), (usual, _) = (
            activations(checkpoint, step["precision"], resolution=side, lora_dropout=share, **asked)
            for share in (0.1, 0.0)
        )
        added.append(dropped - usual)
    line = _line(added, SMALL**2, LARGE**2 - SMALL**2)
    return {"dropout_per_image": line["fixed"], "dropout_per_pixel": line["per_pixel"]}


def file_of(folder: Path, family: str) -> Path:
    """A checkpoint of the published size without content."""
    if family in NEWER:
        # imports the newer libraries
        from tests.newer import tiny_anima, tiny_flux2, tiny_z_image

        if family.startswith("klein"):
            return tiny_flux2.write_full_size(folder, family.removeprefix("klein").upper())
        made = {"anima": tiny_anima, "zimage": tiny_z_image}[family]
        return made.write_full_size(folder)
    if family == "flux":
        return tiny_flux.full_size(folder)
    return full_file(folder, family)


def make(families: list[str], folder: Path, only: list[str], kinds: list[str]) -> None:
    for family in families:
        checkpoint = open_checkpoint(file_of(folder, family))
        kept = json.loads(formula.TABLE.read_text())
        entry = next((one for one in kept if one["family"] == family), None)
        entry = entry or {"family": family, "steps": []}
        for _ in _measured(checkpoint, entry, only, kinds):
            # as soon as it is known
            others = [one for one in kept if one["family"] != family]
            entries = sorted([*others, entry], key=lambda one: str(one["family"]))
            formula.TABLE.write_text(json.dumps(entries, indent=1) + "\n")


def _measured(
    checkpoint: Checkpoint, entry: dict[str, Any], only: list[str], kinds: list[str]
) -> Iterator[None]:
    """Measure one thing after the other into a family's entry."""
    if "models" in only:
        entry.update(models_of(checkpoint))
        yield
    for lora_type, kind, checkpointing in product(LORA_TYPES, kinds, (False, True)):
        if ("steps" if lora_type == "lora" else lora_type) in only:
            made = step_of(checkpoint, kind, checkpointing, lora_type)
            before = next((one for one in entry["steps"] if _key(one) == _key(made)), {})
            others = [one for one in entry["steps"] if _key(one) != _key(made)]
            entry["steps"] = [*others, {**before, **made}]
            yield
    for step in entry["steps"] if "frozen" in only else ():
        step["frozen"] = frozen_of(checkpoint, step)
        yield
    for step in entry["steps"] if "dropout" in only else ():
        step.update(dropout_of(checkpoint, step))
        yield


def _key(step: dict[str, Any]) -> tuple[str, str, bool]:
    return step["lora_type"], step["precision"], step["checkpointing"]


def compare(families: list[str], folder: Path) -> None:
    """Print accounting and formula in GiB, and their difference, for the grid."""
    print("| | accounting | formula | difference |\n| --- | --- | --- | --- |")
    worst = 0.0
    for family in families:
        checkpoint = open_checkpoint(file_of(folder, family))
        shapes = checkpoint.family.layer_shapes(checkpoint.path, checkpoint.detected)
        for kind, checkpointing, changes in GRID:
            asked = {**changes, "gradient_checkpointing": checkpointing}
            counted = measure(checkpoint, kind, **asked).peak
            found = formula.predict(checkpoint.family, shapes, config_of(**asked), kind)
            assert found is not None
            share = found.peak / counted - 1
            worst = max(worst, abs(share))
            name = (
                f"{checkpoint.family.name} {changes['resolution']} px, batch"
                f" {changes['batch_size']}, rank {changes['lora_rank']}, {kind}"
                f"{', checkpointing' if checkpointing else ''}"
            )
            print(
                f"| {name} | {counted / 2**30:.2f} | {found.peak / 2**30:.2f} | {share:+.1%} |",
                flush=True,
            )
    print(f"\nLargest difference: {worst:.1%}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--families", nargs="+", default=list(FAMILIES), choices=(*FAMILIES, "flux", *NEWER)
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=tuple(KINDS))
    parser.add_argument("--only", nargs="+", default=list(KNOWN), choices=KNOWN)
    parser.add_argument("--grid", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if asked.grid:
            compare(asked.families, Path(folder))
        else:
            make(asked.families, Path(folder), asked.only, asked.kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
