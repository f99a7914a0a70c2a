"""How often the verdict is right: runs on the embedded checkpoint whose fault is known.

    python -m tests.benchmark.verdict_quality FOLDER               trains what is not there yet, and
                                                                   prints the tables
    python -m tests.benchmark.verdict_quality FOLDER --seeds 0 1   other seeds; the thresholds were
                                                                   chosen on 0, 1 and 2
    python -m tests.benchmark.verdict_quality FOLDER --ema         with averaged weights
    python -m tests.benchmark.verdict_quality FOLDER --preset      with the learning rate lowered as
                                                                   the tab's presets lower it
    python -m tests.benchmark.verdict_quality FOLDER --recommended each save at the strength that
                                                                   the verdict recommends for it

A run of each case, concept and seed is trained in this process. Each of its saves is measured with
the demo's own measures (presence of the concept times share of the prompts' words that are obeyed),
which the verdict never sees, on the same scenes from the same noise. Then every run is judged:
precision and recall of each finding, and the quality of the step that was chosen, as a share of the
best saved step's, beside that of the last and of the lowest loss. The noise of such a share is
estimated by drawing scenes with replacement. The best of five noisy measurements is better measured
than it is, so that a table says as well what the share is when the best step is found by one half
of the scenes, and both are measured by the other. Judging again takes seconds, so that thresholds can be
changed without training.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate()

import torch

from lora_trainer import files
from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import EMBEDDED, obedience, report, world
from lora_trainer.demo.run import demo_config
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.training import device as devices
from lora_trainer.verdict.judge import Verdict, judge
from lora_trainer.verdict.measurements import read_measurements
from lora_trainer.webui.settings import presets
from lora_trainer.worker import job

CONCEPTS = {"ink": "style", "zorbl": "character"}
"""Concept -> the tab's preset for its kind."""
SCENES = 96
"""Images by which the quality of a save is measured. Of 24, one save's quality as a share of
another's has a standard error of 0.05; of 96, of 0.02.
"""
FIRST_SCENES = 24
CLEARLY_WORSE = 0.75
"""A save that comes to less than this share of the best by the first images is measured by them
alone, as is every save of a run in which none is any good.
"""
ANY_GOOD = 0.2
RESAMPLED = 200
OBEYED = "obeyed"
DONE = "trained"
"""An empty file beside a run that has ended."""
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


Images = list[dict[str, float]]
"""One for each scene: the concept's measures, and the share of the prompt's words obeyed."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The images of the checkpoint alone, and the measures of drawings of the concept."""

    without: Images
    drawn: dict[str, float]

    def quality(self, made: Images, scenes: Sequence[int] | None = None) -> float:
        """Presence of the concept (0 to 1) times share of the prompts' words obeyed, over all scenes
        or over some.
        """
        chosen = range(len(made)) if scenes is None else scenes
        shown = report.presence(
            {name: fmean(made[one][name] for one in chosen) for name in self.drawn},
            {name: fmean(self.without[one][name] for one in chosen) for name in self.drawn},
            self.drawn,
        )
        return min(1.0, max(0.0, shown)) * fmean(made[one][OBEYED] for one in chosen)


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """A trained run of a case. images: step -> what its save draws at the strength that is asked
    about; ends: what they are compared with.
    """

    case: str
    concept: str
    seed: int
    folder: RunFolder
    images: dict[int, Images]
    ends: Ends

    @property
    def qualities(self) -> dict[int, float]:
        return {step: self.ends.quality(found) for step, found in self.images.items()}

    @property
    def noise(self) -> float | None:
        """Standard error of a save's quality as a share of the best one's, for the save that comes
        next; None where no save is any good.
        """
        ranked = sorted(self.qualities, key=lambda step: self.qualities[step], reverse=True)
        if self.qualities[ranked[0]] < ANY_GOOD or len(ranked) < 2:
            return None
        best, next_one = (self.images[step] for step in ranked[:2])
        count = min(len(best), len(next_one))
        rng = random.Random(count)
        draws = [rng.choices(range(count), k=count) for _ in range(RESAMPLED)]
        return stdev(
            self.ends.quality(next_one, drawn) / self.ends.quality(best, drawn) for drawn in draws
        )

    def share_by_halves(self, step: int) -> float | None:
        """A step's quality as a share of the best saved step's, which is found by one half of the
        scenes while both are measured by the other: the mean over many halves. None if it was not
        measured by all scenes, or where no save is any good.
        """
        qualities = self.qualities
        whole = [one for one, made in self.images.items() if len(made) == SCENES]
        if step not in whole or max(qualities.values()) < ANY_GOOD:
            return None
        rng = random.Random(SCENES)
        shares = []
        for _ in range(RESAMPLED):
            scenes = rng.sample(range(SCENES), SCENES)
            one, other = scenes[: SCENES // 2], scenes[SCENES // 2 :]
            best = max(whole, key=lambda each: self.ends.quality(self.images[each], one))
            there = self.ends.quality(self.images[best], other)
            shares.append(self.ends.quality(self.images[step], other) / there)
        return fmean(shares)


# --- training -------------------------------------------------------------------------------------


def every_run(
    place: Path,
    seeds: Iterable[int],
    cases: Iterable[str],
    parts: Any,
    changes: dict[str, Any],
    *,
    preset: bool,
    recommended: bool,
) -> Iterator[MadeRun]:
    """Each run, trained and measured unless that is there. recommended: each save at the strength
    that the verdict recommends for it, else all at 1.
    """
    ends = {concept: _ends(parts, concept) for concept in CONCEPTS}
    for seed in seeds:
        for concept in CONCEPTS:
            for name in cases:
                where = place / f"{name.replace(' ', '-')}-{concept}-{seed}"
                if not (where / DONE).exists():
                    # what a run that was cut off has left
                    shutil.rmtree(where, ignore_errors=True)
                    schedule = preset_schedule(concept, CASES[name].steps) if preset else {}
                    _train(where, CASES[name], concept, seed, {**schedule, **changes})
                    (where / DONE).touch()
                folder = RunFolder(where / concept)
                file = where / ("images recommended.json" if recommended else "images.json")
                if not file.exists():
                    strengths = _strengths(folder, recommended=recommended)
                    found = _measured(parts, concept, folder, ends[concept], strengths)
                    files.write_text(file, json.dumps(found))
                run = MadeRun(
                    case=name,
                    concept=concept,
                    seed=seed,
                    folder=folder,
                    images={int(step): one for step, one in json.loads(file.read_text()).items()},
                    ends=ends[concept],
                )
                print(f"{where.name}: {run.qualities}", flush=True)
                yield run


def _train(place: Path, case: MadeCase, concept: str, seed: int, changes: dict[str, Any]) -> None:
    world.write_concept(place / "images", concept, case.image_count, seed)
    case.spoil(place / "images")
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
            **changes,
        }
    )
    folder = folders.begin(config.output.output_dir, training.to_yaml(config))
    job.run(folder.path)


