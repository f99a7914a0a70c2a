"""How often the verdict is right: runs on the embedded checkpoint whose fault is known.

    python -m tests.benchmark.verdict_quality FOLDER               trains what is not there yet, and
                                                                   prints the tables
    python -m tests.benchmark.verdict_quality FOLDER --seeds 0 1   other seeds; the thresholds were
                                                                   chosen on 0, 1 and 2

A run of each case, concept and seed is trained in this process. Each of its saves is measured with
the demo's own measures (presence of the concept times share of the prompts' words that are obeyed),
which the verdict never sees. Then every run is judged: precision and recall of each finding, and
the quality of the step that was chosen, as a share of the best saved step's. Judging again takes
seconds, so that thresholds can be changed without training.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate()

import torch
from PIL import Image

from lora_trainer import files
from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import EMBEDDED, obedience, report, world
from lora_trainer.demo.run import demo_config
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.verdict.judge import Verdict, judge
from lora_trainer.worker import job

CONCEPTS = ("ink", "zorbl")
SCENES = 24
"""Images by which the quality of a save is measured."""
SAMPLER_STEPS = 10
SEED = 5
WITHIN = 0.05
"""A chosen step's quality may be this share below the best one's."""


def as_drawn(folder: Path) -> None:
    """The images and captions as they were drawn."""


def deal_captions_anew(folder: Path) -> None:
    """A third of the images get captions of each other."""
    with (folder / "metadata.csv").open(encoding="utf-8-sig", newline="") as stream:
        head, *rows = list(csv.reader(stream))
    captions = [caption for _, caption in rows]
    for place in range(0, len(rows) // 3 - 1, 2):
        captions[place], captions[place + 1] = captions[place + 1], captions[place]
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        names = (name for name, _ in rows)
        csv.writer(stream).writerows([head, *zip(names, captions, strict=True)])


@dataclass(frozen=True, kw_only=True)
class MadeCase:
    """A way to train. expected: findings, of which at least one has to be named; allowed: others
    that are true of it as well.
    """

    image_count: int = 24
    steps: int = 160
    saves: int = 5
    changes: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], None] = as_drawn
    expected: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


CASES = {
    "fine": MadeCase(),
    "three images": MadeCase(
        image_count=3, steps=240, expected=("overfit", "copies"), allowed=("too_little_variety",)
    ),
    "rate ten times too high": MadeCase(
        changes={"learning_rate": 3e-2}, expected=("rate_too_high",)
    ),
    "captions of each other": MadeCase(
        spoil=deal_captions_anew, expected=("captions_disagree",), allowed=("overfit",)
    ),
    "far too few steps": MadeCase(
        steps=40, saves=2, changes={"learning_rate": 3e-4}, expected=("too_few_steps",)
    ),
}


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """A trained run of a case. qualities: step -> true quality of its save."""

    case: str
    concept: str
    seed: int
    folder: RunFolder
    qualities: dict[int, float]


# --- training -------------------------------------------------------------------------------------


def every_run(
    place: Path, seeds: Iterable[int], cases: Iterable[str], parts: Any
) -> Iterator[MadeRun]:
    """Each run, trained unless it is there."""
    for seed in seeds:
        for concept in CONCEPTS:
            for name in cases:
                yield _run(
                    place / f"{name.replace(' ', '-')}-{concept}-{seed}", name, concept, seed, parts
                )


def _run(place: Path, name: str, concept: str, seed: int, parts: Any) -> MadeRun:
    done = files.read_json(place / "qualities.json", dict, None)
    if done is None:
        folder = _trained(place, CASES[name], concept, seed)
        done = {
            str(saved.step): quality(parts, concept, folder.path / saved.file)
            for saved in folder.read_state().saved
        }
        files.write_text(place / "qualities.json", json.dumps(done))
        print(f"{place.name}: {done}", flush=True)
    return MadeRun(
        case=name,
        concept=concept,
        seed=seed,
        folder=RunFolder(place / concept),
        qualities={int(step): value for step, value in done.items()},
    )


def _trained(place: Path, case: MadeCase, concept: str, seed: int) -> RunFolder:
    world.write_concept(place / "images", concept, case.image_count, seed)
    case.spoil(place / "images")
    (place / "Lora").mkdir(exist_ok=True)
    config = demo_config(place, concept, seed).replace(
        **{
            "lora_dir": None,
            "validation_split": None,
            "max_train_steps": case.steps,
            "save_steps": max(1, case.steps // case.saves),
            "sample_every": max(1, case.steps // case.saves),
            "sample_prompts": _prompts(concept, seed),
            "sample_strengths": [0.0, 1.0],
            "sample_steps": SAMPLER_STEPS,
            **case.changes,
        }
    )
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    job.run(folder.path)
    return folder


def _prompts(concept: str, seed: int) -> list[str]:
    rng = random.Random(f"previews {concept} {seed}")
    chosen = world.concept_named(concept)
    return [chosen.caption(chosen.scene(rng), rng) for _ in range(2)]


def quality(parts: Any, concept: str, lora: Path) -> float:
    """Presence of the concept (0 to 1) times share of the prompts' words obeyed, at strength 1."""
    made = _drawn(parts, concept, lora)
    shown = report.presence(report.measured_means(concept, made), *_ends(parts, concept))
    scenes = [scene for scene, _ in report.judged_scenes(concept, SCENES)]
    return min(1.0, max(0.0, shown)) * report.survival(concept, made, scenes)


