"""The demo: trains a LoRA on generated images with the embedded checkpoint, and draws a comparison
grid.

    draw a concept -> check it -> train a LoRA -> deliver it -> rows of prompts, columns of
    strengths

Uses the worker process, run folder and delivery like any run. Called by `python -m lora_trainer
demo`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_trainer import files, report
from lora_trainer.console import Console
from lora_trainer.demo import EMBEDDED, world
from lora_trainer.errors import CheckpointError
from lora_trainer.jobs.start import start_worker
from lora_trainer.runs import folder as folders
from lora_trainer.runs.events import Previewed
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ZOOM = 3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a concept's training and previews."""

    prompts: tuple[str, ...]
    steps: int = 250
    rank: int = 8
    learning_rate: float = 3e-3
    min_snr_gamma: float | None = None
    image_count: int = 24


RECIPES = {
    "ink": Recipe(
        prompts=(
            "a big heart in the middle, sumiwash style",
            "a small star on the left, sumiwash style",
            "a big square at the bottom, sumiwash style",
        )
    ),
    "neon": Recipe(
        prompts=(
            "a big blue heart in the middle, glowtube style",
            "a small red star on the left, glowtube style",
            "a big yellow circle on the right, glowtube style",
        ),
        steps=500,
        rank=16,
    ),
    "zorbl": Recipe(
        prompts=(
            "a big zorbl in the middle, green background",
            "a small zorbl on the left, yellow background",
            "a big zorbl at the bottom, blue background",
        ),
        steps=400,
        rank=16,
        learning_rate=2e-3,
        min_snr_gamma=5.0,
    ),
}


def run_demo(output: Path, concept: str) -> int:
    """Train the concept's LoRA in `output` (or output-2 ... if that is not empty) and draw the
    grid. Returns the worker's exit status.
    """
    started = time.monotonic()
    place, seed = folders.free_folder(output.absolute()), 0
    trigger = world.concept_named(concept).trigger
    world.write_concept(place / "images", concept, RECIPES[concept].image_count, seed)
    (place / "Lora").mkdir()
    print(
        f"Drew {RECIPES[concept].image_count} images of something the checkpoint has never seen:"
        f" {place / 'images'}",
        flush=True,
    )
    asked = demo_config(place, concept, seed)
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    status = Console(folder, start_worker(folder)).watch()
    if status == 0:
        grid = place / "what-it-learned.png"
        write_grid(folder, grid)
        print(summary(folder, grid, trigger, time.monotonic() - started))
    return status


def demo_config(place: Path, concept: str, seed: int) -> RunConfig:
    """The demo's settings: small enough for a minute on two CPU cores."""
    recipe = RECIPES[concept]
    return training.from_mapping(
        {
            "train_data_dir": place / "images",
            "base_model": embedded_checkpoint(),
            "output_dir": place / concept,
            "lora_dir": place / "Lora",
            "trigger_word": world.concept_named(concept).trigger,
            "lora_rank": recipe.rank,
            "learning_rate": recipe.learning_rate,
            "batch_size": 4,
            "max_train_steps": recipe.steps,
            "validation_split": 0,
            "save_steps": recipe.steps,
            "sample_every": recipe.steps,
            "sample_prompts": list(recipe.prompts),
            "sample_strengths": list(STRENGTHS),
            "sample_sampler": "ddim",
            "sample_guidance": 4.0,
            "min_snr_gamma": recipe.min_snr_gamma,
            "seed": seed,
        }
    )


def embedded_checkpoint() -> Path:
    """The embedded checkpoint's path. Raises CheckpointError if it is missing."""
    if not EMBEDDED.exists():
        raise CheckpointError(
            "the embedded checkpoint {path} is missing",
            hint="Download the project again.",
            path=EMBEDDED,
        )
    return EMBEDDED


def write_grid(folder: RunFolder, target: Path) -> None:
    """The last previews as one image: a row per prompt, a column per strength."""
    previews = folder.read_state().previews
    last = [preview for preview in previews if preview.step == previews[-1].step]
    rows: dict[str, list[Previewed]] = {}
    for preview in last:
        rows.setdefault(preview.prompt, []).append(preview)
    image = draw_grid(
        [[Image.open(folder.path / preview.file) for preview in row] for row in rows.values()],
        list(rows),
        STRENGTHS,
    )
    files.replace_file(target, lambda partial: image.save(partial, format="PNG"))


def draw_grid(
    rows: Sequence[Sequence[Image.Image]], prompts: Sequence[str], strengths: Sequence[float]
) -> Image.Image:
    """Enlarged images with their strengths and prompts."""
    side, gap, head, line = rows[0][0].width * ZOOM, 8, 44, 34
    font = ImageFont.load_default()
    sheet = Image.new(
        "RGB", (gap + len(strengths) * (side + gap), head + len(rows) * (side + line)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, strength in enumerate(strengths):
        label = "base (strength 0)" if strength == 0 else f"strength {strength:g}"
        draw.text((gap + column * (side + gap), 16), label, fill="black", font=font)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = head + number * (side + line)
        for column, image in enumerate(row):
            sheet.paste(
                image.resize((side, side), Image.Resampling.BICUBIC),
                (gap + column * (side + gap), top),
            )
        draw.text((gap, top + side + 8), prompt, fill="black", font=font)
    return sheet


def summary(folder: RunFolder, grid: Path, trigger: str, seconds: float) -> str:
    """What was trained, and what to do next."""
    state = folder.read_state()
    delivered = Path(state.delivered)
    strength = state.measured_strength(state.step) or training.DEFAULT_STRENGTH
    return "\n".join(
        [
            "",
            (
                f"In {seconds:.0f} seconds the embedded checkpoint learned something it had never"
                " seen. Look at it:"
            ),
            f"  {grid}",
            (
                "Each row is a prompt; from left to right the LoRA gets stronger. The left column"
                " is the checkpoint without it."
            ),
            (
                f"The LoRA is {delivered}; a WebUI would use it as"
                f" <lora:{delivered.stem}:{strength:g}> {trigger}"
            ),
            f"Its report, with curves, images and all settings: {folder.path / report.FILE}",
            "",
            "Next, your own images on your own checkpoint:",
            "  python -m lora_trainer init my_style.yaml",
            "  python -m lora_trainer train --config my_style.yaml",
        ]
    )
