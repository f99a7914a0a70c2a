"""The model families that can be trained, each told by one module of this folder.

    every()          all of them
    get("sdxl")      one, by its id
    find(word)       one, or None where no family has this id

A module here that defines FAMILIES is found by itself: to add a family is to add one file.
`components/` holds what several share and needs torch; the modules here import without it, because
the tab asks them what a checkpoint is.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lora_trainer.families.base import Family


@cache
def every() -> tuple[Family, ...]:
    """All families, by the names of their modules and in the order of each FAMILIES."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = tuple(family for module in modules for family in getattr(module, "FAMILIES", ()))
    ids = [family.id for family in found]
    assert len(set(ids)) == len(ids), f"two families of one id: {sorted(ids)}"
    return found


def find(word: object) -> Family | None:
    """The family of this id, as it is kept in files and events; None if there is none."""
    return next((family for family in every() if family.id == word), None)


def get(word: str) -> Family:
    """The family of this id. Raises KeyError."""
    family = find(word)
    if family is None:
        raise KeyError(word)
    return family


def of_metadata(version: str) -> Family | None:
    """The family that a LoRA's `ss_base_model_version` names."""
    return next((family for family in every() if family.is_named_by(version)), None)
