"""The model families that can be trained, one module each.

    every()          all of them
    get("sdxl")      one, by its id
    find(id)         one, or None

A family is found through its module's FAMILIES. The modules import without torch, for the tab;
`components/` holds what several share and needs torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lora_trainer.families.base import Family


@cache
def every() -> tuple[Family, ...]:
    """All families, in order of module names and of each FAMILIES."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = tuple(family for module in modules for family in getattr(module, "FAMILIES", ()))
    ids = [family.id for family in found]
    assert len(set(ids)) == len(ids), f"two families of one id: {sorted(ids)}"
    return found


def find(family_id: object) -> Family | None:
    """The family with this id, as in files and events, or None."""
    return next((family for family in every() if family.id == family_id), None)


def get(family_id: str) -> Family:
    """The family with this id. Raises KeyError."""
    family = find(family_id)
    if family is None:
        raise KeyError(family_id)
    return family


def of_metadata(version: str) -> Family | None:
    """The family for a LoRA's `ss_base_model_version`, or None."""
    return next((family for family in every() if family.is_named_by(version)), None)
