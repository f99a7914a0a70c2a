"""For all tests: one thread a process. Tiny models are no faster on several, and test processes
running side by side would wait for each other.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from lora_trainer import environment
from tests import forked

HAS_NEWER = any(
    entry.startswith(str(environment.FAMILY_OVERLAYS["newer"]))  # that of `python -m tests --newer`
    for entry in sys.path
)
collect_ignore = [] if HAS_NEWER else ["newer"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# a shell's background job is deaf to Ctrl-C, and so would be the programs that the tests start and
# interrupt
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# nothing that is imported for the tests is ever garbage
gc.disable()

# no test turns the power off
os.fsync = lambda descriptor: None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process has one left when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def torchs_own_attention() -> Iterator[None]:
    """A training in this process may have replaced it, for all that follows."""
    yield
    attention = sys.modules.get("lora_trainer.cpu.attention")
    if attention is not None:
        attention.deactivate()


def pytest_collection_finish() -> None:
    gc.freeze()
    # models and their graphs are many objects, of which few are garbage
    gc.set_threshold(50_000)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_not_searched_for_garbage() -> None:
    """The worker collects garbage between its phases, and a process of tests holds ten times as
    many objects as a worker.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def forking() -> Iterator[list[str]]:
    """What starts a script in place of an interpreter, with the worker's packages imported already
    (tests/forked.py).
    """
    if sys.platform != "linux":
        yield [sys.executable]
        return
    with tempfile.TemporaryDirectory() as folder, forked.server(f"{folder}/s") as command:
        yield command


@pytest.fixture
def forked_workers(forking: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that this process starts are forked."""
    command = environment.worker_command
    monkeypatch.setattr(environment, "worker_command", lambda path: [*forking, *command(path)[1:]])


IN_A_BROWSER = ("browser", "javascript")
NOT_PAINTED = "--blink-settings=acceleratedCompositingEnabled=false"
"""Pages have their layout, and nobody sees them: a sixth of a browser's processor time is paint."""
_started: list[tuple[Any, Any]] = []
"""Playwright and its Chromium, while they run."""


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Any:
    """A Chromium without a window; where there is none, the tests that ask for it are skipped.

    It goes on until a test of another folder is next: while Playwright runs, no other test of the
    process could start an asyncio loop.
    """
    from tests.browser.chromium import find

    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (python install.py --tests)"
    )
    program = find(os.environ)
    if program is None:
        pytest.skip(
            "there is no browser (install Chromium, or name one in the environment variable"
            " CHROMIUM)"
        )
    if not _started:
        playwright = sync_api.sync_playwright().start()
        launched = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                # nothing outside this machine
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                *([] if request.config.getoption("--screenshots") else [NOT_PAINTED]),
            ],
        )
        _started.append((playwright, launched))
    return _started[0][1]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if _started and (nextitem is None or nextitem.path.parent.name not in IN_A_BROWSER):
        playwright, launched = _started.pop()
        launched.close()
        playwright.stop()


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("LoRA Trainer")
    group.addoption(
        "--screenshots", metavar="FOLDER", help="the browser tests put images of the tab there"
    )
    group.addoption(
        "--every-webui",
        action="store_true",
        help="the browser tests that are content with one WebUI run on each, too",
    )
    group.addoption(
        "--host-folder",
        metavar="FOLDER",
        help=(
            "an installed AUTOMATIC1111 or Forge, for tests/browser/test_real_host.py, which"
            " says how"
        ),
    )
    group.addoption(
        "--host-checkpoint",
        metavar="FILE",
        help="the SD1.5 checkpoint that this WebUI is started with; else its smallest",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly when the tab was not tested: a skipped test is a letter among thousands."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "tests/browser/" in report.nodeid
    ]
    reasons = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in skipped
        if isinstance(report.longrepr, tuple)
    }
    reasons = {reason for reason in reasons if "--host-folder" not in reason}
    if reasons:
        terminalreporter.section("the tab was NOT tested in a browser", yellow=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(f"{len(skipped)} tests were skipped: {reason}")
