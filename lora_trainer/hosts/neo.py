"""Haoming02's Forge Neo, read at 2.26."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lora_trainer.hosts.forge import Forge
from lora_trainer.hosts.on_demand import keep_lora_remark

LORA_LOGGER = "lora"
"""The logger of its builtin extension sd_forge_lora."""


class Neo(Forge):
    """A Forge whose extensions speak through `logging`, and whose folders are lists."""

    kind = "neo"
    name = "Forge Neo"

    @classmethod
    def is_here(cls) -> bool:
        return super().is_here() and cls._fork() == "neo"

    def _more_vae_folders(self) -> list[Path]:
        return [Path(folder) for folder in self._flag("vae_dirs") or ()]

    @contextlib.contextmanager
    def _listening(self) -> Iterator[list[str]]:
        """Its LoRA extension logs, without passing on to other loggers."""
        with super()._listening() as heard:
            handler = _LoraRemarks(heard)
            logger = logging.getLogger(LORA_LOGGER)
            logger.addHandler(handler)
            try:
                yield heard
            finally:
                logger.removeHandler(handler)


class _LoraRemarks(logging.Handler):
    """Keeps what is said of LoRAs that did not fit."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        keep_lora_remark(record.getMessage(), self._heard)
