"""Evaluates LoRAs: how much of a concept they show at each strength, and how much of the prompt is
kept.

    LoRA files (trained as in the demo) -> images at strengths 0 to 1 -> `Judgement`s -> a table

The exported file is merged into the embedded checkpoint as a host does (`adapters.apply`), for
scenes that are not in the training images. Used by `python -m lora_trainer demo --report` and
tests/demo.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from lora_trainer import files
from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import Parts
from lora_trainer.console import Console
from lora_trainer.demo import measure, obedience, world
from lora_trainer.demo.run import RECIPES, STRENGTHS, demo_config, embedded_checkpoint
from lora_trainer.demo.world import CONCEPTS, Scene
from lora_trainer.errors import TrainingError
from lora_trainer.jobs.start import start_worker
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training

SCENES = 10
SEED = 77
PLACES = ("in the middle", "on the left", "on the right", "at the top", "at the bottom")
MEASURES: dict[str, dict[str, Callable[[Image.Image], float]]] = {
    "ink": {
        "saturation": measure.saturation,
        "edge softness": measure.edge_softness,
        "grain": measure.grain,
    },
    "neon": {"darkness": measure.darkness, "neon glow": measure.neon_glow},
    "zorbl": {"likeness": measure.likeness},
}
"""The measures of each concept."""


@dataclass(frozen=True)
class Judgement:
    """Results at one strength. presence: 0 as in the base, 1 as in drawings. survival: share of the
    prompts' attributes kept.
    """

    strength: float
    measures: Mapping[str, float]
    presence: float
    survival: float


@dataclass(frozen=True)
class ConceptVerdict:
    """Results at all strengths, and whether the LoRA passes."""

    concept: str
    judgements: tuple[Judgement, ...]
    base_unchanged: bool
    """Whether images at strength 0 are bit-identical to the base's."""

    @property
    def failures(self) -> list[str]:
        """What is wrong, as sentences; empty if it passes."""
        presences = [judgement.presence for judgement in self.judgements]
        found = []
        if not self.base_unchanged:
            found.append("strength 0 differs from the base")
        if presences[-1] < 0.5:
            found.append(f"only {presences[-1]:.2f} of the concept shows at strength 1")
        if any(later < earlier - 0.1 for earlier, later in itertools.pairwise(presences)):
            found.append("the effect does not grow with the strength")
        if self.judgements[-1].survival < 0.6:
            found.append(
                f"only {self.judgements[-1].survival:.0%} of the prompts' words survive at"
                " strength 1"
            )
        return found


def judged_scenes(concept: str, count: int = SCENES) -> list[tuple[Scene, str]]:
    """Scenes and prompts, worded like the training captions."""
    rng = random.Random(f"judged {concept}")
    scenes = [CONCEPTS[concept].scene(rng) for _ in range(count)]
    return [(scene, CONCEPTS[concept].caption(scene, rng)) for scene in scenes]


def pictures(parts: Parts, prompts: Sequence[str], loras: Sequence[LoraTag]) -> list[Image.Image]:
    """One image per prompt, from the same noise."""
    with applied(parts, loras):
        return obedience.sample(parts, prompts, SEED, step_count=20)


def judge(
    parts: Parts, concept: str, lora: Path, strengths: Sequence[float] = STRENGTHS
) -> ConceptVerdict:
    """Generate and evaluate images at each strength."""
    scenes = judged_scenes(concept)
    prompts = [prompt for _, prompt in scenes]
    drawn = [drawing.image for drawing in world.draw_concept(concept, 24, SEED)]
    base = pictures(parts, prompts, [])
    at_zero, at_one = measured_means(concept, base), measured_means(concept, drawn)
    judgements = []
    unchanged = True
    for strength in strengths:
        made = pictures(parts, prompts, [LoraTag(lora, strength)])
        if strength == 0:
            unchanged = all(
                picture.tobytes() == before.tobytes()
                for picture, before in zip(made, base, strict=True)
            )
        means = measured_means(concept, made)
        judgements.append(
            Judgement(
                strength,
                means,
                presence(means, at_zero, at_one),
                survival(concept, made, [scene for scene, _ in scenes]),
            )
        )
    return ConceptVerdict(concept, tuple(judgements), unchanged)


def survival(concept: str, made: Sequence[Image.Image], scenes: Sequence[Scene]) -> float:
    """Share of the prompts' attributes that the concept should keep and the images show."""
    chosen = CONCEPTS[concept]
    names = [*chosen.mentioned, *(["shape"] if chosen.kind == "style" else [])]
    kept = [
        measure.obeyed(picture, scene, outlined=concept == "neon")
        for picture, scene in zip(made, scenes, strict=True)
    ]
    return fmean(fmean(found[name] for name in names) for found in kept)


def presence(
    means: Mapping[str, float], at_zero: Mapping[str, float], at_one: Mapping[str, float]
) -> float:
    """0 if the measures are as in `at_zero`, 1 if as in `at_one`; their mean."""
    return fmean(
        min(1.2, max(-0.2, (means[name] - at_zero[name]) / (at_one[name] - at_zero[name])))
        for name in means
    )


