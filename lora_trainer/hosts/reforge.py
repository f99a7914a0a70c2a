"""Panchovix's reForge, read at 3b56b268."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lora_trainer.hosts.base import LowBits, host_module
from lora_trainer.hosts.on_demand import OnDemand

FLAGS = ("--unet-in-fp8-e4m3fn", "--unet-in-fp8-e5m2")
NOT_LOADED = ("lora key not loaded: ", "NOT LOADED ")
"""What it logs of each key of a LoRA that it has no place for."""


class ReForge(OnDemand):
    """Panchovix's reForge, and Forge before its own backend."""

    kind = "reforge"
    name = "reForge"
    manager = "ldm_patched.modules.model_management"

    def low_bits(self) -> LowBits:
        given = getattr(host_module("ldm_patched.modules.args_parser"), "args", None)
        chosen = (flag for flag in FLAGS if getattr(given, flag[2:].replace("-", "_"), False))
        return LowBits(setting=next(chosen, ""))

    @contextlib.contextmanager
    def _lora_remarks(self) -> Iterator[list[str]]:
        """Unmatched keys are logged by `logging.warning`, one per line: here as one message."""
        with super()._lora_remarks() as remarks:
            handler = _NotLoaded()
            root = logging.getLogger()
            root.addHandler(handler)
            try:
                yield remarks
            finally:
                root.removeHandler(handler)
                remarks.extend(handler.remark())


class _NotLoaded(logging.Handler):
    """Counts the messages about keys that were not loaded."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._first = ""
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(NOT_LOADED):
            self._first = self._first or text
            self._count += 1

    def remark(self) -> Iterator[str]:
        """The first of them, with the number of the others; nothing if there was none."""
        if self._count:
            others = f" (and {self._count - 1} more)" if self._count > 1 else ""
            yield self._first + others