def _drawn(parts: Any, concept: str, lora: Path | None) -> list[Image.Image]:
    prompts = [prompt for _, prompt in report.judged_scenes(concept, SCENES)]
    with applied(parts, [LoraTag(lora, 1.0)] if lora else []):
        return obedience.sample(parts, prompts, SEED, step_count=SAMPLER_STEPS)


_known_ends: dict[str, tuple[dict[str, float], dict[str, float]]] = {}


def _ends(parts: Any, concept: str) -> tuple[dict[str, float], dict[str, float]]:
    """The concept's measures without a LoRA, and in drawings."""
    if concept not in _known_ends:
        drawn = [drawing.image for drawing in world.draw_concept(concept, 24, SEED)]
        _known_ends[concept] = (
            report.measured_means(concept, _drawn(parts, concept, None)),
            report.measured_means(concept, drawn),
        )
    return _known_ends[concept]


# --- judging --------------------------------------------------------------------------------------


def table(runs: list[MadeRun]) -> str:
    """Each case's findings, precision and recall of each finding, and the chosen steps."""
    judged = [(run, judge(run.folder)) for run in runs]
    lines = [
        "| case | runs | named | also named | chosen step within 5 % | mean share of the best |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        of_case = [(run, verdict) for run, verdict in judged if run.case == name]
        if of_case:
            lines.append(_case_line(name, case, of_case))
    names = sorted({one for case in CASES.values() for one in case.expected})
    lines += ["", "| finding | precision | recall |", "| --- | --- | --- |"]
    lines += [_finding_line(name, judged) for name in names]
    shares = [
        share for run, verdict in judged if (share := share_of_best(run, verdict)) is not None
    ]
    near = sum(share >= 1 - WITHIN for share in shares)
    lines += ["", f"chosen step within {WITHIN:.0%} of the best: {near} of {len(shares)}"]
    return "\n".join(lines)


def _case_line(name: str, case: MadeCase, judged: list[tuple[MadeRun, Verdict | None]]) -> str:
    found = [{one.name for one in verdict.findings} if verdict else set() for _, verdict in judged]
    named = sum(bool(each & set(case.expected)) or not (each or case.expected) for each in found)
    others = sorted({one for each in found for one in each - set(case.expected)})
    counted = ", ".join(f"{one} {sum(one in each for each in found)}" for one in others)
    shares = [
        share for run, verdict in judged if (share := share_of_best(run, verdict)) is not None
    ]
    near = sum(share >= 1 - WITHIN for share in shares)
    mean = f"{fmean(shares):.2f}" if shares else ""
    return f"| {name} | {len(judged)} | {named} | {counted} | {near} of {len(shares)} | {mean} |"


def _finding_line(name: str, judged: list[tuple[MadeRun, Verdict | None]]) -> str:
    """A run has a finding when its case expects it; those that allow it count in neither."""
    hits = misses = false = 0
    for run, verdict in judged:
        case = CASES[run.case]
        said = verdict is not None and any(one.name == name for one in verdict.findings)
        if name in case.expected:
            hits, misses = hits + said, misses + (not said)
        elif name not in case.allowed:
            false += said
    precision = f"{hits / (hits + false):.2f}" if hits + false else "-"
    recall = f"{hits / (hits + misses):.2f}" if hits + misses else "-"
    return f"| {name} | {precision} ({hits} of {hits + false}) | {recall} ({hits} of {hits + misses}) |"


def share_of_best(run: MadeRun, verdict: Verdict | None) -> float | None:
    """The chosen step's quality as a share of the best saved step's; None where none is any good."""
    best = max(run.qualities.values(), default=0.0)
    if verdict is None or best < 0.2 or verdict.best_step not in run.qualities:
        return None
    return run.qualities[verdict.best_step] / best


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(6, 12))
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = open_checkpoint(EMBEDDED).load(torch.float32)
    print(table(list(every_run(asked.folder, asked.seeds, asked.cases, parts))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
