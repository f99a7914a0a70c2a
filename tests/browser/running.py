"""A WebUI as a process: start it, ask it, kill it, start it again.

FakeHost is tests/webui/fake_host on one of the two gradios; RealHost is an installed WebUI, with a
data folder of the test's own. Both take the extension from this checkout. Used by
tests/browser/conftest.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lora_trainer import environment

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "tests" / "webui" / "fake_host" / "launch.py"
HEADERS = {"X-LoRA-Trainer": "1", "Content-Type": "application/json"}


class NotStarted(Exception):
    """The WebUI ended, or did not answer in time; the message holds its last lines."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request and its answer; `body` is sent as JSON, but for bytes. The connection may be used
    again.
    """
    has_host = any(name.lower() == "host" for name in headers or {})
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.putrequest(method, "/" + path, skip_host=has_host, skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if content is not None:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer = connection.getresponse()
    return Answer(
        answer.status,
        {name.lower(): value for name, value in answer.getheaders()},
        answer.read(),
    )


class Line:
    """Many requests to a WebUI, one after the other over one connection: a third of the work, for
    both, of a connection each. It is opened anew when the WebUI has closed it.
    """

    def __init__(self, host: RunningHost) -> None:
        self._connection = host.connect()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """As RunningHost.ask does."""
        was_open = self._connection.sock is not None
        try:
            return exchange(self._connection, method, path, body, headers)
        except (ConnectionError, http.client.CannotSendRequest):
            self._connection.close()
            if not was_open:
                raise
            return exchange(self._connection, method, path, body, headers)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass
class RunningHost:
    """What both have in common. `command` and `environ` say how to start one."""

    data: Path
    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_port())
    patience: float = 240.0
    page_patience: float = 120_000
    """Milliseconds for what a page is waited for."""
    process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        # a host knows nothing of the folders that the tests import from
        dropped = ("PYTHONPATH", "COMMANDLINE_ARGS")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in dropped and not name.startswith("PYTEST_")
        }
        return {
            **kept,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUTF8": "1",
            **self.variables,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def log_file(self) -> Path:
        return self.data / "host.log"

    def log(self) -> str:
        return (
            self.log_file.read_text(encoding="utf-8", errors="replace")
            if self.log_file.is_file()
            else ""
        )

    def start(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as stream:
            start = stream.tell()
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.working_folder(),
                env=self.environ(),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            self.wait_until_ready(start)
        except BaseException:
            # nobody else would: it has not been handed to anyone
            self.kill()
            raise

    def working_folder(self) -> Path:
        return self.data

    def wait_until_ready(self, start: int = 0) -> None:
        """Until it has said so: the routes of extensions are added after the page can be had
        already.
        """
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            said = self.log_file.read_bytes()[start:]
            if b"Startup time:" in said:
                return
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise NotStarted(self.log()[-4000:])

    def reload_ui(self) -> None:
        """What "Reload UI" does to the server."""
        start = self.log_file.stat().st_size
        assert self.ask("POST", "internal/reload").status == 200
        self.wait_until_ready(start)

    def kill(self) -> None:
        """Without a chance to clean up, as WebUIs end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 120,
    ) -> Answer:
        """One request, sent exactly as written: http.client normalises nothing in `path`."""
        connection = self.connect(timeout)
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def connect(self, timeout: float = 120) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> Any:
        """The JSON of one of our routes."""
        answer = self.ask("GET", "lora-trainer/" + path)
        assert answer.status == 200, (path, answer.status, answer.body[:500])
        return answer.json()

    def post(self, path: str, body: Any = None) -> Answer:
        return self.ask("POST", "lora-trainer/" + path, body if body is not None else {}, HEADERS)

    def worker_of(self, run: str) -> psutil.Process:
        """The process that is at work for it: a test that needs it to be at work, and not to go on,
        holds it still.
        """
        file = self.trainer_folder / "runs" / run / "worker.json"
        return psutil.Process(json.loads(file.read_text(encoding="utf-8"))["pid"])

    def calls(self) -> list[dict[str, Any]]:
        """What was done to it; only a fake one keeps such a record."""
        path = self.data / "calls.jsonl"
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.is_file()
            else []
        )

    @property
    def lora_folder(self) -> Path:
        return self.data / "models" / "Lora"

    @property
    def trainer_folder(self) -> Path:
        """Where the extension keeps its datasets and runs."""
        return self.data / "LoRA Trainer 数据"


