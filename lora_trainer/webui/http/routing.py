"""Routing: a table of routes, the request guard, and errors as JSON.

    @route("POST", "/runs")
    def start(app: App, request: Request) -> dict: ...

    mount(host_app, app)      mounts all routes under /lora-trainer/ of the host's FastAPI app

The host's login (--gradio-auth) does not cover an extension's routes, so the guard checks it, and
refuses cross-site requests and foreign Host headers (visitors.py). Requests that change something
need a custom header, which another site cannot send without a CORS preflight. A handler returns
JSON data or a Response; a LoraTrainerError becomes a message and a hint in the user's language.
Called by lazy_app.py.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import importlib.util
import inspect
import json
import logging
import pkgutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypedDict, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from lora_trainer import files, webui
from lora_trainer.errors import ConfigError, LoraTrainerError
from lora_trainer.webui import texts
from lora_trainer.webui.common.data_folder import NotFound
from lora_trainer.webui.http import visitors
from lora_trainer.webui.http.path_redaction import redact
from lora_trainer.webui.lazy_app import PREFIX

HEADER = "x-lora-trainer"
LANGUAGE_HEADER = "x-lora-trainer-language"
SESSION_HEADER = "x-lora-trainer-session"
LONGEST_BODY = 4 * 2**20
"""Size limit of a JSON body in bytes. Uploads are streamed and have limits of their own."""

LARGEST = sys.float_info.max

Handler = Callable[[Any, "Request"], Any]
SomeHandler = TypeVar("SomeHandler", bound=Handler)
Other = TypeVar("Other")
log = logging.getLogger("lora_trainer.webui")


class Conflict(LoraTrainerError):
    """The resource was changed by someone else in the meantime; `current` is its current state."""

    def __init__(
        self, template: str, *, hint: str = "", current: Any = None, **values: Any
    ) -> None:
        super().__init__(template, hint=hint, **values)
        self.current = current


class Forbidden(LoraTrainerError):
    """Not allowed: a remote user, or a cross-site request."""


@dataclass(frozen=True)
class Request:
    """A request that has passed the guard."""

    path: dict[str, str]
    query: dict[str, str]
    body: dict[str, Any]
    """The JSON body of a POST; empty for a GET or an upload."""
    language: str
    remote: bool
    """Whether the host is reachable from other machines (--listen, --share ...): paths are then
    neither accepted nor shown.
    """
    raw: StarletteRequest

    def stream(self) -> AsyncIterator[bytes]:
        """The body of an upload in chunks."""
        return self.raw.stream()

    def require_local(self) -> None:
        """Raises Forbidden for remote users."""
        if self.remote:
            raise Forbidden(
                "this WebUI can be reached from other machines, so folders of this machine cannot"
                " be opened from the browser",
                hint=(
                    "Upload the images instead, or start the WebUI with"
                    " --enable-insecure-extension-access."
                ),
            )

    def number(self, name: str, default: Other) -> int | Other:
        """A non-negative integer of the query; `default` if missing or invalid."""
        text = self.query.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default

    def value(self, key: str, kind: type, default: Any = ...) -> Any:
        """A value of the JSON body. Raises LoraTrainerError if it is missing (without a default) or
        of another type.
        """
        found = self.body.get(key, default)
        if found is ...:
            raise LoraTrainerError(
                "the request lacks {key}",
                hint="Reload the page: it may be older than the extension.",
                key=key,
            )
        if found is default:
            return found
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            with contextlib.suppress(OverflowError):
                found = float(found)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise LoraTrainerError(
                "{key} in the request has the wrong type",
                hint="Reload the page: it may be older than the extension.",
                key=key,
            )
        return found


class Nothing(TypedDict):
    """An empty answer."""


class Trashed(TypedDict):
    """`trash`: id of what was deleted, in the trash; empty if nothing was moved."""

    trash: str


@dataclass(frozen=True)
class RouteEntry:
    method: str
    path: str
    handler: Handler
    upload: bool
    body: type | None = None
    """The TypedDict of the body, if it has more than two fields."""


ROUTES: list[RouteEntry] = []
"""All routes, in order of definition."""


def route(
    method: str, path: str, *, upload: bool = False, body: type | None = None
) -> Callable[[SomeHandler], SomeHandler]:
    """Register a handler. `path` is below /lora-trainer, with {names} for path parameters; upload:
    the body is not JSON; body: the TypedDict of the body.
    """

    def add(handler: SomeHandler) -> SomeHandler:
        ROUTES.append(RouteEntry(method, path, handler, upload, body))
        return handler

    return add


def find_routes() -> None:
    """Import the routes.py of every folder of webui/, which registers its routes."""
    for folder in pkgutil.iter_modules(webui.__path__, f"{webui.__name__}."):
        if folder.ispkg and importlib.util.find_spec(f"{folder.name}.routes"):
            importlib.import_module(f"{folder.name}.routes")


def mount(host_app: Any, app: Any) -> None:
    """Mount the routes in an app immediately. In the host, lazy_app.py mounts them later."""
    host_app.mount(PREFIX, answering(host_app, app))


def answering(host_app: Any, app: Any) -> ASGIApp:
    """An ASGI app with all routes behind the guard, which uses the login of `host_app`."""
    inner = Starlette(
        routes=[
            Route(entry.path, _endpoint(entry, host_app, app), methods=[entry.method])
            for entry in ROUTES
        ]
    )
    inner.add_exception_handler(404, _no_such_route)
    inner.add_exception_handler(405, _no_such_route)
    return _named(inner, uuid.uuid4().hex)


def _named(inner: ASGIApp, session: str) -> ASGIApp:
    """Add the session id to every response, so that a page notices that the WebUI was restarted."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [
                        *message.get("headers", []),
                        (SESSION_HEADER.encode(), session.encode()),
                    ],
                }
            await send(message)

        await inner(scope, receive, sent)

    return outer


