"""Imports the rest of the extension in a thread after the host's server has started, so that the
start is not delayed.

    mount(host_app)     mounts an ASGI app under /lora-trainer/, which waits for the import, or
                        reports why it failed
    unload()            the host is about to reload its extensions

Importing the routes takes 0.3 to 0.5 s of CPU time, most of what the extension needs at a host's
start. Called by callbacks.py, which imports this file immediately.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

PREFIX = "/lora-trainer"

log = logging.getLogger("lora_trainer.webui")
_current: list[LazyApp] = []


def mount(host_app: Any) -> None:
    """Mount the routes in the host's app; called again for a new app after "Reload UI"."""
    unload()
    lazy = LazyApp(host_app)
    _current[:] = [lazy]
    host_app.mount(PREFIX, lazy)
    threading.Thread(target=lazy.load, name="lora-trainer-start", daemon=True).start()


def unload() -> None:
    """Restore the host's queue. Exceptions are passed on."""
    for lazy in _current:
        lazy.end()
    _current.clear()


class LazyApp:
    """An ASGI app that is mounted before it is loaded."""

    def __init__(self, host_app: Any) -> None:
        self._host_app = host_app
        self._there = threading.Event()
        self._turn = threading.Lock()
        self._ended = False
        self._app: Any = None
        self._answer: Any = None
        self._trouble: Exception | None = None

    def load(self) -> None:
        """Import the rest, start the scheduler, and answer requests."""
        try:
            from lora_trainer.webui.app import get_app
            from lora_trainer.webui.http import routing

            routing.find_routes()
            self._answer = routing.answering(self._host_app, get_app())
            self._begin(get_app())
        except Exception as error:
            log.exception("LoRA Trainer cannot start")
            self._trouble = error
        finally:
            self._there.set()

    def _begin(self, app: Any) -> None:
        with self._turn:
            if self._ended:
                return
            self._app = app
            try:
                app.begin()
            except Exception:
                log.exception("LoRA Trainer's queue cannot be started yet")

    def end(self) -> None:
        """Stop, and release what was acquired from the host."""
        with self._turn:
            self._ended = True
            if self._app is not None:
                self._app.end()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._there.is_set():
            await asyncio.get_running_loop().run_in_executor(None, self._there.wait)
        if self._trouble is None:
            await self._answer(scope, receive, send)
        elif scope["type"] == "http":
            await self._say_trouble(self._trouble, send)

    async def _say_trouble(self, error: Exception, send: Any) -> None:
        from lora_trainer.webui import callbacks

        # the report contains paths, and the guard that would check the login could not be imported
        asks_for_login = any(
            getattr(self._host_app, name, None) is not None for name in ("auth", "auth_dependency")
        )
        content = {
            "message": callbacks.translated(callbacks.CANNOT_START),
            "hint": callbacks.translated(callbacks.LOOK if asks_for_login else callbacks.UPDATE),
        }
        if not asks_for_login:
            content |= {
                "label": callbacks.translated(callbacks.REPORT),
                "report": callbacks.report(error),
            }
        body = json.dumps({"error": content}).encode("utf-8")
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": body})
