"""Visitors of a WebUI: a browser's context with pages, and what those complained about.

The first page of a context compiles gradio's megabytes, which takes three seconds of processor
time; when the same page opens the WebUI again, it takes half a second. So a visitor takes over the
context and the page of one who has left, after everything that they left was taken away: cookies,
storage, permissions, routes. What cannot be taken away (a listener, an init script) ends the page
with its visitor. No context has a route of its own: while there is one, Playwright keeps the
browser from using its cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Error as PlaywrightError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

HERE = re.compile(r"https?://127\.0\.0\.1(:\d+)?")
LEFT = "/the-visitor-has-left"
"""An address of the WebUI that it does not know: nothing of ours runs there."""
SIZE = {"width": 1280, "height": 900}
DEFAULTS = {
    "locale": "en-US",
    "accept_downloads": True,
    # a bar that moves while a test waits is drawn sixty times a second
    "reduced_motion": "reduce",
}
FOR_GOOD = ("on", "once", "add_init_script", "expose_function", "expose_binding", "add_cookies")
HARMLESS = (
    # gradio's own page, without a network or without a manifest
    "manifest.json",
    "fonts.googleapis",
    "cdnjs",
    "iframe-resizer",
    "favicon",
    "preloaded using link preload",
    # gradio's own page, whose WebUI was killed
    "Connection errored out",
    # the browser notes every answer that is a sentence for the visitor
    "the server responded with a status of 400",
    "the server responded with a status of 409",
)
_free: dict[tuple[Any, tuple[tuple[str, Any], ...]], list[Seat]] = {}


class Seat:
    """A context and its first page, used by one visitor after another."""

    def __init__(self, browser: Browser, options: dict[str, Any]) -> None:
        self.context: BrowserContext = browser.new_context(viewport=SIZE, **{**DEFAULTS, **options})
        self.context.set_default_timeout(60_000)
        self.first: Page = self.context.new_page()
        self.is_spoiled = False
        for part in (self.context, self.first):
            for name in FOR_GOOD:
                if hasattr(part, name):
                    setattr(part, name, self._spoiling(getattr(part, name)))

    def _spoiling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.is_spoiled = True
            return method(*arguments, **named)

        return call

    def tidy(self, origins: set[str]) -> None:
        """As new, but for what the browser has compiled."""
        for page in self.context.pages:
            if page is not self.first:
                page.close()
        self.first.unroute_all(behavior="ignoreErrors")
        self.context.unroute_all(behavior="ignoreErrors")
        for origin in origins:
            self.first.goto(origin + LEFT)
            self.first.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        self.context.clear_cookies()
        self.context.clear_permissions()


class Visitor:
    """One visitor's browser. Options are those of a context; size and colour scheme are also a
    page's.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[tuple[str, str]] = []
        """Those of pages since note_requests(): each is a message to this process."""
        self._origins: set[str] = set()
        self._notes_requests = False
        self._size = options.pop("viewport", SIZE)
        self._scheme = options.pop("color_scheme", "light")
        self._key = (browser, tuple(sorted(options.items())))
        free = _free.setdefault(self._key, [])
        self._seat = free.pop() if free else Seat(browser, options)
        self._is_seated = False
        self._listeners: list[tuple[Page, str, Callable[..., Any]]] = []
        self.context = self._seat.context

    def page(self) -> Page:
        """The first page of the seat; a new one for each further call."""
        page = self.context.new_page() if self._is_seated else self._seat.first
        self._is_seated = True
        page.set_viewport_size(self._size)
        page.emulate_media(color_scheme=self._scheme)
        self._listen(page, "console", self._hear)
        self._listen(page, "pageerror", lambda error: self._complain(f"{error}\n{error.stack}"))
        self._listen(page, "framenavigated", self._note_origin)
        if self._notes_requests:
            self._listen(page, "request", self._note_request)
        return page

    def note_requests(self) -> None:
        """Of the pages that are open, and of later ones."""
        if not self._notes_requests:
            self._notes_requests = True
            for page in self.context.pages if self._is_seated else ():
                self._listen(page, "request", self._note_request)

    def _note_request(self, request: Any) -> None:
        self.requests.append((request.method, request.url))

    def _note_origin(self, frame: Any) -> None:
        if found := HERE.match(frame.url):
            self._origins.add(found.group())

    def _listen(self, page: Page, event: str, listener: Callable[..., Any]) -> None:
        # the class's own method: the page's says that it is spoiled
        type(page).on(page, event, listener)
        self._listeners.append((page, event, listener))

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self._complain(f"{message.text} {message.location.get('url', '')}")

    def _complain(self, text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            self.complaints.append(text)

    def close(self) -> None:
        """Leave the seat to the next one."""
        for page, event, listener in self._listeners:
            page.remove_listener(event, listener)
        if self._seat.is_spoiled:
            self.context.close()
            return
        # a page with words that are not saved asks whether to stay
        self._listen(self._seat.first, "dialog", lambda dialog: dialog.accept())
        try:
            self._seat.tidy(self._origins)
        except PlaywrightError:
            # a page that crashed, or hangs
            self.context.close()
            return
        self._seat.first.remove_listener(*self._listeners[-1][1:])
        _free[self._key].append(self._seat)
