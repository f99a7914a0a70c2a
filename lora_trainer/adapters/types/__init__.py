"""The LoRA types, one module each.

    every()         all types
    get("lora")     one, by its id

A type is found through its module's TYPES. The modules import without torch, for the tab.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lora_trainer.adapters.base import LoraType


@cache
def every() -> tuple[LoraType, ...]:
    """All types, plain LoRA first."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [one for module in modules for one in getattr(module, "TYPES", ())]
    return tuple(sorted(found, key=lambda one: (one.id != "lora", one.id)))


def get(type_id: str) -> LoraType:
    """The type with this id. Raises KeyError."""
    return {one.id: one for one in every()}[type_id]
