"""Set-up of the worker's packages from the tab, and bug reports.

    view(language)   {state, message, hint, lines, seconds, megabytes, report}: state is ready,
                     missing, broken, installing or failed
    begin()          runs install.py as a subprocess; only one at a time on this machine
    report()         versions, host, and the last log lines, without user names, passwords in URLs
                     or tokens

Nothing of the overlay is imported here, which would change the WebUI's own process. After a
successful set-up, the next worker finds its packages without a restart. Called by the home route
and settings/routes.py.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from lora_trainer import environment, files
from lora_trainer.environment import ROOT, Overlay
from lora_trainer.errors import LoraTrainerError, Message
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.start import last_lines
from lora_trainer.packages import TORCH, TORCH_DEPENDENCIES
from lora_trainer.webui import texts
from lora_trainer.webui.common.data_folder import DataFolder

MOST_LINES = 400
REPORTED_LINES = 40
MOST_NAMED = 6
"""Missing packages that are named; the others are counted."""
LOG_BYTES = 6000
LOOK_SECONDS = 5.0
"""The state is cached for this long: checking reads a hundred folders."""
REPORT_SECONDS = 150.0
PREFIX = "LoRA Trainer: "
"""Prefix of install.py's error message; the hint is on the following lines."""
ENV_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv[1]); from lora_trainer.__main__ import main;"
    " sys.exit(main(['env']))"
)

log = logging.getLogger("lora_trainer.webui")


State = Literal["ready", "missing", "broken", "installing", "failed"]


class SetupView(TypedDict):
    """The state of the worker's packages. `report` is empty unless requested."""

    state: State
    message: str
    hint: str
    lines: list[str]
    seconds: float
    megabytes: int
    report: str


