from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_trainer import environment
from lora_trainer.deferred import Deferred, DeferringFinder

STARTED = """
import os
import sys
sys.path.insert(0, sys.argv[1])
from lora_trainer import environment
environment.activate()
import torch
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel
from lora_trainer.checkpoint.tensors import build_empty
from lora_trainer.tasks import diffusion
from tests.tiny import tiny_text_encoders, tiny_unet

build_empty(lambda: (tiny_unet("sd1"), tiny_text_encoders("sd1")))
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight], lr=0.5)
checkpoint(torch.compiler.disable()(lambda w: (w * 2).sum()), weight, use_reentrant=False).backward()
optimizer.step()
if sys.platform == "linux":
    # not the address of this machine's name, which it need not have
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
group = torch.distributed
group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
group.destroy_process_group()
print(float(weight.detach()[0]) < 1, *(name for name in sys.argv[2:] if name in sys.modules))
from diffusers.models.transformers import FluxTransformer2DModel
from torch.distributed.tensor import Shard
from torch._dynamo import trace_rules
assert callable(trace_rules.lookup)
from transformers import BertConfig, models
print(torch._dynamo.is_compiling(), FluxTransformer2DModel.__name__, Shard(0).dim)
print(BertConfig.__module__, models.clip.CLIPConfig.__name__, hasattr(models, "missing"))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with two submodules, whose own module is in the way of nothing."""
    folder = tmp_path / "slow_to_import"
    folder.mkdir()
    (folder / "__init__.py").write_text("from slow_to_import import other\nname = 'real'\n")
    (folder / "other.py").write_text("import slow_to_import\nvalue = ['once']\n")
    (folder / "part.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    what = Deferred(harmless={"harmless": 1}, submodules=("part",))
    finder = DeferringFinder({"slow_to_import": what})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield "slow_to_import"
    for name in [name for name in sys.modules if name.startswith("slow_to_import")]:
        del sys.modules[name]


def test_a_harmless_name_and_a_submodule_do_not_import_the_package(package):
    import slow_to_import

    assert (slow_to_import.harmless, slow_to_import.part.value) == (1, 3)
    # who looks through all modules, as inspect and unittest do
    assert not hasattr(slow_to_import, "__warningregistry__")
    assert "slow_to_import.other" not in sys.modules


def test_where_any_submodule_is_spared_another_name_imports_the_package(package, monkeypatch):
    finder = sys.meta_path[0]
    monkeypatch.setitem(finder.waiting, package, Deferred(any_submodule=True))
    stand_in = importlib.import_module(package)
    assert (stand_in.part.value, "slow_to_import.other" in sys.modules) == (3, False)
    assert stand_in.name == "real" and "slow_to_import.other" in sys.modules
    assert sys.modules[package] is not stand_in and not hasattr(stand_in, "missing")


def test_any_other_name_imports_it(package):
    stand_in = importlib.import_module(package)
    from slow_to_import import name

    assert name == "real"
    assert "slow_to_import.other" in sys.modules
    assert sys.modules[package] is not stand_in
    assert stand_in.name == "real", "for who holds the one before"


def test_another_submodule_imports_it_first(package):
    stand_in = importlib.import_module(package)
    from slow_to_import.other import value

    assert value == ["once"], "it was not made a second time"
    assert sys.modules[package] is not stand_in
    assert value is sys.modules[package].other.value


def test_a_name_that_it_does_not_have_is_an_import_error_as_always(package):
    importlib.import_module(package)
    with pytest.raises(ImportError, match="missing"):
        from slow_to_import import missing  # noqa: F401


def test_a_training_imports_neither_a_compiler_nor_other_models_and_both_are_there_when_asked_for():
    asked = ("torch._dynamo.symbolic_convert", "sympy", "torch.distributed.tensor._ops")
    asked += ("diffusers.models.transformers.transformer_flux", "transformers.models.bert")
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(environment.ROOT), *asked],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "True",
        "False FluxTransformer2DModel 0",
        "transformers.models.bert.configuration_bert CLIPConfig False",
    ]
