"""The libraries of this process, and of the workers that it starts, are those that a run needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys

import pytest

from lora_trainer import environment
from lora_trainer.jobs.start import start_worker
from lora_trainer.packages import FAMILY_PACKAGES, WORKER_PACKAGES, Package
from tests.made import begin

NEWER = [package for package in FAMILY_PACKAGES["newer"] if package.name != "torch"]


@pytest.mark.parametrize("package", NEWER, ids=lambda package: package.name)
def test_the_newer_libraries_come_before_the_workers_own(package: Package) -> None:
    assert importlib.metadata.version(package.name) == package.version
    folder = environment.find_family_overlay("newer").folder
    for name in package.modules:
        module = importlib.import_module(name)
        assert str(module.__file__).startswith(str(folder))


def test_a_checkpoint_that_needs_nothing_newer_is_trained_with_the_workers_own(tmp_path) -> None:
    # the worker inherits PYTHONPATH, which names the newer ones
    assert any(entry.startswith(str(environment.FAMILY_OVERLAYS["newer"])) for entry in sys.path)
    folder = begin(tmp_path, max_train_steps=1, save_steps=1)
    assert start_worker(folder).wait() == 0
    versions = json.loads(folder.worker.read_text(encoding="utf-8"))["versions"]
    wanted = {package.name: package.version for package in WORKER_PACKAGES}
    for name in ("diffusers", "transformers", "peft", "safetensors"):
        assert versions[name] == wanted[name]
