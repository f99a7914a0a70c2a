"""Fixtures of the tests in a browser: a WebUI that runs, a browser, a page whose complaints are
faults.

One WebUI of each flavour serves all tests of a process; pytest-xdist keeps a flavour's tests
together (--dist loadgroup), but for those of the group "sections": as long a row again, that
another process goes through meanwhile. What depends on the WebUI (its LoRA page, looks, dialogs,
login, the prompt) is tested on each, what only our own page does on one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.running import FakeHost, missing_for_fake_hosts
from tests.browser.visitors import Visitor
from tests.made import tiny_checkpoint

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAVOURS = [
    pytest.param(name, marks=pytest.mark.xdist_group(f"webui-{name}"))
    for name in ("a1111", "forge")
]

FORKING = "forking.json"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What our own JavaScript draws below the mount point is the same on every WebUI: tests of its
    details name the one that they run on, or "a1111-dark": with one colour scheme.
    """
    if config.getoption("--every-webui"):
        return
    superfluous = [item for item in items if not _is_wanted(item)]
    items[:] = [item for item in items if item not in superfluous]
    config.hook.pytest_deselected(items=superfluous)


def _is_wanted(item: pytest.Item) -> bool:
    marker, made = item.get_closest_marker("webuis"), getattr(item, "callspec", None)
    if marker is None or made is None:
        return True
    flavour, scheme = made.params.get("flavour"), made.params.get("scheme")
    return flavour in marker.args or f"{flavour}-{scheme}" in marker.args


@pytest.fixture(scope="session", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def host(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    """A WebUI as an artist starts it, on this machine and without a login."""
    reason = missing_for_fake_hosts()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(f"web ui {flavour}")
    running = FakeHost(data=folder, flavour=flavour, arguments=("--forking", str(folder / FORKING)))
    checkpoints = running.data / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    shutil.copy(tiny_checkpoint("sd1"), checkpoints / "My model v1.safetensors")
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def forking_host(host: FakeHost, forking: list[str]) -> FakeHost:
    """The WebUI, whose workers are forked from now on: half of a short training is imports."""
    (host.data / FORKING).write_text(json.dumps(forking), encoding="utf-8")
    return host


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """A visitor; anything that a page of theirs puts on the console as an error fails the test."""
    one = Visitor(browser)
    yield one
    one.close()
    assert one.complaints == []


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """Makes visitors with a size, a language, a colour scheme of their own: visit(viewport=...,
    locale=..., color_scheme=...).
    """
    visitors: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, **options))
        return visitors[-1]

    yield make
    complaints = [text for one in visitors for text in one.complaints]
    for one in visitors:
        one.close()
    assert complaints == []


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """The folder named with --screenshots."""
    folder = request.config.getoption("--screenshots")
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
