"""What Forge and its descendants share: all work is done on one thread, and models are loaded when
a picture needs them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lora_trainer.hosts.base import Host, HostError, Result, has_module, host_module


class OnDemand(Host):
    """The Forge family: all work is done on one thread, and models are loaded when a picture needs
    them.
    """

    manager = ""
    """The module that moves its models."""

    @classmethod
    def is_here(cls) -> bool:
        return bool(cls.manager) and has_module("modules_forge") and has_module(cls.manager)

    @classmethod
    def _fork(cls) -> str:
        """What the host calls itself in the place of a version: "neo", "classic"; or a version."""
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
        # before the first picture Forge has a FakeInitialModel
        return model if getattr(model, "sd_checkpoint_info", None) is not None else None

    def _on_main_thread(self, work: Callable[[], Result]) -> Result:
        run = getattr(host_module("modules_forge.main_thread"), "run_and_wait_result", None)
        if run is None or threading.current_thread() is threading.main_thread():
            return work()
        box: list[Result] = []
        failure: list[BaseException] = []

        def task() -> None:
            # the thread's own loop prints what is raised, and forgets it
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
    def _listening(self) -> Iterator[list[str]]:
        """These hosts print what became of a LoRA's keys, and say it nowhere else."""
        heard: list[str] = []
        before = sys.stdout
        listener = _Listener(before, heard)
        sys.stdout = listener
        try:
            yield heard
        finally:
            if sys.stdout is listener:
                sys.stdout = before

    def _forget_waiting_task(self) -> None:
        super()._forget_waiting_task()
        thread = host_module("modules_forge.main_thread")
        if getattr(thread, "last_exception", None) is not None:
            # it would be shown instead of the reason for the refusal
            thread.last_exception = None


def keep_lora_remark(text: str, heard: list[str]) -> None:
    """Add a line of the host's to `heard`, if it tells of a LoRA's keys that did not fit."""
    if "[LORA]" in text and any(words in text.lower() for words in ("unmatched", "mismatch")):
        heard.append(text.strip())


class _Listener:
    """A stream that passes everything on and keeps the lines about LoRAs that did not fit."""

    def __init__(self, stream: Any, heard: list[str]) -> None:
        self._stream = stream
        self._heard = heard

    def write(self, text: str) -> Any:
        keep_lora_remark(text, self._heard)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _call_forcing(empty_cache: Any) -> None:
    """soft_empty_cache(force=True) in Forge and reForge; a fork may have dropped the argument."""
    if callable(empty_cache):
        try:
            empty_cache(force=True)
        except TypeError:
            empty_cache()