def _endpoint(entry: RouteEntry, host_app: Any, app: Any) -> Callable[[StarletteRequest], Any]:
    async def endpoint(raw: StarletteRequest) -> Response:
        language = texts.choose(
            raw.headers.get(LANGUAGE_HEADER, ""),
            app.host.language(),
            raw.headers.get("accept-language", ""),
        )
        try:
            if not is_allowed(host_app, raw, app.host.api_credentials()):
                return _problem(
                    401,
                    LoraTrainerError("log in to the WebUI first", hint="Reload the page."),
                    language,
                )
            _refuse_cross_site(host_app, raw, app)
            request = Request(
                path=dict(raw.path_params),
                query=dict(raw.query_params),
                body=await _body(entry, raw),
                language=language,
                remote=app.host.is_remote(),
                raw=raw,
            )
            if inspect.iscoroutinefunction(entry.handler):
                answer = await entry.handler(app, request)
            else:
                answer = await run_in_threadpool(entry.handler, app, request)
            return _to_response(answer, await _redactions(app, answer))
        except ClientDisconnect:
            return Response(status_code=400)
        except LoraTrainerError as error:
            return _problem(_status(error), error, language, await _redactions(app))
        except Exception as error:
            log.exception("%s %s", entry.method, entry.path)
            return _problem(500, _unexpected(error, app.host.is_remote()), language)

    return endpoint


def _refuse_cross_site(host_app: Any, raw: StarletteRequest, app: Any) -> None:
    """Raises Forbidden for cross-site requests. With a login, a foreign Host is allowed: a page
    under another name has no cookie.
    """
    if visitors.is_cross_site(raw):
        raise Forbidden("another web page sent this request", hint="Open the WebUI's own page.")
    if (
        not _asks_for_login(host_app)
        and (name := visitors.foreign_name(raw, ()))
        and (name := visitors.foreign_name(raw, app.host.names()))
    ):
        raise Forbidden(
            "{name} is not an allowed host name of this WebUI",
            hint=(
                "If this is your address, add it in Settings, LoRA Trainer, Allowed host names."
                " Requests from other web pages stay blocked."
            ),
            name=name,
        )
    if visitors.is_remote_client(raw):
        app.host.expect_visitors()


async def _redactions(app: Any, answer: Any = None) -> Mapping[PurePath, str]:
    """Replacements for this machine's folders. Empty if the host is local, and for files, which are
    sent unchanged.
    """
    if not app.host.is_remote() or (
        isinstance(answer, Response) and not isinstance(answer, PlainTextResponse)
    ):
        return {}
    # Path.resolve on a slow disk must not block the host
    folders: Mapping[PurePath, str] = await run_in_threadpool(app.redactions)
    return folders


async def _body(entry: RouteEntry, raw: StarletteRequest) -> dict[str, Any]:
    """The JSON body of a POST. Raises Forbidden unless it has the custom header."""
    if entry.method == "GET":
        return {}
    if not raw.headers.get(HEADER):
        raise Forbidden(
            "the request lacks the header X-LoRA-Trainer",
            hint="It protects you against requests from other web pages (CSRF).",
        )
    if entry.upload:
        return {}
    if raw.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Forbidden("the request is not JSON", hint="Send Content-Type: application/json.")
    content = b""
    async for piece in raw.stream():
        content += piece
        if len(content) > LONGEST_BODY:
            raise LoraTrainerError("the request is larger than {limit} bytes", limit=LONGEST_BODY)
    try:
        body = files.parse_json(content or b"{}")
    except files.NotJson as error:
        raise LoraTrainerError("the request is not valid JSON: {reason}", reason=error) from error
    if not isinstance(body, dict):
        raise LoraTrainerError(
            "the request is not a JSON object",
            hint="Reload the page: it may be older than the extension.",
        )
    return body


