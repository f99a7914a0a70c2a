"""The Forge family: works on one thread, and loads models when a generation needs them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lora_trainer.hosts.base import Host, HostError, Result, has_module, host_module

COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""A terminal's colour, which ersatzForge prints."""


class OnDemand(Host):
    """Base class of the Forge family."""

    manager = ""
    """The host's memory management module."""

    @classmethod
    def is_here(cls) -> bool:
        return bool(cls.manager) and has_module("modules_forge") and has_module(cls.manager)

    @classmethod
    def _fork(cls) -> str:
        """The host's name, "neo" or "classic", in place of a version; or its version."""
        return str(getattr(host_module("modules_forge.forge_version"), "version", "") or "")

    @property
    def version(self) -> str:
        release = getattr(host_module("modules_forge.forge_version"), "release", "")
        return str(release or "") or self._fork()

    def model_on_device(self) -> bool:
        return (
            bool(getattr(host_module(self.manager), "current_loaded_models", None))
            and self.device().kind != "cpu"
        )

    def _release(self) -> None:
        manager = importlib.import_module(self.manager)
        manager.unload_all_models()
        gc.collect()
        _call_forcing(getattr(manager, "soft_empty_cache", None))

    def _model(self) -> Any:
        model = super()._model()
        # before the first generation, Forge has a FakeInitialModel
        return model if getattr(model, "sd_checkpoint_info", None) is not None else None

    def _on_main_thread(self, work: Callable[[], Result]) -> Result:
        run = getattr(host_module("modules_forge.main_thread"), "run_and_wait_result", None)
        if run is None or threading.current_thread() is threading.main_thread():
            return work()
        box: list[Result] = []
        failure: list[BaseException] = []

        def task() -> None:
            # the thread's loop would print and drop an exception
            try:
                box.append(work())
            except BaseException as error:
                failure.append(error)

        run(task)
        if failure:
            raise failure[0]
        if not box:
            raise HostError("the WebUI is shutting down")
        return box[0]

    @contextlib.contextmanager
    def _lora_remarks(self) -> Iterator[list[str]]:
        """These hosts print the result of matching a LoRA's keys to stdout only."""
        remarks: list[str] = []
        before = sys.stdout
        listener = _Listener(before, remarks)
        sys.stdout = listener
        try:
            yield remarks
        finally:
            if sys.stdout is listener:
                sys.stdout = before

    def _forget_waiting_task(self) -> None:
        super()._forget_waiting_task()
        thread = host_module("modules_forge.main_thread")
        if getattr(thread, "last_exception", None) is not None:
            # else it would be shown instead of the refusal
            thread.last_exception = None


def keep_lora_remark(text: str, remarks: list[str]) -> None:
    """Append a line of the host's output, without its colours, to `remarks` if it is about LoRA
    keys that did not match.
    """
    if "[LORA]" in text and any(words in text.lower() for words in ("unmatched", "mismatch")):
        remarks.append(COLOUR.sub("", text).strip())


class _Listener:
    """A stream that forwards everything and collects lines about LoRA keys that did not match."""

    def __init__(self, stream: Any, remarks: list[str]) -> None:
        self._stream = stream
        self._remarks = remarks

    def write(self, text: str) -> Any:
        keep_lora_remark(text, self._remarks)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _call_forcing(empty_cache: Any) -> None:
    """soft_empty_cache(force=True), as in Forge and reForge, without the argument where a fork has
    dropped it.
    """
    if callable(empty_cache):
        try:
            empty_cache(force=True)
        except TypeError:
            empty_cache()
