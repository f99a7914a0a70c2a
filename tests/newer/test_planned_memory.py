"""The closed formula for the families that need the newer libraries, against what is counted."""

from __future__ import annotations

import pytest
import torch

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.planner import accounting, formula
from tests.newer import tiny_flux2, tiny_z_image
from tests.planner.test_accounting import config_of

FULL_SIZE = {
    "klein4b": lambda folder: tiny_flux2.write_full_size(folder, "4B"),
    "klein9b": lambda folder: tiny_flux2.write_full_size(folder, "9B"),
    "zimage": tiny_z_image.write_full_size,
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_text_encoders_take_what_is_counted(name, tmp_path):
    checkpoint = open_checkpoint(FULL_SIZE[name](tmp_path))
    family = checkpoint.family
    layers = family.layer_shapes(checkpoint.path, checkpoint.detected)
    for precision in ("auto", "int8"):
        # in tiles, the text encoders take more than the VAE
        config = config_of(resolution=512, base_precision=precision, vae_tiling=True)
        counted = accounting.text_encoding_peak(checkpoint, config, torch.bfloat16, "cuda")
        predicted = formula.predict(family, layers, config, "half")
        assert predicted.encoding == pytest.approx(counted, rel=0.001), precision
