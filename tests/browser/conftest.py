"""Fixtures of the tests in a browser: a WebUI that runs, a browser, a page whose complaints are
faults.

One WebUI of each flavour serves all tests of a process; pytest-xdist keeps a flavour's tests
together (--dist loadgroup). What depends on the WebUI (the journey, looks, dialogs, the guard, the
prompt) is tested on each, what only our own page does on one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.running import FakeHost, missing_for_fake_hosts
from tests.made import tiny_checkpoint

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAVOURS = [
    pytest.param(name, marks=pytest.mark.xdist_group(f"webui-{name}"))
    for name in ("a1111", "forge")
]
ELSEWHERE = re.compile(r"^https?://(?!127\.0\.0\.1)")
HARMLESS = (
    # gradio's own page, without a network or without a manifest
    "manifest.json",
    "fonts.googleapis",
    "cdnjs",
    "iframe-resizer",
    "favicon",
    "preloaded using link preload",
    # the browser notes every answer that is a sentence for the visitor
    "the server responded with a status of 400",
    "the server responded with a status of 409",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What our own JavaScript draws below the mount point is the same on every WebUI: tests of its
    details name the one that they run on.
    """
    if config.getoption("--every-webui"):
        return
    superfluous = [item for item in items if not _is_wanted(item)]
    items[:] = [item for item in items if item not in superfluous]
    config.hook.pytest_deselected(items=superfluous)


def _is_wanted(item: pytest.Item) -> bool:
    marker, made = item.get_closest_marker("webuis"), getattr(item, "callspec", None)
    return marker is None or made is None or made.params.get("flavour") in marker.args


@pytest.fixture(scope="session", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def host(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    """A WebUI as an artist starts it, on this machine and without a login."""
    reason = missing_for_fake_hosts()
    if reason:
        pytest.skip(reason)
    running = FakeHost(data=tmp_path_factory.mktemp(f"web ui {flavour}"), flavour=flavour)
    checkpoints = running.data / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    shutil.copy(tiny_checkpoint("sd1"), checkpoints / "My model v1.safetensors")
    running.start()
    yield running
    running.kill()


class Visitor:
    """One visitor's browser: pages that reach nothing but the WebUI, and what they complained
    about.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[tuple[str, str]] = []
        settings = {
            "viewport": {"width": 1280, "height": 900},
            "locale": "en-US",
            "accept_downloads": True,
            **options,
        }
        self.context = browser.new_context(**settings)
        self.context.set_default_timeout(20_000)
        # a pattern, not a function: for that Playwright would ask this process about every request,
        # and none would go on while a test sleeps
        self.context.route(ELSEWHERE, lambda route: route.fulfill(status=200, body=""))

    def page(self) -> Page:
        page = self.context.new_page()
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and self._complain(f"{message.text} {message.location.get('url', '')}")
            ),
        )
        page.on("pageerror", lambda error: self._complain(f"{error}\n{error.stack}"))
        page.on("request", lambda request: self.requests.append((request.method, request.url)))
        return page

    def _complain(self, text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            self.complaints.append(text)

    def close(self) -> None:
        self.context.close()


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
