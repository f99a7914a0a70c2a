"""A blank page that can import the tab's modules: their pure parts are tested without a WebUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.javascript.serving import Server

ROOT = Path(__file__).resolve().parents[2]
BLANK = '<!doctype html><div id="txt2img_prompt"><textarea></textarea></div>'
CALL = """async ([module, names, given]) => {
    const found = await import("/javascript/" + module + ".js");
    return names.reduce((value, name) => value[name], found)(...given);
}"""


def serve(page: Any, html: str = BLANK) -> None:
    """Open a page at an address of its own, with the extension's files below it."""

    def answer(route: Any) -> None:
        path = urlsplit(route.request.url).path
        if path == "/":
            route.fulfill(body=html, content_type="text/html")
        elif path.startswith("/javascript/"):
            # for pages without an origin, too
            route.fulfill(path=ROOT / path[1:], headers={"access-control-allow-origin": "*"})
        else:
            route.fulfill(status=404)

    page.route("http://tab.test/**", answer)
    page.goto("http://tab.test/")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def script_page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(locale="en-US")
    serve(page)
    yield page
    page.close()


@pytest.fixture
def call(script_page: Any) -> Any:
    """call("prompt/lora_tags.find", prompt): what the function of that name in that module says."""

    def run(path: str, *arguments: Any) -> Any:
        module, *names = path.split(".")
        return script_page.evaluate(CALL, [module, names, list(arguments)])

    return run
