"""The number of a LoRA's weights from headers alone equals what the adapters then have."""

from __future__ import annotations

import pytest

from lora_trainer.adapters.injected import add_adapters
from lora_trainer.adapters.size import parameter_count
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.demo import EMBEDDED
from lora_trainer.settings.training import LoraSettings
from tests.made import small_checkpoint, tiny_checkpoint

SETTINGS = {
    "default": LoraSettings(lora_rank=3),
    "convolutions": LoraSettings(lora_rank=4, target_modules=("conv1", "conv_shortcut")),
    "locon": LoraSettings(lora_type="locon", lora_rank=4, conv_rank=2),
    "two layers": LoraSettings(lora_rank=8, target_modules=("to_q", "to_v")),
    "text encoder too": LoraSettings(lora_rank=4, train_text_encoder=True),
    "some of the text encoder": LoraSettings(
        lora_rank=4, train_text_encoder=True, text_encoder_targets=("q_proj", "fc2")
    ),
}


def layers_of(path):
    detected = detect_any(path)
    return detected.family, detected.family.layer_shapes(path, detected)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_count_is_that_of_the_real_adapters(family, settings):
    path = small_checkpoint() if family == "sd1" else tiny_checkpoint(family)
    real = add_adapters(open_checkpoint(path).outline(), settings, 0)
    assert parameter_count(*layers_of(path), settings) == real.parameter_count


def test_names_of_no_layer_count_nothing():
    assert parameter_count(*layers_of(EMBEDDED), LoraSettings(target_modules=("query",))) == 0
