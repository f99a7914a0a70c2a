"""The golden run: 20 steps on the embedded checkpoint. A pure refactoring may not change it; a
change of training shows itself here.
"""

import pytest

from lora_trainer.demo import EMBEDDED, world
from lora_trainer.runs import events
from lora_trainer.runs import folder as folders
from lora_trainer.settings import training
from lora_trainer.worker import job

# float32 on a CPU, torch 2.13; other CPUs round differently in the last digits
GOLDEN = [
    0.0754485,
    0.0144509,
    0.0364004,
    0.0699183,
    0.0506598,
    0.0189296,
    0.055768,
    0.008856,
    0.0142358,
    0.056365,
    0.0120805,
    0.0277039,
    0.0265823,
    0.0421421,
    0.112329,
    0.045737,
    0.0402497,
    0.0397341,
    0.0386472,
    0.0397944,
]


def test_twenty_steps_give_the_losses_they_always_gave(tmp_path):
    world.write_concept(tmp_path / "images", "ink", 8, seed=0)
    asked = training.from_mapping(
        {
            "train_data_dir": tmp_path / "images",
            "base_model": EMBEDDED,
            "output_dir": tmp_path / "golden",
            "trigger_word": "sumiwash",
            "batch_size": 2,
            "max_train_steps": 20,
            "learning_rate": 1e-3,
            "lora_rank": 4,
            "save_steps": 20,
            "flip_augmentation": True,
            "caption_dropout": 0.1,
            "seed": 7,
            "mixed_precision": "no",
            "device": "cpu",
            "gradient_accumulation_steps": 2,
            "min_snr_gamma": 5.0,
        }
    )
    folder = folders.begin(asked.output.output_dir, training.to_yaml(asked))
    assert job.run(folder.path) == job.FINISHED
    losses = [
        event.loss
        for event in folder.read_events()
        if isinstance(event, events.Progress) and event.loss is not None
    ]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)
