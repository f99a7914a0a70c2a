"""A model hub on this machine: the three answers of it that a fetch needs, over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Serves one model's folder under one id."""

    model: str
    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Each file whose content was asked for."""


@contextlib.contextmanager
def serve(model: str, folder: Path) -> Iterator[Hub]:
    hub = Hub(model=model, folder=folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path in (f"/api/models/{model}", f"/api/models/{model}/revision/main"):
                files = [
                    {"rfilename": file.name, "size": file.stat().st_size}
                    for file in sorted(folder.iterdir())
                ]
                self._answer(
                    json.dumps({"id": model, "sha": REVISION, "siblings": files}).encode(),
                    {"Content-Type": "application/json"},
                )
                return
            name = path.rpartition("/")[2]
            file = folder / name
            if path != f"/{model}/resolve/main/{name}" or not file.is_file():
                self._answer(
                    b"",
                    {
                        "X-Error-Code": (
                            "EntryNotFound" if path.startswith(f"/{model}/") else "RepoNotFound"
                        )
                    },
                    404,
                )
                return
            content = file.read_bytes()
            self._answer(
                content,
                {
                    "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Repo-Commit": REVISION,
                    "Accept-Ranges": "bytes",
                },
            )

        def _answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
            start = (
                int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
                if status == 200
                else 0
            )
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_response(206 if start else status)
            for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if status == 200 and "ETag" in headers:
                hub.asked.append(self.path.rpartition("/")[2] + (f" from {start}" if start else ""))
            self.wfile.write(content[start:])

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
