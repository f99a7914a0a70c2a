"""Haoming02's Forge Neo, read at 2.26."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lora_trainer.hosts.forge import Forge
from lora_trainer.hosts.on_demand import keep_lora_remark

LORA_LOGGER = "lora"
"""The logger of its extension sd_forge_lora, which does not propagate."""


class Neo(Forge):
    """Haoming02's Forge Neo, whose extensions use `logging`, and whose folder options are lists."""

    kind = "neo"
    name = "Forge Neo"

    @classmethod
    def is_here(cls) -> bool:
        return super().is_here() and cls._fork() == "neo"

    @contextlib.contextmanager
    def _lora_remarks(self) -> Iterator[list[str]]:
        """Its LoRA extension logs to a logger that does not propagate."""
        with super()._lora_remarks() as remarks:
            handler = _LoraRemarks(remarks)
            logger = logging.getLogger(LORA_LOGGER)
            logger.addHandler(handler)
            try:
                yield remarks
            finally:
                logger.removeHandler(handler)


class _LoraRemarks(logging.Handler):
    """Collects messages about LoRA keys that did not match."""

    def __init__(self, remarks: list[str]) -> None:
        super().__init__()
        self._remarks = remarks

    def emit(self, record: logging.LogRecord) -> None:
        keep_lora_remark(record.getMessage(), self._remarks)
