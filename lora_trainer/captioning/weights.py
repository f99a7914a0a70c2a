"""Errors from loading transformers' models and processors, as CaptionerError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lora_trainer import files
from lora_trainer.errors import CaptionerError


@contextlib.contextmanager
def explained(folder: Path, kind: str) -> Iterator[None]:
    """Raise transformers' exceptions as CaptionerError. Out-of-memory exceptions pass through."""
    try:
        yield
    except (CaptionerError, MemoryError):
        raise
    except (*files.UNREADABLE, RuntimeError, ImportError) as error:
        if "out of memory" in str(error).lower():
            raise
        lines = str(error).strip().splitlines()
        raise CaptionerError(
            "{folder} cannot be loaded as {kind}: {reason}",
            folder=folder,
            kind=kind,
            reason=(lines[0] if lines else type(error).__name__)[:300],
            hint=(
                "Choose a model of this kind. If its download was incomplete, delete its folder"
                " and start again."
            ),
        ) from error
    except Exception as error:
        # safetensors and pickle raise their own types for damaged files
        raise CaptionerError(
            "{folder} cannot be loaded as {kind}: {reason}",
            folder=folder,
            kind=kind,
            reason=f"{type(error).__name__}: {error}"[:300],
            hint="A file is probably damaged: delete the model's folder and start again.",
        ) from error
