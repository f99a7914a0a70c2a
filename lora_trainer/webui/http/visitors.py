"""Checks the origin of a request: whether it comes from another machine, and whether its Host is
ours.

A web page can resolve its own name to this machine (DNS rebinding); its requests then carry that
name as Host. IP addresses and localhost cannot be rebound. Other names are accepted if configured
(host.names), or if the browser sends Sec-Fetch-Site, which scripts cannot set and which browsers
send only over https or to localhost: then a certificate has proven the name. Called by routing.py.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import Request

from lora_trainer.hosts.addresses import address_of, host_of, is_loopback

_FORWARDED = (
    "x-forwarded-for",
    "x-real-ip",
    "x-forwarded-host",
    "cf-connecting-ip",
    "true-client-ip",
    "forwarded",
    "via",
)


def is_known(host: str, names: Collection[str]) -> bool:
    """Whether this Host header cannot be forged by DNS rebinding: an IP address, localhost, or one
    of `names` (*.example.com and * are patterns).
    """
    if not host:
        return False
    if is_loopback(host) or address_of(host) is not None:
        return True
    return any(
        name in (host, "*") or (name.startswith("*.") and host.endswith(name[1:])) for name in names
    )


def is_cross_site(request: Request) -> bool:
    """Whether another site's page sent it, from the Sec-Fetch headers. Following a link is not."""
    site = request.headers.get("sec-fetch-site", "")
    followed = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    return site in ("cross-site", "same-site") and not followed


def foreign_name(request: Request, names: Collection[str]) -> str:
    """The foreign name in the Host or Origin header; empty if there is none."""
    if request.headers.get("sec-fetch-site") in ("same-origin", "none"):
        return ""
    asked = request.headers.get("host", "")
    host, origin = host_of(asked), request.headers.get("origin")
    if not is_known(host, names):
        return host or asked[:100] or "-"
    if origin is None:
        return ""
    sender = _host_of_origin(origin)
    # a proxy may have replaced the Host header by its own address
    passed_on = host_of(request.headers.get("x-forwarded-host", "").split(",")[0])
    return (
        ""
        if sender and (sender in (host, passed_on) or is_known(sender, names))
        else (sender or origin[:100] or "-")
    )


def is_remote_client(request: Request) -> bool:
    """Whether headers show that the client is another machine. Their absence proves nothing: a
    tunnel may send none.
    """
    # both may be missing, or a path, behind a proxy that uses a Unix socket
    ends = [
        address_of(end[0] or "")
        for end in (request.scope.get("client"), request.scope.get("server"))
        if end
    ]
    if any(end is not None and not end.is_loopback for end in ends):
        return True
    # browsers resolve 0.0.0.0 to this machine for any web page
    host = host_of(request.headers.get("host", ""))
    address = address_of(host)
    if not is_loopback(host) and not (address and address.is_unspecified):
        return True
    return any(_names_elsewhere(request.headers.get(name, "")) for name in _FORWARDED)


def _names_elsewhere(value: str) -> bool:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return any(not is_loopback(host_of(part)) for part in parts)


def _host_of_origin(origin: str) -> str:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return host_of(parts.netloc) if parts.scheme in ("http", "https") else ""
