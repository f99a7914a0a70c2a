"""The types of LoRA, one module each.

    every()         all types
    get("lora")     one, by its id

A module here that defines TYPES is found by itself: to add a type is to add one file. They import
without torch, because the tab offers them and asks how large a LoRA will be.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lora_trainer.adapters.base import LoraType


@cache
def every() -> tuple[LoraType, ...]:
    """All types, the plain LoRA first."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [one for module in modules for one in getattr(module, "TYPES", ())]
    return tuple(sorted(found, key=lambda one: (one.id != "lora", one.id)))


def get(word: str) -> LoraType:
    """The type of this id. Raises KeyError."""
    return {one.id: one for one in every()}[word]
