"""Another type of LoRA is one file: it is chosen, trained, exported, verified, applied, counted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from lora_trainer.adapters import types
from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.adapters.export import export
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.adapters.size import parameter_count
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.settings.training import LoraSettings, commented_yaml
from tests.adapters import full_matrix
from tests.adapters.test_export import METADATA, close, live
from tests.adapters.test_injected import fill, predictions
from tests.made import small_checkpoint
from tests.tiny import small_parts


@pytest.fixture
def toy(tmp_path, monkeypatch):
    shutil.copy(full_matrix.__file__, tmp_path / "full.py")
    monkeypatch.setattr(types, "__path__", [*types.__path__, str(tmp_path)])
    types.every.cache_clear()
    yield types.get("full")
    types.every.cache_clear()
    del sys.modules["lora_trainer.adapters.types.full"], types.full


def test_a_type_is_one_file(toy, tmp_path):
    settings = LoraSettings(lora_type="full", target_modules=("to_q", "to_v"))
    parts, base = small_parts(), small_parts()
    adapters = add_adapters(parts, settings, seed=0)
    close(predictions(parts), predictions(base))
    fill(adapters)
    report = export(adapters, parts, tmp_path / "x.safetensors", METADATA, torch.float32)
    assert report.module_count == adapters.module_count > 0
    path = small_checkpoint()
    detected = detect_any(path)
    shapes = detected.family.layer_shapes(path, detected)
    assert parameter_count(detected.family, shapes, settings) == adapters.parameter_count
    for strength in (0.0, 0.5, 1.0):
        with applied(base, [LoraTag(tmp_path / "x.safetensors", strength)]):
            close(predictions(base), live(parts, adapters, strength))
    adapters.remove()
    close(predictions(parts), predictions(base))


def test_the_settings_offer_it(toy):
    assert "full" in commented_yaml()
    assert Path(toy.__class__.__module__.replace(".", "/")).name == "full"
