"""What 8-bit weights of the base, and the forms of lora_trainer/cpu, cost in quality: 200 steps on
the embedded checkpoint.

    python -m tests.benchmark.base_precision FOLDER [--seeds 0 1 2] [--concepts ink zorbl]

The same run, with the same seed and so the same noise, with the base in float32, in bf16, and in
int8 and fp8 with either; and in bf16 without the forms for processors, and with their attention for
these small images too. The loss is that of eight held-out images under fixed noise. Prints a table
for BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

from lora_trainer import environment

environment.activate(environment.find_tests_overlay())
environment.activate()

from lora_trainer.cpu import attention  # noqa: E402
from lora_trainer.demo import EMBEDDED, world  # noqa: E402
from lora_trainer.runs import events  # noqa: E402
from lora_trainer.runs import folder as folders  # noqa: E402
from lora_trainer.settings import training  # noqa: E402
from lora_trainer.tasks import diffusion  # noqa: E402
from lora_trainer.worker import job  # noqa: E402

KINDS = (
    ("no", "same", ""),
    ("no", "int8", ""),
    ("no", "fp8", ""),
    ("bf16", "same", ""),
    ("bf16", "int8", ""),
    ("bf16", "same", "torch"),
    ("bf16", "same", "blocks"),
)
"""mixed_precision and base_precision; torch: without lora_trainer/cpu; blocks: its attention for
every size.
"""
WORDS = {"ink": "sumiwash", "neon": "glowtube", "zorbl": "zorbl"}


def run(
    folder: Path, concept: str, seed: int, mixed: str, base: str, forms: str
) -> dict[str, float]:
    """Held-out loss of the base (as it is kept) and after training, and the mean training loss."""
    images = folder / f"{concept}{seed}"
    if not images.is_dir():
        world.write_concept(images, concept, 40, seed=seed)
    asked = training.from_mapping(
        {
            "train_data_dir": images,
            "base_model": EMBEDDED,
            "output_dir": folder / f"{concept}{seed}-{mixed}-{base}{forms}",
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
    with ExitStack() as changed:
        if forms == "torch":
            changed.enter_context(patch.object(diffusion, "quicken", lambda *_: None))
        if forms == "blocks":
            changed.enter_context(patch.object(attention, "FEWEST_SCORES", 0))
        changed.callback(attention.deactivate)
        assert job.run(begun.path) == job.FINISHED
    said = list(begun.read_events())
    held_out = [one.validation_loss for one in said if isinstance(one, events.Validated)]
    return {"before": held_out[0], "after": held_out[-1]}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--concepts", nargs="+", default=["ink", "zorbl"], choices=WORDS)
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], choices=("no", "bf16"))
    asked = parser.parse_args(arguments)
    found = {
        kind: [
            run(asked.folder, concept, seed, *kind)
            for concept in asked.concepts
            for seed in asked.seeds
        ]
        for kind in KINDS
        if kind[0] in asked.precisions
    }
    print("| mixed_precision | base_precision | forms | held-out loss before | after | change |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (mixed, base, forms), outcomes in found.items():
        usual = found[mixed, "same", ""]
        changes = [
            one["after"] / other["after"] - 1 for one, other in zip(outcomes, usual, strict=True)
        ]
        before, after = (fmean(one[key] for one in outcomes) for key in ("before", "after"))
        print(
            f"| {mixed} | {base} | {forms} | {before:.4f} | {after:.4f} | {fmean(changes):+.2%}"
            f" ({min(changes):+.2%} to {max(changes):+.2%}) |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
