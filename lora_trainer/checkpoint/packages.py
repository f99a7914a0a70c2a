"""Which set of training libraries a checkpoint needs, and how a process comes to import them.

Families may need newer libraries than the worker's set has (`Family.packages`). A process imports
one version only, so this is decided from the checkpoint's header, before torch or any of those
libraries is imported.
"""

from __future__ import annotations

from pathlib import Path

from lora_trainer import environment
from lora_trainer.checkpoint.folder import detect_any
from lora_trainer.environment import Overlay
from lora_trainer.errors import LoraTrainerError


def packages_of(path: Path) -> str:
    """The name in packages.FAMILY_PACKAGES of what this checkpoint needs; "": the worker's own set
    serves, or the checkpoint cannot be trained on, which whoever opens it will say.
    """
    try:
        return detect_any(path).family.packages
    except (LoraTrainerError, OSError):
        return ""


def activate_for(path: Path) -> Overlay | None:
    """Make this process import what the checkpoint needs. Call it after environment.activate().
    Returns None if that is the worker's own set. Raises SetupError if the packages are missing.
    """
    return activate_set(packages_of(path))


def activate_set(name: str) -> Overlay | None:
    """The same for the set of this name (Family.packages)."""
    if not name:
        return None
    return environment.activate(environment.find_family_overlay(name).require())
