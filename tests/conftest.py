"""For all tests: one thread a process. Tiny models are no faster on several, and test processes running side by side would wait for each other."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("LoRA Trainer")
    group.addoption("--screenshots", metavar="FOLDER", help="the browser tests put pictures of the tab there")
    group.addoption("--host-folder", metavar="FOLDER", help="an installed AUTOMATIC1111 or Forge: tests/browser/test_real_host.py runs on it")
    group.addoption("--host-checkpoint", metavar="FILE", help="the checkpoint that this WebUI is started with")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly when the tab was not tested: a skipped test is a letter among thousands."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/browser/" in report.nodeid]
    reasons = {str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped if isinstance(report.longrepr, tuple)}
    reasons = {reason for reason in reasons if "--host-folder" not in reason}
    if reasons:
        terminalreporter.section("the tab was NOT tested in a browser", yellow=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(f"{len(skipped)} tests were skipped: {reason}")