def preset_schedule(concept: str, steps: int) -> dict[str, Any]:
    """The scheduler of the preset for the concept's kind, as it is set on every checkpoint but the
    embedded one, and the same share of the steps for the warm-up. What else a preset sets on the
    embedded checkpoint is what the demo trains with.
    """
    values = presets.read(presets.FOLDER / f"{CONCEPTS[concept]}.yaml").values
    share = values["lr_warmup_steps"] / values["max_train_steps"]
    return {"lr_scheduler": values["lr_scheduler"], "lr_warmup_steps": round(share * steps)}


def _prompts(concept: str, seed: int) -> list[str]:
    rng = random.Random(f"previews {concept} {seed}")
    chosen = world.concept_named(concept)
    return [chosen.caption(chosen.scene(rng), rng) for _ in range(2)]


# --- measuring ------------------------------------------------------------------------------------


def _strengths(folder: RunFolder, *, recommended: bool) -> dict[int, float]:
    """Saved step -> the strength that its file is measured at."""
    verdict = judge(folder) if recommended else None
    saved = [one.step for one in folder.read_state().saved if one.step]
    return {step: verdict.strength_of(step) if verdict else 1.0 for step in saved}


def _measured(
    parts: Any, concept: str, folder: RunFolder, ends: Ends, strengths: dict[int, float]
) -> dict[int, Images]:
    """Step -> the images of its save."""
    loras = {
        one.step: LoraTag(folder.path / one.file, strengths[one.step])
        for one in folder.read_state().saved
        if one.step
    }
    found = {step: _images(parts, concept, lora, 0, FIRST_SCENES) for step, lora in loras.items()}
    first = {step: ends.quality(made) for step, made in found.items()}
    best = max(first.values(), default=0.0)
    for step, value in first.items():
        if best >= ANY_GOOD and value >= CLEARLY_WORSE * best:
            found[step] += _images(parts, concept, loras[step], FIRST_SCENES, SCENES)
    return found


