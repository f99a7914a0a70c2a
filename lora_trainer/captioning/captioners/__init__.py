"""The captioners: one module each, with its description, its settings and its model's code.

    every() -> name -> CaptionerInfo     what the tab and the command line offer, and a job loads

A new captioner is a new module here with a tuple CAPTIONERS of captioner.CaptionerInfo. The modules
are imported by every process, so at their top they import neither torch, numpy nor Pillow: what
needs them does so when it is called.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from lora_trainer.captioning.captioner import CaptionerInfo


def readme_table() -> str:
    """The captioners as a Markdown table, for README."""
    rows = [
        f"| `{info.name}` | {info.title} | {info.sentence} |"
        f" {info.download_bytes / 1e9:.1f} GB | {info.licence} |"
        for info in every().values()
    ]
    head = [
        "| captioner | model | what it writes | download | licence |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])


@cache
def every() -> Mapping[str, CaptionerInfo]:
    """Name -> captioner, in the order of their modules' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {info.name: info for module in modules for info in module.CAPTIONERS}
