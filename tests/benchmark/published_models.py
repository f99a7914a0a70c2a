"""Writes lora_trainer/bench/published: names and shapes of published checkpoints' tensors.

python -m tests.benchmark.published_models
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer import environment

environment.activate(environment.find_tests_overlay())
environment.activate()

from lora_trainer import families  # noqa: E402
from lora_trainer.bench.models import PUBLISHED  # noqa: E402
from tests.checkpoint.samples import full_shapes  # noqa: E402

MODELS = {"sd15": ("sd1", "SD1.5"), "sd21": ("sd2", "SD2.1"), "sdxl": ("sdxl", "SDXL")}
"""Name -> family, title."""


def stated(family: str, title: str) -> dict[str, Any]:
    """What a model's file holds."""
    return {
        "title": title,
        "resolution": families.get(family).usual_resolution,
        "tensors": {"base_model": full_shapes(family)},
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write a model's file; the same content gives the same bytes."""
    path = PUBLISHED / f"{name}.json.gz"
    text = json.dumps(content, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return path


def main() -> int:
    for name, (family, title) in MODELS.items():
        print(write(name, stated(family, title)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
