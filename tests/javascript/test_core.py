"""common/: what is said of numbers, sizes and times, and how the server is asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.javascript.conftest import ROOT, serve

pytestmark = pytest.mark.xdist_group("scripts")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (40.4, "40 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3599, "60 min"),
        (5400, "1 h 30 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_a_duration_is_told_as_people_do(call, seconds, words):
    assert call("common/language.formatDuration", seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (12_000_000, "12 MB"),
        (4_200_000_000, "4.2 GB"),
    ],
)
def test_a_size_has_its_unit(call, size, words):
    assert call("common/language.formatBytes", size) == words


def test_a_text_gets_its_values_and_an_unknown_place_stays(call):
    assert (
        call("common/language.t", "{count} images in {name}", {"count": 3}) == "3 images in {name}"
    )
    assert call("common/language.t", "plain {name}") == "plain {name}"


def test_addresses_are_relative_and_leave_out_what_is_empty(call):
    assert (
        call("common/api.routeAddress", "/runs/a b", {"offset": 0, "text": "", "none": None})
        == "lora-trainer/runs/a b?offset=0"
    )


def test_two_clicks_have_two_names(call):
    one, two = call("common/api.randomToken"), call("common/api.randomToken")
    assert one != two and len(one) == len(two) == 32


def test_a_browser_that_keeps_nothing_is_no_obstacle(browser):
    # a page without an origin is refused its storage, as pages are where a visitor has switched it
    # off
    page = browser.new_page()
    serve(page, '<iframe sandbox="allow-scripts" srcdoc="" id="alone"></iframe>')
    (_, alone) = page.frames
    try:
        assert (
            alone.evaluate("(() => { try { localStorage.length; } catch { return 'refused'; } })()")
            == "refused"
        )
        for session in (False, True):
            found = alone.evaluate(
                """async (session) => {
                    const { kept } = await import("http://tab.test/javascript/common/store.js");
                    kept.set("lora-trainer-test", { a: 1 }, { session });
                    return kept.get("lora-trainer-test", { session });
                }""",
                session,
            )
            assert found is None
    finally:
        page.close()


@pytest.mark.parametrize(
    ("language", "sentences", "words"),
    [
        (
            "en",
            ["no images are chosen", "Add images first.", None, ""],
            "no images are chosen. Add images first.",
        ),
        ("zh_CN", ["没有选择图片", "请先添加图片。"], "没有选择图片。请先添加图片。"),
        ("en", ["SD1.5 · clip skip 1"], "SD1.5 · clip skip 1."),
    ],
)
def test_sentences_in_a_row_are_set_as_their_language_does(call, language, sentences, words):
    call("common/store.store.set", "language", language)
    try:
        assert call("common/language.sentences", sentences) == words
    finally:
        call("common/store.store.set", "language", None)


class DyingHost(BaseHTTPRequestHandler):
    """A WebUI that ends in the middle of an answer."""

    def do_GET(self):
        if self.path.startswith("/javascript/"):
            text = (ROOT / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        whole = b"<!doctype html><title>a page</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/" else "application/json")
        self.send_header("Content-Length", str(len(whole) if self.path == "/" else 1000))
        self.end_headers()
        self.wfile.write(whole if self.path == "/" else b'{"runs": [')

    def log_message(self, *values):
        pass


def test_an_answer_that_breaks_off_is_a_webui_that_does_not_answer(browser):
    server = ThreadingHTTPServer(("127.0.0.1", 0), DyingHost)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(locale="en-US")
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        said = page.evaluate(
            """async () => {
                const { api, Problem } = await import("/javascript/common/api.js");
                return api
                    .get("runs")
                    .catch((problem) => [problem instanceof Problem, problem.message]);
            }"""
        )
    finally:
        page.close()
        server.shutdown()
    assert said == [True, "The WebUI does not answer."]