class Setup:
    """Thread-safe. The arguments after `data` are for tests."""

    def __init__(
        self,
        host: Host,
        data: DataFolder,
        *,
        look: Callable[[], Overlay] = environment.find_overlay,
        command: Sequence[str] = (),
    ) -> None:
        self._host = host
        self._data = data
        self._look = look
        self._command = list(command) or environment.install_command()
        self._lock = threading.Lock()
        self._seen: tuple[float, Overlay] | None = None
        self._worker: threading.Thread | None = None
        self._began = 0.0
        self._ended = 0
        """How many set-ups have ended."""
        self._lines: list[str] = []
        self._exit: int | None = None
        """Exit code of the last set-up in this process; None if there was none, or it is running.
        """

    def view(self, language: str) -> SetupView:
        """The state as JSON. `report` is empty: it takes seconds."""
        # before looking: what is seen of the packages while they are installed says nothing
        is_running = self._is_running
        overlay = self._overlay()
        state, message, hint = self._state(overlay, is_running)
        with self._lock:
            lines = [masked(line) for line in self._lines]
            seconds = time.monotonic() - self._began if is_running else 0.0
        return {
            "state": state,
            "message": texts.render(message, language),
            "hint": texts.render(hint, language),
            "lines": lines,
            "seconds": seconds,
            "megabytes": megabytes(overlay),
            "report": "",
        }

    def begin(self) -> None:
        """Start the set-up, unless it is running."""
        with self._lock:
            if self._is_running:
                return
            self._lines, self._exit, self._began = [], None, time.monotonic()
            self._worker = threading.Thread(
                target=self._run, name="lora-trainer-setup", daemon=True
            )
            self._worker.start()

    def wait(self) -> None:
        """Wait for the set-up of this process."""
        worker = self._worker
        if worker is not None:
            worker.join()

    def report(self) -> str:
        """A bug report as text."""
        with self._lock:
            lines = self._lines[-REPORTED_LINES:]
        parts = [self._about_the_host(), self._about_the_packages()]
        if lines:
            parts.append("Last set-up:\n" + "\n".join(lines))
        parts.append(self._about_the_last_run())
        return masked("\n\n".join(part for part in parts if part))

    # --- state ------------------------------------------------------------------------------------

    @property
    def _is_running(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def _overlay(self) -> Overlay:
        now, ended = time.monotonic(), self._ended
        seen = self._seen
        if seen is None or now - seen[0] > LOOK_SECONDS:
            seen = (now, self._look())
            with self._lock:
                # else a set-up has ended meanwhile, and may have changed what was seen
                if ended == self._ended:
                    self._seen = seen
        return seen[1]

    def _state(self, overlay: Overlay, is_running: bool) -> tuple[State, Message, Message]:
        if is_running:
            return (
                "installing",
                Message("The packages for training are being installed."),
                Message("You can keep using the WebUI."),
            )
        if self._exit and not (overlay.state == "ready" and overlay.is_checked):
            message, hint = self._failure()
            return ("failed" if overlay.state == "missing" else "ready"), message, hint
        if overlay.state == "missing" and files.is_locked(overlay.version_folder / "lock"):
            return (
                "installing",
                Message("Another installation of the packages for training is running."),
                Message("Wait until it has finished."),
            )
        if overlay.state == "missing":
            return _missing(overlay)
        if overlay.state == "outdated":
            return (
                "ready",
                Message("The packages for training work, but are outdated."),
                Message("Set up again to install the versions of this release."),
            )
        if not overlay.is_checked:
            hint = Message("If training does not start, set up again: that tests them.")
            return (
                "ready",
                Message(
                    "The WebUI's own packages have changed since the packages for training were"
                    " tested with them."
                ),
                hint,
            )
        return "ready", Message("Everything that training needs is installed."), Message("")

    def _failure(self) -> tuple[Message, Message]:
        """The last message of install.py."""
        last = next(
            (
                number
                for number in reversed(range(len(self._lines)))
                if self._lines[number].startswith(PREFIX)
            ),
            None,
        )
        if last is None:
            message = Message("Setting up failed with exit code {code}.", {"code": self._exit})
            return message, Message("The lines below may say why. Try again, or copy the report.")
        message = Message(
            "Setting up failed: {reason}", {"reason": self._lines[last].removeprefix(PREFIX)}
        )
        words = " ".join(self._lines[last + 1 :]).strip()
        return message, (
            Message("{hint}", {"hint": words})
            if words
            else Message("Try again, or copy the report.")
        )

    # --- setting up -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                creationflags=environment.NO_WINDOW,
                env={
                    **os.environ,
                    "PYTHONUTF8": "1",
                    "PYTHONIOENCODING": "utf-8",
                    "PYTHONUNBUFFERED": "1",
                },
                encoding="utf-8",
                errors="replace",
            )
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    self._say(line.rstrip())
            status = process.wait()
        except OSError as error:
            self._say(f"{PREFIX}{sys.executable}: {error.strerror or error}")
            status = 1
        with self._lock:
            self._exit = status
            self._seen = None
            self._ended += 1

    def _say(self, line: str) -> None:
        if not line:
            return
        log.info("set-up: %s", line)
        with self._lock:
            self._lines.append(line)
            del self._lines[:-MOST_LINES]

    # --- the report -------------------------------------------------------------------------------

    def _about_the_host(self) -> str:
        facts: dict[str, Callable[[], str]] = {
            "WebUI": lambda: f"{self._host.name} {self._host.version} ({self._host.kind})",
            "gradio": lambda: str(
                getattr(sys.modules.get("gradio"), "__version__", "not imported")
            ),
            "Device": lambda: "{0.kind}, {0.name}".format(self._host.device()),
            "Remote": lambda: "yes" if self._host.is_remote() else "no",
            "Language": lambda: self._host.language() or "English",
            "Data folder": lambda: str(self._data.root),
        }
        lines = [
            f"LoRA Trainer in {platform.system()} {platform.release()}, Python"
            f" {platform.python_version()}"
        ]
        for name, fact in facts.items():
            try:
                lines.append(f"{name:14} {fact()}")
            except Exception as error:  # the host's errors are part of the report
                lines.append(f"{name:14} {type(error).__name__}: {error}")
        return "\n".join(lines)

    def _about_the_packages(self) -> str:
        """`python -m lora_trainer env` as a subprocess, which uses the overlay."""
        try:
            result = subprocess.run(
                [sys.executable, "-c", ENV_COMMAND, str(ROOT)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=REPORT_SECONDS,
                check=False,
                env=environment.worker_environ(os.environ),
                encoding="utf-8",
                errors="replace",
                creationflags=environment.NO_WINDOW,
            )
            return (result.stdout + result.stderr).strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"The packages could not be inspected: {error}"

    def _about_the_last_run(self) -> str:
        """The end of the newest run's log."""
        try:
            logs = sorted(self._data.folder("runs").glob("*/worker.log"), key=files.changed)
            if not logs:
                return ""
        except (OSError, LoraTrainerError):
            return ""
        return f"End of the newest run's log ({logs[-1].parent.name}):\n" + "\n".join(
            last_lines(logs[-1], LOG_BYTES)[-REPORTED_LINES:]
        )


def megabytes(overlay: Overlay) -> int:
    """Approximate size of the download."""
    missing = [*overlay.missing, *(TORCH_DEPENDENCIES if TORCH in overlay.missing else ())]
    return sum(package.megabytes for package in missing)


def _missing(overlay: Overlay) -> tuple[State, Message, Message]:
    hint = Message(
        "Set up installs them into a folder of this extension; the WebUI's own packages are not"
        " changed. It takes some minutes."
    )
    if TORCH in overlay.missing and TORCH.key in overlay.found:
        version = overlay.found[TORCH.key]
        message = Message(
            "The WebUI's torch {version} is too old for training; {least} is needed.",
            {"version": version, "least": TORCH.at_least},
        )
        return (
            "missing",
            message,
            Message(
                "It is better to update the WebUI: Set up would download another torch for"
                " training, several gigabytes."
            ),
        )
    if overlay.wanted.exists():
        return "broken", Message("The packages for training are incomplete."), hint
    names = ", ".join(package.name for package in overlay.missing[:MOST_NAMED])
    if len(overlay.missing) > MOST_NAMED:
        values = {"names": names, "count": len(overlay.missing) - MOST_NAMED}
        return (
            "missing",
            Message(
                "Training needs packages that are not installed yet: {names} and {count} more.",
                values,
            ),
            hint,
        )
    return (
        "missing",
        Message("Training needs packages that are not installed yet: {names}.", {"names": names}),
        hint,
    )


# --- redaction of reports -------------------------------------------------------------------------

_USER_FOLDER = re.compile(
    r"([A-Za-z]:[\\/]+Users[\\/]+|/home/|/Users/)([^\\/\r\n\"'<>|]+(?=[\\/])|[^\\/\s\"'<>|]+)",
    re.IGNORECASE,
)
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/\s@]+@")
_TOKEN = re.compile(r"\b(hf|gh[pousr]|github_pat|glpat|sk|xox[abp])([_-])[A-Za-z0-9_-]{8,}")
_SECRET = re.compile(
    r"((?:token|password|passwd|secret|api[_-]?key|authorization)[\"']?\s*[=:]\s*)(?:(?:Bearer|Basic)\s+)?[^\s&,;]+",
    re.IGNORECASE,
)
_SECRET_FLAG = re.compile(r"(--[a-z-]*(?:auth|token|password|key)[a-z-]*)([= ])\S+", re.IGNORECASE)


def masked(text: str) -> str:
    """A text without user names in paths, passwords in URLs, and tokens."""
    text = text.replace(str(Path.home()), "~")
    text = _SECRET_FLAG.sub(r"\1\2***", text)
    text = _PASSWORD_IN_ADDRESS.sub("://***@", text)
    text = _SECRET.sub(r"\1***", text)
    text = _TOKEN.sub(r"\1\2***", text)
    return _USER_FOLDER.sub(r"\1***", text)
