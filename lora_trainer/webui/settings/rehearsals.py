"""Dry runs of trainings on texts, in a short-lived process with the worker's packages: counting
tokens needs the model's tokenizer, and finding its layers its architecture.

    rehearsals.of(config, revision) -> Rehearsed, or None while it is being computed

Results are cached by texts, model and the settings that they depend on. One process runs at a time;
of the requests made meanwhile, only the newest is run. Called by text_preflight.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import environment, files
from lora_trainer.dataset.findings import Finding
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.settings import training
from lora_trainer.settings.training import RunConfig

SECONDS = 300.0
KEPT = 8
DEPENDS_ON = (
    "base_model train_data_dir metadata_path max_length packing system_prompt validation_split seed"
    " target_modules lora_type"
).split()
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """The fields of tasks.language.Rehearsal; `error`: why there can be no training."""

    text_count: int = 0
    row_count: int = 0
    held_out_count: int = 0
    learned: int = 0
    max_length: int = 0
    targets: tuple[str, ...] = ()
    width: int = 0
    findings: tuple[Finding, ...] = ()
    error: LoraTrainerError | None = None


class Rehearsals:
    """Thread-safe. run: runs the process, settings -> result; is_ready: whether its packages are
    installed.
    """

    def __init__(
        self,
        run: Run | None = None,
        is_ready: Callable[[], bool] = lambda: environment.find_overlay().state != "missing",
    ) -> None:
        self._run = run or _in_a_process
        self._is_ready = is_ready
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Rehearsed] = OrderedDict()
        self._next: tuple[str, Mapping[str, Any]] | None = None
        self._thread: threading.Thread | None = None

    def of(self, config: RunConfig, revision: str) -> Rehearsed | None:
        """The result for these settings; None while it is being computed, or if the packages are
        not installed. revision: of the texts and the model.
        """
        values = {
            key: value
            for key, value in training.to_mapping(config).items()
            if key in (*DEPENDS_ON, "output_dir")
        }
        depends = {key: value for key, value in values.items() if key != "output_dir"}
        key = json.dumps([revision, depends], sort_keys=True, default=str)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            if not self._is_ready():
                return None
            self._next = (key, values)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._work, name="lora-trainer-rehearsal", daemon=True
                )
                self._thread.start()
        return None

    def wait(self) -> None:
        """Wait for the thread. For tests."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._next is None:
                    self._thread = None
                    return
                (key, values), self._next = self._next, None
            found = self._rehearsed(values)
            with self._lock:
                self._known[key] = found
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)

    def _rehearsed(self, values: Mapping[str, Any]) -> Rehearsed:
        try:
            return _parsed(self._run(values))
        except Exception as error:
            # any error must be reported on the page
            return Rehearsed(
                error=LoraTrainerError(
                    "the texts could not be checked with the model: {reason}",
                    hint="You can start the training anyway: it checks them again.",
                    reason=f"{type(error).__name__}: {error}"[:300],
                )
            )


def _in_a_process(values: Mapping[str, Any]) -> Mapping[str, Any]:
    done = subprocess.run(
        environment.rehearsal_command(),
        input=json.dumps(values, default=str).encode(),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=environment.worker_environ(os.environ),
        creationflags=environment.NO_WINDOW,
    )
    # libraries may have printed other lines before the last one
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(words[-1] if words else f"exit status {done.returncode}")
    answer: Mapping[str, Any] = files.parse_json(lines[-1], names=True)
    return answer


def _parsed(answer: Mapping[str, Any]) -> Rehearsed:
    if "error" in answer:
        told = answer["error"]
        return Rehearsed(
            error=LoraTrainerError(told["message"], hint=told["hint"], **_values(told))
        )
    told = answer["rehearsal"]
    findings = tuple(
        Finding(
            kind=one["kind"],
            severity=one["severity"],
            message=Message(one["message"], one["values"]),
            hint=Message(one["hint"], one["values"]),
            path=Path(one["path"]),
        )
        for one in told["findings"]
    )
    return Rehearsed(**{**told, "targets": tuple(told["targets"]), "findings": findings})


def _values(told: Mapping[str, Any]) -> dict[str, Any]:
    """Values with paths as paths, which are shortened to names for remote users."""
    return {
        key: Path(value) if key in ("path", "folder") else value
        for key, value in told["values"].items()
    }
