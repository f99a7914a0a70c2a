"""A server for pages of the tab that no WebUI runs for: the extension's files, and what a test
answers. It runs beside the test, over real HTTP, so that browsers keep the modules that they have
compiled from one test to the next.
"""

from __future__ import annotations

import mimetypes
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
OWN = ("/javascript/", "/style.css")

Answer = tuple[int, Mapping[str, str], bytes]
Answering = Callable[[str, str, Mapping[str, str], bytes], Answer | None]
"""(method, path with query, headers, body) -> the answer; None: there is nothing of that name."""


class Server:
    """One address, where one test after the other answers."""

    def __init__(self) -> None:
        self.answering: Answering | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        name = urlsplit(path).path
        if name.startswith(OWN) and (ROOT / name[1:]).is_file():
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            told = {
                "content-type": kind,
                # no test changes them
                "cache-control": "max-age=3600, immutable",
                # for pages without an origin, too
                "access-control-allow-origin": "*",
            }
            return 200, told, (ROOT / name[1:]).read_bytes()
        answering = self.answering
        return (answering and answering(method, path, headers, body)) or (404, {}, b"")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, headers, content = server._answer(
                    self.command, self.path, dict(self.headers), body
                )
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in (
                        "content-length",
                        "content-encoding",
                        "transfer-encoding",
                    ):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    # the page has gone
                    self.close_connection = True

        return Handler
