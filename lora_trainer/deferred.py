"""Packages that libraries import at their start and hardly use: imported when something else than
their few harmless names is asked for.

diffusers imports torch._dynamo, the tracer of torch.compile, to mark classes for it, and all of its
transformer models where a UNet needs one of their files; torch's optimizers import torch._dynamo to
be left alone by it; transformers imports torch.distributed.tensor for models spread over several
devices, and looks through the sources of its 280 kinds of models where one is needed. Together that
is a third of a worker's start. Standard library only.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """What can be had of a package without importing it."""

    harmless: Mapping[str, Any] = field(default_factory=dict)
    """Name -> what stands for it meanwhile."""
    submodules: tuple[str, ...] = ()
    """Those that can be imported without it."""
    any_submodule: bool = False
    """Whether that is each of them."""

    def spares(self, submodule: str) -> bool:
        """Whether this submodule can be imported without the package."""
        return self.any_submodule or submodule in self.submodules


class DeferredModule(ModuleType):
    """Stands for a package that is not imported yet. A name, or a submodule, that is not in its
    Deferred imports the package, which takes its place.
    """

    def __init__(self, name: str, what: Deferred, finder: DeferringFinder) -> None:
        super().__init__(name)
        self.__dict__.update(what.harmless)
        self._what, self._finder = what, finder

    def __getattr__(self, name: str) -> Any:
        # the import system asks for these, and whoever looks through sys.modules
        if name.startswith("__"):
            raise AttributeError(name)
        here = self.__name__
        if sys.modules.get(here) is self:
            if self._what.spares(name) and importlib.util.find_spec(f"{here}.{name}"):
                return importlib.import_module(f"{here}.{name}")
            self._finder.import_now(self)
        return getattr(importlib.import_module(here), name)


class DeferringFinder(MetaPathFinder, Loader):
    """Gives stand-ins for the packages in `waiting`: full name -> Deferred."""

    def __init__(self, waiting: Mapping[str, Deferred]) -> None:
        self.waiting = dict(waiting)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.waiting:
            found = PathFinder.find_spec(fullname, path)
            if found is not None:
                found.loader = self
            return found
        package, _, name = fullname.rpartition(".")
        if package in self.waiting and not self.waiting[package].spares(name):
            self.import_now(sys.modules[package])
            if fullname in sys.modules:
                return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in, or the submodule that its package has just imported."""
        if spec.name in self.waiting:
            return DeferredModule(spec.name, self.waiting[spec.name], self)
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: a stand-in waits, and a submodule is there."""

    def import_now(self, stand_in: ModuleType) -> None:
        name = stand_in.__name__
        what = self.waiting.pop(name, None)
        if what is None:
            # another thread is importing it
            return
        del sys.modules[name]
        try:
            importlib.import_module(name)
        except BaseException:
            self.waiting[name] = what
            sys.modules[name] = stand_in
            raise


class _TraceRules(ModuleType):
    """Has no caches to clear; for anything else, torch._dynamo is imported."""

    @staticmethod
    def clear_lru_cache() -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def defer() -> None:
    """Let the packages above wait, where nothing has imported them yet."""
    if not any(isinstance(finder, DeferringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeferringFinder(_waiting()))


def _waiting() -> dict[str, Deferred]:
    # @disable and @disable()
    def unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
        return unchanged if function is None else function

    # what UNets and autoencoders are made of
    blocks = (
        "dual_transformer_2d",
        "sana_transformer",
        "transformer_2d",
        "transformer_temporal",
    )
    # nothing is compiled: a decorated function is as it was, and no module is a compiled one
    dynamo = {
        "allow_in_graph": unchanged,
        "disable": unchanged,
        "graph_break": lambda *_: None,
        "eval_frame": SimpleNamespace(**_classes("OptimizedModule")),
        # what begins a group of processes clears the rules' caches, where torch._dynamo is imported
        "trace_rules": _TraceRules("torch._dynamo.trace_rules"),
    }
    tensor = "torch.distributed.tensor"
    return {
        # gradient checkpointing reads its configuration
        "torch._dynamo": Deferred(harmless=dynamo, submodules=("config",)),
        tensor: Deferred(harmless=_classes("DTensor", "Replicate")),
        f"{tensor}.parallel": Deferred(harmless=_classes("ColwiseParallel", "RowwiseParallel")),
        "diffusers.models.transformers": Deferred(submodules=blocks),
        # one package for each kind of model; none needs the others
        "transformers.models": Deferred(any_submodule=True),
    }


def _classes(*names: str) -> dict[str, type]:
    """Classes of which there are no instances."""
    return {name: type(name, (), {}) for name in names}
