"""What 8-bit weights of the base cost in quality: 200 steps on the embedded checkpoint.

    python -m tests.benchmark.base_precision FOLDER [--seeds 0 1 2] [--concepts ink zorbl]

The same run, with the same seed and so the same noise, with the base in float32, in bf16, and in
int8 and fp8 with either. The loss is that of eight held-out images under fixed noise. Prints a
table for BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from lora_trainer import environment

environment.activate(environment.look_at_tests())
environment.activate()

from lora_trainer.demo import EMBEDDED, world  # noqa: E402
from lora_trainer.runs import events  # noqa: E402
from lora_trainer.runs import folder as folders  # noqa: E402
from lora_trainer.settings import training  # noqa: E402
from lora_trainer.worker import job  # noqa: E402

KINDS = (("no", "same"), ("no", "int8"), ("no", "fp8"), ("bf16", "same"), ("bf16", "int8"))
"""mixed_precision and base_precision."""
WORDS = {"ink": "sumiwash", "neon": "glowtube", "zorbl": "zorbl"}
LAST = 100
"""Steps whose mean training loss is compared."""


def run(folder: Path, concept: str, seed: int, mixed: str, base: str) -> dict[str, float]:
    """Held-out loss of the base (as it is kept) and after training, and the mean training loss."""
    images = folder / f"{concept}{seed}"
    if not images.is_dir():
        world.write_concept(images, concept, 40, seed=seed)
    asked = training.from_mapping(
        {
            "train_data_dir": images,
            "base_model": EMBEDDED,
            "output_dir": folder / f"{concept}{seed}-{mixed}-{base}",
            "trigger_word": WORDS[concept],
            "batch_size": 2,
            "max_train_steps": 200,
            "learning_rate": 1e-3,
            "lora_rank": 8,
            "save_steps": 200,
            "validation_split": 0.2,
            "mixed_precision": mixed,
            "base_precision": base,
            "seed": seed,
            "device": "cpu",
            "sample_steps": 1,
            "sample_encoder": "no",
        }
    )
    begun = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    assert job.run(begun.path) == job.FINISHED
    said = list(begun.read_events())
    held_out = [one.validation_loss for one in said if isinstance(one, events.Validated)]
    steps = [one.loss for one in said if isinstance(one, events.Progress) and one.loss is not None]
    return {"before": held_out[0], "after": held_out[-1], "training": fmean(steps[-LAST:])}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--concepts", nargs="+", default=["ink", "zorbl"], choices=WORDS)
    asked = parser.parse_args(arguments)
    found = {
        kind: [
            run(asked.folder, concept, seed, *kind)
            for concept in asked.concepts
            for seed in asked.seeds
        ]
        for kind in KINDS
    }
    print("| mixed_precision | base_precision | held-out loss before | after | change | training |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (mixed, base), outcomes in found.items():
        usual = found[mixed, "same"]
        changes = [
            one["after"] / other["after"] - 1 for one, other in zip(outcomes, usual, strict=True)
        ]
        before, after, loss = (
            fmean(one[key] for one in outcomes) for key in ("before", "after", "training")
        )
        print(
            f"| {mixed} | {base} | {before:.4f} | {after:.4f} | {fmean(changes):+.2%}"
            f" ({min(changes):+.2%} to {max(changes):+.2%}) | {loss:.4f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