@dataclass
class FakeHost(RunningHost):
    flavour: str = "a1111"

    def command(self) -> list[str]:
        folder = environment.find_gradio_overlay(self.flavour).folder
        assert folder is not None
        return [
            sys.executable,
            str(LAUNCHER),
            "--data-dir",
            str(self.data),
            "--port",
            str(self.port),
            "--flavour",
            self.flavour,
            "--site-packages",
            str(folder),
            "--lora-trainer-data-dir",
            str(self.trainer_folder),
            *self.arguments,
        ]


@dataclass
class RealHost(RunningHost):
    """An installed WebUI. It keeps its models and settings to itself: the test gives it a data
    folder of its own, with this extension in it.
    """

    folder: Path = Path()
    checkpoint: Path = Path()

    @property
    def python(self) -> Path:
        return (
            self.folder
            / "venv"
            / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        )

    @property
    def flavour(self) -> str:
        """As our hosts/ name it."""
        version = self.folder / "modules_forge" / "forge_version.py"
        if not version.is_file():
            return "a1111"
        stated = version.read_text(encoding="utf-8")
        fork = next((fork for fork in ("neo", "classic") if f'"{fork}"' in stated), "")
        return fork or ("forge" if (self.folder / "backend").is_dir() else "reforge")

    def working_folder(self) -> Path:
        return self.folder

    def environ(self) -> dict[str, str]:
        # one thread would do for the fake ones; here an image is work, and on one thread Forge's
        # images are black with torch 2.13 on a processor
        threads = str(max(2, (os.cpu_count() or 2) // 2))
        return {**super().environ(), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    def prepare(self) -> None:
        """A link to this checkout where it looks for extensions, and the checkpoint where it looks
        for models.
        """
        link = self.data / "extensions" / "sd-webui-lora-trainer"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
        target = self.data / "models" / "Stable-diffusion" / self.checkpoint.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.checkpoint, target)
        except OSError:
            shutil.copy(self.checkpoint, target)
        # what A1111 reads about a model of unusual sizes
        sidecar = self.checkpoint.with_suffix(".yaml")
        if sidecar.is_file():
            shutil.copy(sidecar, target.with_suffix(".yaml"))

    @property
    def on_the_processor(self) -> list[str]:
        """Its flags for computing without a card. A WebUI ends at a flag that it does not know."""
        if self.flavour == "a1111":
            # it names a LoRA's unmatched keys at this log level only
            return ["--use-cpu", "all", "--no-half", "--no-hashing", "--loglevel", "DEBUG"]
        return ["--cpu" if self.flavour == "neo" else "--always-cpu", "--skip-python-version-check"]

    def command(self) -> list[str]:
        return [
            str(self.python),
            "launch.py",
            "--data-dir",
            str(self.data),
            "--port",
            str(self.port),
            "--server-name",
            "127.0.0.1",
            "--api",
            "--skip-torch-cuda-test",
            "--skip-install",
            "--skip-version-check",
            "--enable-insecure-extension-access",
            "--ckpt",
            str(self.data / "models" / "Stable-diffusion" / self.checkpoint.name),
            *self.on_the_processor,
            # with a data folder elsewhere, Forge's gradio would not hand out the WebUI's own
            # scripts
            "--gradio-allowed-path",
            str(self.folder),
            "--lora-trainer-data-dir",
            str(self.trainer_folder),
            *self.arguments,
        ]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing_for_fake_hosts() -> str:
    """Why the small WebUI cannot run here; empty if it can."""
    for flavour in ("a1111", "forge"):
        if environment.find_gradio_overlay(flavour).state == "missing":
            return "the WebUIs' gradio is not installed (python install.py --tests)"
    return ""
