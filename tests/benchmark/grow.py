"""Whether a LoRA of low rank that is grown reaches the quality of a high rank from the start.

    python -m tests.benchmark.grow                                  zorbl and neon, five seeds
    python -m tests.benchmark.grow --concepts ink --images 96       another concept, more images

For each concept of the demo's world and each seed, from the embedded checkpoint, with the demo's
settings but for rank and steps:

    short      rank 2, STEPS steps
    longer     rank 2 from `short`, half of STEPS more
    grown      rank 8 from `short` (init_lora, lora_rank), half of STEPS more
    high       rank 8 from the start, STEPS + half of STEPS

Each exported file is merged into the checkpoint and measured: the loss on drawings of another seed
(plain L2, fixed noise, the same noise levels for each), and presence and survival of the prompt at
strength 1 as in `demo --report` (demo/report.py, measure.py, obedience.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate()

import torch

from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.demo import world
from lora_trainer.demo.report import judge
from lora_trainer.demo.run import RECIPES, demo_config, embedded_checkpoint
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.settings.training import TrainingSettings
from lora_trainer.training.images import to_tensor
from lora_trainer.training.losses import denoising_loss
from lora_trainer.worker import job

LOW, HIGH = 2, 8
STEPS = 240
WAYS = ("short", "longer", "grown", "high")
HELD_OUT = 24
HELD_OUT_SEED = 991
NOISE_LEVELS = 10
"""Per held-out drawing."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measures of one LoRA file at strength 1."""

    loss: float
    presence: float
    survival: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=["zorbl", "neon"], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--images", type=int, help="training images (default: the demo's)")
    chosen = parser.parse_args()
    parts = open_checkpoint(embedded_checkpoint()).load(torch.float32)
    for concept in chosen.concepts:
        held_out = HeldOut(parts, concept)
        results: list[Mapping[str, Measured]] = []
        for seed in chosen.seeds:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                images = chosen.images or RECIPES[concept].image_count
                files = train_all(Path(folder), concept, seed, chosen.steps, images)
                results.append(
                    {way: measured(parts, concept, file, held_out) for way, file in files.items()}
                )
            losses = ", ".join(f"{way} {one.loss:.5f}" for way, one in results[-1].items())
            print(
                f"{concept}, seed {seed}: {losses} ({time.monotonic() - start:.0f} s)", flush=True
            )
        print(table(concept, held_out.loss(), results), flush=True)


# --- training -------------------------------------------------------------------------------------


def train_all(place: Path, concept: str, seed: int, steps: int, images: int) -> dict[str, Path]:
    """The LoRA file of each of `WAYS`."""
    world.write_concept(place / "images", concept, images, seed)
    run = functools.partial(train, place, concept)
    short = run("short", seed=seed, lora_rank=LOW, max_train_steps=steps)
    more = {"seed": seed + 1000, "init_lora": short, "max_train_steps": steps // 2}
    return {
        "short": short,
        "longer": run("longer", lora_rank=LOW, **more),
        "grown": run("grown", lora_rank=HIGH, **more),
        "high": run("high", seed=seed, lora_rank=HIGH, max_train_steps=steps + steps // 2),
    }


def train(place: Path, concept: str, name: str, *, seed: int, **changes: object) -> Path:
    """Train in this process. Returns the LoRA file."""
    asked = demo_config(place, concept, seed).replace(
        output_dir=place / name, name=name, sample_prompts=[], lora_dir=None, **changes
    )
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    with contextlib.redirect_stderr(io.StringIO()):
        status = job.run(folder.path)
    if status:
        raise SystemExit(f"{name} failed: {folder.read_state()}")
    return folder.path / folder.read_state().file


# --- measuring ------------------------------------------------------------------------------------


class HeldOut:
    """Drawings that no training has, encoded, with their noise."""

    def __init__(self, parts: Parts, concept: str) -> None:
        drawings = world.draw_concept(concept, HELD_OUT, HELD_OUT_SEED)
        pixels = torch.stack([to_tensor(drawing.image) for drawing in drawings])
        self._parts = parts
        self._captions = [drawing.caption for drawing in drawings]
        with torch.no_grad():
            self._latents = parts.family.encode_images(parts.vae, pixels).chunk(2, dim=1)[0]
            self._text = parts.family.encode_captions(
                parts, self._captions, clip_skip=1, max_token_length=75
            )

    def loss(self) -> float:
        """The mean L2 loss over drawings and noise levels."""
        family = self._parts.family
        process = family.noise_process(self._parts.schedule)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for level in range(NOISE_LEVELS):
            times = torch.full((HELD_OUT,), int((level + 0.5) * 1000 / NOISE_LEVELS))
            noise = torch.randn(self._latents.shape, generator=generator)
            with torch.no_grad():
                losses.append(
                    denoising_loss(
                        functools.partial(family.predict, self._parts.unet),
                        process,
                        self._latents,
                        self._text,
                        noise,
                        times,
                        torch.zeros(HELD_OUT, 6),
                        TrainingSettings(),
                    ).mean()
                )
        return float(torch.stack(losses).mean())


def measured(parts: Parts, concept: str, file: Path, held_out: HeldOut) -> Measured:
    with applied(parts, [LoraTag(file, 1.0)]):
        loss = held_out.loss()
    (judgement,) = judge(parts, concept, file, strengths=(1.0,)).judgements
    return Measured(loss=loss, presence=judgement.presence, survival=judgement.survival)


# --- the table ------------------------------------------------------------------------------------


def table(concept: str, base: float, results: Sequence[Mapping[str, Measured]]) -> str:
    """Means over the seeds, and the differences to `grown` of the same seed with their standard
    error.
    """
    lines = [
        f"**{concept}**, {len(results)} seeds; held-out loss of the checkpoint alone {base:.5f}",
        "",
        "| | held-out loss | grown minus this | presence | prompt words obeyed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in WAYS:
        losses = [result[way].loss for result in results]
        gains = [result["grown"].loss - result[way].loss for result in results]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        gain = "" if way == "grown" else f"{statistics.fmean(gains):+.5f} ± {error:.5f}"
        presence = statistics.fmean(result[way].presence for result in results)
        survival = statistics.fmean(result[way].survival for result in results)
        lines.append(
            f"| {way} | {statistics.fmean(losses):.5f} | {gain} | {presence:.2f} | {survival:.0%} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
