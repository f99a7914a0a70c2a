"""The closed formula is near the accounting, and imports without torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from lora_trainer import environment, families
from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.planner import accounting, formula
from lora_trainer.planner.plan import overhead_of
from tests.checkpoint.samples import FAMILIES, full_file
from tests.families import tiny_flux
from tests.made import small_checkpoint
from tests.planner.test_accounting import config_of


def layers_of(path):
    checkpoint = open_checkpoint(path)
    return checkpoint.family.layer_shapes(path, checkpoint.detected)


def test_the_formula_is_near_the_accounting(tmp_path):
    # none of these numbers is one that the constants were fitted to
    path = full_file(tmp_path, "sd1")
    checkpoint = open_checkpoint(path)
    config = config_of(
        resolution=384,
        batch_size=3,
        lora_rank=24,
        gradient_checkpointing=True,
        base_precision="fp8",
        blocks_to_swap=20,
    )
    counted = accounting.account(checkpoint, config, torch.bfloat16)
    found = formula.predict(checkpoint.family, layers_of(path), config, "half")
    assert found.peak == pytest.approx(counted.peak, rel=0.05)
    assert found.adapters == counted.adapters
    assert found.weights == pytest.approx(counted.weights, rel=0.01)
    assert formula.block_count(checkpoint.family, layers_of(path)) == 44


WITH_DROPOUT = (
    ({"resolution": 512}, 3.473),
    ({"resolution": 512, "gradient_checkpointing": True}, 2.113),
)
"""GiB of SD1.5's peak at rank 8, each a step that was counted."""


@pytest.mark.parametrize(("changes", "counted"), WITH_DROPOUT)
def test_what_dropout_keeps_is_in_the_formula(changes, counted, tmp_path):
    path, known = full_file(tmp_path, "sd1"), families.get("sd1")
    asked = {"lora_rank": 8, **changes}
    plain, dropped, other = (
        formula.predict(known, layers_of(path), config_of(**asked, lora_dropout=share), "half")
        for share in (0.0, 0.1, 0.5)
    )
    assert dropped.peak / 2**30 == pytest.approx(counted, rel=0.01)
    assert plain.peak < 0.95 * dropped.peak and other == dropped


COUNTED = (
    ({"resolution": 512}, 36.25),
    ({"resolution": 512, "gradient_checkpointing": True}, 24.39),
    ({"resolution": 512, "gradient_checkpointing": True, "base_precision": "int8"}, 13.42),
    ({"resolution": 1024, "gradient_checkpointing": True, "base_precision": "int8"}, 15.34),
)
"""GiB of FLUX.1's peak at rank 16, each a step that was counted: in half a minute, so not here."""


def test_at_full_size_flux_takes_what_was_counted(tmp_path):
    path, known = tiny_flux.full_size(tmp_path), families.get("flux")
    layers = layers_of(path)
    for changes, counted in COUNTED:
        step = formula.predict(known, layers, config_of(lora_rank=16, **changes), "half")
        peak = max(step.peak, step.encoding) + overhead_of(step, "cuda")
        assert peak / 2**30 == pytest.approx(counted, rel=0.005)
    swapped = config_of(lora_rank=16, resolution=512, base_precision="int8", blocks_to_swap=57)
    assert formula.block_count(known, layers) == 57
    # what is then largest are the text encoders
    assert formula.predict(known, layers, swapped, "half").encoding / 2**30 == pytest.approx(
        4.787, rel=0.001
    )


FULL = [entry["family"] for entry in formula._table() if entry["family"] in FAMILIES]


@pytest.mark.parametrize("family", FULL)
def test_published_architectures_are_known(family, tmp_path):
    layers, known = layers_of(full_file(tmp_path, family)), families.get(family)
    half = formula.predict(known, layers, config_of(resolution=512), "half")
    assert half is not None and half.weights > 1.6e9
    saving = config_of(resolution=512, gradient_checkpointing=True)
    assert formula.predict(known, layers, saving, "half").peak < 0.9 * half.peak
    assert formula.predict(known, layers, config_of(resolution=512), "full").peak > half.peak
    more = formula.predict(known, layers, config_of(resolution=512, batch_size=2), "half")
    assert more.activations == pytest.approx(2 * half.activations, rel=0.1)


def test_other_architectures_are_not_guessed():
    known = families.get("sd1")
    assert formula.predict(known, layers_of(small_checkpoint()), config_of(), "half") is None


def test_the_formula_is_asked_without_torch_and_at_each_keystroke(tmp_path):
    code = (
        "import sys, lora_trainer.planner.plan, lora_trainer.planner.throughput;"
        " found = {'torch', 'diffusers', 'numpy'} & set(sys.modules);"
        " sys.exit(str(found) if found else 0)"
    )
    environ = {"PYTHONPATH": ":".join([str(environment.ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    layers, config = layers_of(full_file(tmp_path, "sd1")), config_of(resolution=512)
    start = time.process_time()
    for _ in range(20):
        formula.predict(families.get("sd1"), layers, config, "half")
    assert (time.process_time() - start) / 20 < 0.05
