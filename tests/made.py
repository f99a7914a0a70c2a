"""Things tests train on, made on the spot: small images with captions, and tiny checkpoints in
the WebUI's format.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw

from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.runs.requests import forget_requests
from lora_trainer.settings import training
from lora_trainer.training import validation
from lora_trainer.worker import job
from tests.checkpoint.write import write_checkpoint
from tests.scratch import scratch_folder
from tests.tiny import small_parts, tiny_parts

SEED_1 = """train_data_dir: "./data/style_train"
metadata_path: "./data/style_train/metadata.csv"
base_model: "./models/Stable-diffusion/v1-5-pruned.safetensors"
lora_rank: 8
target_modules: ["to_q", "to_v"]
batch_size: 4
epochs: 10
learning_rate: 2e-4
output_dir: "./output/my_style_lora"
save_steps: 100
"""
SEED_2 = """train_data_dir: "./data/sci_lab"
metadata_path: "./data/sci_lab/metadata.csv"
base_model: "./models/sd-v1-5-pruned.safetensors"
lora_rank: 16
batch_size: 4
epochs: 15
learning_rate: 1.5e-4
output_dir: "./output/sci_lab_lora"
save_steps: 100
"""
"""The two YAML files of the articles this trainer began with, as they are printed there."""

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "white", "yellow")


def draw_images(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
    """`count` images of one disc each, captioned in metadata.csv as the seeds do: no header."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour, ground = COLOURS[number % 8], COLOURS[(number * 3 + 1) % 8]
        image = Image.new("RGB", size, ground)
        edge = 8 + number % 5
        ImageDraw.Draw(image).ellipse((edge, edge, size[0] - edge, size[1] - edge), fill=colour)
        image.save(folder / f"img{number:02d}.png")
        rows.append(f'img{number:02d}.png,"a {colour} disc on {ground}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@cache
def tiny_checkpoint(family: str, prediction_type: str = "epsilon") -> Path:
    """A tiny checkpoint file of random weights, made once a test session."""
    path = scratch_folder("tiny-checkpoint") / f"tiny-{family}.safetensors"
    # its images are 64 pixels wide, and it says so
    write_checkpoint(
        tiny_parts(family, prediction_type=prediction_type),
        path,
        metadata={"modelspec.resolution": "64x64"},
    )
    return path


@cache
def small_checkpoint() -> Path:
    """A still smaller SD1, for runs in which the model does not matter."""
    path = scratch_folder("small-checkpoint") / "small-sd1.safetensors"
    write_checkpoint(small_parts(), path, metadata={"modelspec.resolution": "64x64"})
    return path


SMALL = {"epochs": 2, "batch_size": 2, "save_steps": 100, "learning_rate": 1e-3, "lora_rank": 2}


def begin(
    tmp_path: Path, run: str = "run", family: str = "", images: int = 5, **changes: object
) -> RunFolder:
    """A run folder about to train a tiny checkpoint on a few drawn images: of the family as it is,
    or of the smallest SD1.
    """
    draw_images(tmp_path / "images", images)
    values = {
        "train_data_dir": str(tmp_path / "images"),
        "base_model": str(tiny_checkpoint(family) if family else small_checkpoint()),
        "output_dir": str(tmp_path / run),
        **SMALL,
        **changes,
    }
    asked = training.from_mapping(values)
    return folders.begin(asked.output.output_dir, training.to_yaml(asked))


def worker_here(folder: RunFolder, **_: object) -> SimpleNamespace:
    """In place of `start_worker`: the run in this process. Returns a worker that has ended."""
    forget_requests(folder.requests)
    status = job.run(folder.path)
    return SimpleNamespace(pid=os.getpid(), returncode=status, poll=lambda: status)


def losses(folder: RunFolder) -> list[float]:
    """The loss of every step so far, in order."""
    return [
        event.loss
        for event in folder.read_events()
        if isinstance(event, events.Progress) and event.loss is not None
    ]


def measure_after_few_images(monkeypatch: pytest.MonkeyPatch, effort: float) -> None:
    """Let checks take so many forward passes for each image that was trained."""
    monkeypatch.setattr(validation, "EFFORT", effort)


def checks(folder: RunFolder) -> list[events.Validated]:
    """The run's checks so far."""
    return [event for event in folder.read_events() if isinstance(event, events.Validated)]