def measured_means(concept: str, images: Sequence[Image.Image]) -> dict[str, float]:
    """The concept's measures, averaged over images."""
    return {
        name: fmean(measured(image) for image in images)
        for name, measured in MEASURES[concept].items()
    }


def train_concept(
    place: Path,
    concept: str,
    seed: int = 0,
    *,
    spoil: Callable[[Path], None] | None = None,
    **changes: object,
) -> Path:
    """Train a concept as in the demo, without previews. Returns the LoRA file. `spoil` may modify
    the dataset first.

    Raises TrainingError if the run does not finish.
    """
    world.write_concept(place / "images", concept, RECIPES[concept].image_count, seed)
    if spoil is not None:
        spoil(place / "images")
    (place / "Lora").mkdir()
    asked = demo_config(place, concept, seed).replace(sample_prompts=[], lora_dir=None, **changes)
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    if Console(folder, start_worker(folder)).watch() != 0:
        raise TrainingError(
            "the demo's {concept} was not trained",
            hint="See {log}.",
            concept=concept,
            log=folder.log,
        )
    return folder.path / folder.read_state().file


def run_report(output: Path) -> int:
    """Train and evaluate every concept; write report.md and report.json. Returns 0 if all pass."""
    place = folders.free_folder(output.absolute())
    parts = open_checkpoint(embedded_checkpoint()).load(torch.float32)
    started = time.monotonic()
    trained = {concept: train_concept(place / concept, concept) for concept in CONCEPTS}
    verdicts = [judge(parts, concept, lora) for concept, lora in trained.items()]
    pair = judge_two(parts, trained["zorbl"], trained["ink"])
    text = "\n".join(
        [
            *map(table, verdicts),
            pair_table(pair),
            f"{time.monotonic() - started:.0f} seconds in all.",
        ]
    )
    files.write_text(place / "report.md", text + "\n")
    files.write_text(
        place / "report.json",
        json.dumps(
            {"concepts": [asdict(verdict) for verdict in verdicts], "pair": asdict(pair)}, indent=1
        ),
    )
    print(f"\n{text}\n\n{place / 'report.md'}")
    return 1 if pair.failures or any(verdict.failures for verdict in verdicts) else 0


@dataclass(frozen=True)
class Pair:
    """The character and the ink style in one prompt: measures with neither LoRA, either, and
    both.
    """

    likeness: Mapping[str, float]
    grain: Mapping[str, float]

    @property
    def failures(self) -> list[str]:
        """Together, at least half of the character's gain in likeness, and visible paper grain, are
        required.
        """
        found = []
        halfway = (self.likeness["neither"] + self.likeness["character"]) / 2
        if self.likeness["both"] < halfway:
            found.append(f"together, the character's likeness is only {self.likeness['both']:.2f}")
        if self.grain["both"] < max(1.0, 3 * abs(self.grain["character"])):
            found.append(f"together, the style's grain is only {self.grain['both']:.2f}")
        return found


def judge_two(parts: Parts, character: Path, style: Path, strength: float = 0.8) -> Pair:
    """Generate the character in the ink style with both LoRAs, like `<lora:zorbl:0.8>
    <lora:ink:0.8>`.
    """
    rng = random.Random("both")
    prompts = [
        f"a big zorbl {where}, {CONCEPTS['ink'].trigger} style"
        for where in rng.choices(PLACES, k=SCENES)
    ]
    cases: dict[str, list[LoraTag]] = {
        "neither": [],
        "character": [LoraTag(character, strength)],
        "style": [LoraTag(style, strength)],
        "both": [LoraTag(character, strength), LoraTag(style, strength)],
    }
    made = {name: pictures(parts, prompts, loras) for name, loras in cases.items()}
    return Pair(
        likeness={
            name: fmean(measure.likeness(picture) for picture in shown)
            for name, shown in made.items()
        },
        grain={
            name: fmean(measure.grain(picture) for picture in shown) for name, shown in made.items()
        },
    )


def table(verdict: ConceptVerdict) -> str:
    """One concept as a Markdown table."""
    names = list(verdict.judgements[0].measures)
    lines = [
        f"**{verdict.concept}** (trigger {CONCEPTS[verdict.concept].trigger}): "
        + ("; ".join(verdict.failures) or "passes"),
        "",
        f"| strength | {' | '.join(names)} | presence | prompt words obeyed |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for judgement in verdict.judgements:
        values = " | ".join(f"{judgement.measures[name]:.3f}" for name in names)
        lines.append(
            f"| {judgement.strength:g} | {values} | {judgement.presence:.2f} |"
            f" {judgement.survival:.0%} |"
        )
    return "\n".join([*lines, ""])


def pair_table(pair: Pair) -> str:
    """`judge_two` as a Markdown table."""
    lines = [
        f"**zorbl and ink in one prompt**, 0.8 each: {'; '.join(pair.failures) or 'both show'}",
        "",
        "| | likeness to the zorbl | grain of the ink's paper |",
    ]
    lines.append("| --- | --- | --- |")
    lines += [
        f"| {name} | {pair.likeness[name]:.2f} | {pair.grain[name]:.2f} |" for name in pair.likeness
    ]
    return "\n".join([*lines, ""])
