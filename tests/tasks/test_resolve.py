from types import SimpleNamespace

import torch

from lora_trainer.checkpoint.detect import Detected
from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.families.stable_diffusion import SD1
from lora_trainer.settings import training
from lora_trainer.tasks.resolve import resolve

CHECKPOINT = SimpleNamespace(
    schedule=NoiseSchedule(),
    family=SD1,
    detected=Detected(family=SD1, has_vae=True),
    separate_paths=((), None),
)


def resolved(resolution, **values):
    asked = training.from_mapping(
        {"train_data_dir": "a", "base_model": "b", "output_dir": "c", **values}
    )
    return resolve(asked, CHECKPOINT, resolution, torch.float32, 100)


def test_what_nobody_asked_for_breaks_no_bound():
    run = resolved(2560, save_steps=5_000_000)
    assert (run.samples.sample_size, run.samples.sample_every) == (2048, 1_000_000)


def test_a_preview_has_the_size_its_text_says():
    assert resolved(512, sample_size=100).samples.sample_size == 96