def _images(parts: Any, concept: str, lora: LoraTag | None, start: int, end: int) -> Images:
    """Of the scenes from `start` to `end`, FIRST_SCENES at a time."""
    judged = report.judged_scenes(concept, end)
    found: Images = []
    with (
        applied(parts, [lora] if lora else []),
        # twice as fast where the processor has it, and how people draw
        torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16()),
    ):
        for first in range(start, end, FIRST_SCENES):
            scenes, prompts = zip(*judged[first : first + FIRST_SCENES], strict=True)
            made = obedience.sample(parts, prompts, SEED + first, step_count=SAMPLER_STEPS)
            found += [
                {
                    **report.measured_means(concept, [image]),
                    OBEYED: report.survival(concept, [image], [scene]),
                }
                for image, scene in zip(made, scenes, strict=True)
            ]
    return found


def _has_bfloat16() -> bool:
    cpu = torch.device("cpu")
    return devices.choose_precision("auto", cpu, devices.SMALL_MODEL) == torch.bfloat16


def _ends(parts: Any, concept: str) -> Ends:
    drawn = [drawing.image for drawing in world.draw_concept(concept, SCENES, SEED)]
    return Ends(
        without=_images(parts, concept, None, 0, SCENES),
        drawn=report.measured_means(concept, drawn),
    )


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
    lines += ["", "| step | within 5 % | within 10 % | mean share of the best |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [
        _step_line("chosen", judged, lambda _, verdict: verdict and verdict.best_step),
        _step_line("last", judged, lambda run, _: max(run.qualities)),
        _step_line("lowest loss", judged, lambda run, _: _lowest_loss(run)),
    ]
    lines += ["", "| step, the best one by other scenes | within 5 % | within 10 % | mean share |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [
        _step_line("chosen", judged, lambda _, verdict: verdict and verdict.best_step, by_halves),
        _step_line("last", judged, lambda run, _: max(run.qualities), by_halves),
        _step_line("lowest loss", judged, lambda run, _: _lowest_loss(run), by_halves),
    ]
    noises = [noise for run in runs if (noise := run.noise) is not None]
    if noises:
        lines += ["", f"standard error of the next best's share: median {median(noises):.3f}"]
    return "\n".join(lines)


def _step_line(
    name: str,
    judged: list[tuple[MadeRun, Verdict | None]],
    step_of: Callable[[MadeRun, Verdict | None], int | None],
    share_of: Callable[[MadeRun, int | None], float | None] | None = None,
) -> str:
    """How good the step of a rule is, in the runs that have a good one."""
    shares = [
        share
        for run, verdict in judged
        if (share := (share_of or share_of_best)(run, step_of(run, verdict))) is not None
    ]
    near, nearer = (sum(share >= 1 - one for share in shares) for one in (2 * WITHIN, WITHIN))
    mean = f"{fmean(shares):.3f}" if shares else ""
    return f"| {name} | {nearer} of {len(shares)} | {near} of {len(shares)} | {mean} |"


def _lowest_loss(run: MadeRun) -> int | None:
    curve = read_measurements(run.folder).curve
    losses = {loss: step for step, loss in curve if step in run.qualities}
    return losses[min(losses)] if losses else None


def _case_line(name: str, case: MadeCase, judged: list[tuple[MadeRun, Verdict | None]]) -> str:
    found = [{one.name for one in verdict.findings} if verdict else set() for _, verdict in judged]
    named = sum(bool(each & set(case.expected)) or not (each or case.expected) for each in found)
    others = sorted({one for each in found for one in each - set(case.expected)})
    counted = ", ".join(f"{one} {sum(one in each for each in found)}" for one in others)
    shares = [
        share
        for run, verdict in judged
        if (share := share_of_best(run, verdict and verdict.best_step)) is not None
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


def by_halves(run: MadeRun, step: int | None) -> float | None:
    """`MadeRun.share_by_halves`; the plain share for a step that a quarter of the scenes has shown
    to be clearly worse.
    """
    share = None if step is None else run.share_by_halves(step)
    return share_of_best(run, step) if share is None else share


def share_of_best(run: MadeRun, step: int | None) -> float | None:
    """A step's quality as a share of the best saved step's; None where none is any good."""
    qualities = run.qualities
    best = max(qualities.values(), default=0.0)
    if best < ANY_GOOD or step not in qualities:
        return None
    return qualities[step] / best


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(6, 12))
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--ema", action="store_true", help="train with ema_decay: auto")
    parser.add_argument(
        "--preset", action="store_true", help="train with the scheduler of the tab's presets"
    )
    parser.add_argument(
        "--recommended",
        action="store_true",
        help="measure each save at the strength that the verdict recommends for it, not at 1",
    )
    asked = parser.parse_args(arguments)
    changes = {"ema_decay": None} if asked.ema else {}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = open_checkpoint(EMBEDDED).load(torch.float32)
    runs = every_run(
        asked.folder,
        asked.seeds,
        asked.cases,
        parts,
        changes,
        preset=asked.preset,
        recommended=asked.recommended,
    )
    print(table(list(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
