"""A run folder as a worker leaves it, with made measurements: no model, no worker."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lora_trainer.runs import events
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from tests.made import draw_images
from tests.verdict.made_series import by_strength

HOSTILE = '<script>alert("1")</script> & more'


def write_run(
    place: Path, *, caption: str = "", prompts: tuple[str, ...] = ("a fox",)
) -> RunFolder:
    """A finished run of 100 steps, saved and measured at every 20th, that copies from step 80 on."""
    images = draw_images(place.parent / "images", 5)
    if caption:
        (images / "metadata.csv").unlink()
        for number in range(5):
            (images / f"img{number:02d}.txt").write_text(caption, encoding="utf-8")
    folder = RunFolder(place)
    folder.previews.mkdir(parents=True)
    folder.checkpoints.mkdir()
    config = training.from_mapping(
        {
            "train_data_dir": str(images),
            "base_model": str(place.parent / "base.safetensors"),
            "output_dir": str(place),
            "name": "ink",
            "trigger_word": "inkstyle",
            "max_train_steps": 100,
            "sample_prompts": list(prompts),
            "learning_rate": 2e-4,
        }
    )
    folder.config.write_text(training.to_yaml(config), encoding="utf-8")
    folder.worker.write_text(
        json.dumps({"pid": 1, "started": 1.0, "versions": {"torch": "2.9.0", "python": "3.12"}}),
        encoding="utf-8",
    )
    write = events.EventWriter(folder.events, clock=lambda: 1000.0).write
    write(events.Started())
    write(
        events.Planned(
            name="ink", family="sd1", step_count=100, image_count=5, resolution=64, device="cpu"
        )
    )
    write(events.Phase(phase="training", total=100))
    for step in range(0, 101, 20):
        if step:
            _train_to(folder, step, write)
        loss = 0.12 - 0.02 * min(step, 60) / 60 + 0.002 * max(0, step - 60) / 40
        write(
            events.Validated(
                step=step,
                training_loss=0.12 - 0.0004 * step,
                validation_loss=loss,
                by_strength={
                    f"{key:g}": value
                    for key, value in by_strength(1.0, 1 - loss / 0.12, 0.12).items()
                },
                unprompted_change=0.001 * step,
                prompted_change=0.002 * step,
                per_image={},
                seconds=0.1,
            )
        )
        if step:
            _preview(folder, step, prompts, write)
    write(events.Finished(step=100, file="checkpoints/ink-step00000100.safetensors"))
    return folder


def _train_to(folder: RunFolder, step: int, write: object) -> None:
    assert callable(write)
    for at in range(step - 19, step + 1):
        write(
            events.Progress(
                step=at, epoch=1, loss=0.12 - at / 2000, smoothed_loss=0.1, learning_rate=2e-4
            )
        )
    path = folder.saved_file("ink", step)
    path.write_bytes(b"weights")
    write(events.Saved(step=step, file=folder.relative(path)))


def _preview(folder: RunFolder, step: int, prompts: tuple[str, ...], write: object) -> None:
    assert callable(write)
    for number, prompt in enumerate(prompts):
        for strength in (0.0, 1.0):
            path = folder.previews / f"step{step:08d}-{number:02d}-strength{strength:.2f}.png"
            Image.new("RGB", (64, 64), (step, 2 * step, int(255 * strength))).save(path)
            write(
                events.Previewed(
                    step=step, file=folder.relative(path), prompt=prompt, strength=strength
                )
            )
    write(
        events.PicturesMeasured(
            step=step,
            encoder="",
            likeness=None,
            obedience=None,
            variety=None,
            nearest={"img01.png": step / 100},
            copied=["img01.png", "img03.png"] if step >= 80 else [],
            by_strength={},
            seconds=0.1,
        )
    )
