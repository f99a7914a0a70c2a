"""Checks whether this WebUI applies a LoRA, writes a copy that it can load, and measures how much
of it is kept where the WebUI stores the model in low precision.

A short-lived process with the worker's packages does this, because weights are read with torch.
Without these packages only names and shapes are checked, in this process.

    certificates.of(path, "neo", folders)             -> Certified
    certificates.fix(path, copy, "neo", folders)      writes the copy -> Certified of it
    certificates.kept(path, base, 0.7, host)          -> KeptInBits

Called by library.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lora_trainer import environment, files
from lora_trainer.errors import LoraFileError, Message, SetupError
from lora_trainer.hosts.base import LowBits
from lora_trainer.lora.certificate import certify, words
from lora_trainer.lora.host_layers import FORGE, HOST_NAMES

SECONDS = 600.0
"""Timeout. A LoRA of 1 GB takes a minute on a slow disk."""
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Render = Callable[[Message], str]


class DroppedView(TypedDict):
    """Layers that are not loaded, for one reason."""

    count: int
    message: str
    examples: list[str]


class CauseView(TypedDict):
    message: str
    hint: str


class CertificateView(TypedDict):
    """What the WebUI loads of a LoRA file."""

    name: str
    family: str
    layer_count: int
    loaded: int | None
    """None if it is not known."""
    verdict: str
    dropped: list[DroppedView]
    causes: list[CauseView]
    can_fix: bool
    measured: bool
    """Whether the weights were read."""


class KeptSettingView(TypedDict):
    """How much of a LoRA is kept with one setting of the WebUI."""

    message: str
    hint: str
    lossy: bool
    chosen: bool
    """Whether this is the current setting."""


class KeptView(TypedDict):
    """How much of a LoRA is kept where the WebUI stores the model in low precision."""

    checkpoint: str
    strength: float
    layer_count: int
    settings: list[KeptSettingView]
    """The chosen one first."""


@dataclass(frozen=True, kw_only=True)
class KeptInBits:
    """The result of the process: Survival.to_mapping, with messages made by `words`."""

    base: Path
    told: Mapping[str, Any]
    low_bits: LowBits

    def to_mapping(self, render: Render) -> KeptView:
        """As JSON."""
        settings = [self._setting(one, render) for one in self.told["hosts"]]
        return {
            "checkpoint": self.base.name,
            "strength": self.told["strength"],
            "layer_count": self.told["layer_count"],
            "settings": sorted(settings, key=lambda one: not one["chosen"]),
        }

    def _setting(self, told: Mapping[str, Any], render: Render) -> KeptSettingView:
        is_chosen = told["setting"] == self.low_bits.setting
        remedied = is_chosen and self.low_bits.keeps_loras and bool(told["remedy"])
        return {
            "message": _text(told["remedied" if remedied else "message"], render),
            "hint": "" if remedied else _text(told["hint"], render),
            "lossy": told["lossy"] and not remedied,
            "chosen": is_chosen,
        }


def _text(message: Mapping[str, Any], render: Render) -> str:
    return render(Message(message["message"], message["values"]))


@dataclass(frozen=True, kw_only=True)
class Certified:
    """The result of the process: Certificate.to_mapping, with messages made by `words`."""

    path: Path
    told: Mapping[str, Any]
    measured: bool

    def to_mapping(self, render: Render) -> CertificateView:
        """As JSON."""

        def text(message: Mapping[str, Any]) -> str:
            return _text(message, render)

        told = self.told
        return {
            "name": self.path.stem,
            "family": told["family"],
            "layer_count": told["layer_count"],
            "loaded": told["loaded"],
            "verdict": text(told["verdict"]),
            "dropped": [
                {
                    "count": one["count"],
                    "message": text(one["message"]),
                    "examples": list(one["examples"]),
                }
                for one in told["dropped"]
            ],
            "causes": [
                {"message": text(one["message"]), "hint": text(one["hint"])}
                for one in told["causes"]
            ],
            "can_fix": bool(told["can_fix"]) and self.measured,
            "measured": self.measured,
        }


class Certificates:
    """Thread-safe; one process at a time. run: runs it, request -> response; is_ready: whether its
    packages are installed.
    """

    def __init__(
        self,
        run: Run | None = None,
        is_ready: Callable[[], bool] = lambda: environment.find_overlay().state != "missing",
    ) -> None:
        self._run = run or _in_a_process
        self._is_ready = is_ready
        self._at_once = threading.Lock()

    def of(self, path: Path, host: str, folders: Sequence[Path]) -> Certified:
        """Raises LoraFileError."""
        host = host if host in HOST_NAMES else FORGE
        if not self._is_ready():
            found = certify(path, host, folders=folders, measure=False)
            return Certified(path=path, told=found.to_mapping(words), measured=False)
        return self._ask(path, host, folders, None)

    def fix(self, path: Path, copy: Path, host: str, folders: Sequence[Path]) -> Certified:
        """Raises LoraFileError, and SetupError without the packages."""
        self._require_packages()
        return self._ask(path, host if host in HOST_NAMES else FORGE, folders, copy)

    def kept(
        self, path: Path, base: Path, strength: float, host: str, low_bits: LowBits
    ) -> KeptInBits:
        """Raises LoraFileError, and SetupError without the packages."""
        self._require_packages()
        asked = {"path": str(path), "base": str(base), "strength": strength}
        told = self._answer({**asked, "host": host if host in HOST_NAMES else FORGE})["kept"]
        return KeptInBits(base=base, told=told, low_bits=low_bits)

    def _require_packages(self) -> None:
        if not self._is_ready():
            raise SetupError(
                "the worker's packages are not installed yet",
                hint="Install them in the tab's first step, then try again.",
            )

    def _ask(self, path: Path, host: str, folders: Sequence[Path], copy: Path | None) -> Certified:
        answer = self._answer(
            {
                "path": str(path),
                "host": host,
                "folders": [str(folder) for folder in folders],
                "copy": None if copy is None else str(copy),
            }
        )
        return Certified(path=copy or path, told=answer["certificate"], measured=True)

    def _answer(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._at_once:
            answer = self._run(asked)
        if "error" in answer:
            told = answer["error"]
            values = {
                key: Path(value) if key == "path" else value
                for key, value in told["values"].items()
            }
            raise LoraFileError(told["message"], hint=told["hint"], **values)
        return answer


def _in_a_process(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    reason = ""
    try:
        done = subprocess.run(
            environment.certificate_command(),
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=environment.worker_environ(os.environ),
            creationflags=environment.NO_WINDOW,
        )
        # libraries may have printed other lines before the last one
        lines = done.stdout.strip().splitlines()
        if lines and not done.returncode:
            answer: Mapping[str, Any] = files.parse_json(lines[-1], names=True)
            return answer
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = told[-1] if told else f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired, files.NotJson) as error:
        reason = f"{type(error).__name__}: {error}"
    raise LoraFileError(
        "{path} could not be checked: {reason}",
        hint="Try again. If that does not help, please report it with the file.",
        path=Path(asked["path"]),
        reason=reason[:300],
    )
