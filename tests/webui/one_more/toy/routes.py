"""The smallest section: says how long a name is."""

from __future__ import annotations

from typing import TypedDict

from lora_trainer.webui.app import App
from lora_trainer.webui.http.routing import Request, route


class NameLength(TypedDict):
    letters: int
    host: str


@route("POST", "/name-length")
def measure(app: App, request: Request) -> NameLength:
    return {"letters": len(request.value("name", str)), "host": app.host.name}
