"""The captioners, one module each with description, settings and model code.

    every() -> name -> CaptionerInfo

A captioner is found through its module's CAPTIONERS. The modules are imported by every process, so
they import torch, numpy and Pillow only when called.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from lora_trainer.captioning.captioner import CaptionerInfo


def readme_table() -> str:
    """README's table of captioners, in Markdown."""
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
    """Name -> captioner, in order of module names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {info.name: info for module in modules for info in module.CAPTIONERS}