def is_allowed(host_app: Any, raw: StarletteRequest, api_credentials: dict[str, str]) -> bool:
    """Whether the user may access the host: no login is required, the browser is logged in, or it
    sends the API's credentials.
    """
    if not _asks_for_login(host_app):
        return True
    dependency = getattr(host_app, "auth_dependency", None)
    if dependency is not None:
        return bool(dependency(raw))
    tokens = getattr(host_app, "tokens", None) or {}
    # gradio 3: access-token, access-token-unsecure; gradio 4: access-token-<id of the app>
    if any(
        name.startswith("access-token") and tokens.get(value) for name, value in raw.cookies.items()
    ):
        return True
    return _has_credentials(raw.headers.get("authorization", ""), api_credentials)


def _asks_for_login(host_app: Any) -> bool:
    return (
        getattr(host_app, "auth", None) is not None
        or getattr(host_app, "auth_dependency", None) is not None
    )


def _has_credentials(header: str, api_credentials: dict[str, str]) -> bool:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    known = api_credentials.get(user)
    return known is not None and hmac.compare_digest(known.encode(), password.encode())


def _unexpected(error: Exception, remote: bool) -> LoraTrainerError:
    """The message for an unexpected exception. Its text may contain paths, and is shown to local
    users only.
    """
    if isinstance(error, OSError):
        hint = (
            "Check the free space and the permissions of the data folder. The WebUI's console names"
            " the file."
        )
        return LoraTrainerError(
            "a file or folder cannot be read or written: {reason}",
            hint=hint,
            reason=error.strerror or type(error).__name__,
        )
    return LoraTrainerError(
        "something unexpected went wrong: {kind}: {detail}",
        hint="Please report it, with the lines that the WebUI's console shows.",
        kind=type(error).__name__,
        detail="..." if remote else error,
    )


def _status(error: LoraTrainerError) -> int:
    return {NotFound: 404, Conflict: 409, Forbidden: 403}.get(type(error), 400)


def _to_response(answer: Any, redactions: Mapping[PurePath, str]) -> Response:
    """A handler's result as a response, with folders redacted unless it is a file."""
    if not isinstance(answer, Response):
        return _json(redact(answer, redactions))
    if isinstance(answer, PlainTextResponse) and redactions:
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in ("content-length", "content-type")
        }
        return PlainTextResponse(
            redact(bytes(answer.body).decode(), redactions), answer.status_code, kept
        )
    return answer


def _problem(
    status: int,
    error: LoraTrainerError,
    language: str,
    redactions: Mapping[PurePath, str] | None = None,
) -> Response:
    content: dict[str, Any] = {"kind": type(error).__name__, **texts.render_error(error, language)}
    if isinstance(error, ConfigError):
        content["problems"] = [texts.render_error(problem, language) for problem in error.problems]
    answer: dict[str, Any] = {"error": content}
    if isinstance(error, Conflict):
        answer["current"] = error.current
    return _json(redact(answer, redactions or {}), status)


def _json(content: Any, status: int = 200) -> Response:
    # ASCII: file names may contain lone surrogates, which survive only escaped
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        # a non-finite number, or one with thousands of digits
        text = json.dumps(_writable(content), allow_nan=False, separators=(",", ":"))
    return Response(
        text, status, headers={"Cache-Control": "no-store"}, media_type="application/json"
    )


def _writable(content: Any) -> Any:
    """The value with null for numbers that JSON or JavaScript cannot represent."""
    if isinstance(content, dict):
        return {key: _writable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_writable(value) for value in content]
    is_number = isinstance(content, (int, float)) and not isinstance(content, bool)
    return None if is_number and not -LARGEST <= content <= LARGEST else content


async def _no_such_route(raw: StarletteRequest, error: Exception) -> Response:
    language = texts.choose(
        raw.headers.get(LANGUAGE_HEADER, ""), "", raw.headers.get("accept-language", "")
    )
    return _problem(
        404,
        NotFound(
            "there is nothing at this address",
            hint="Reload the page: it may be older than the extension.",
        ),
        language,
    )
