"""Who is asking: whether a request came from another machine, and whether the browser that sent it
believes to talk to us.

A page on the internet can let its own name point at this machine (DNS rebinding): its scripts then
talk to us as if we were its server, but they send its name as Host. Addresses in digits and
localhost cannot be pointed anywhere else. A name is taken when it is one of ours (host.names), or
when the browser says Sec-Fetch-Site, which no script can set and which browsers send over https or
to this machine only: that page's name was proven by a certificate, so a proxy that belongs to it
stands before us. Called by routing.py.
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
    """Whether nobody else can let this Host header point at us: an address, this machine, one of
    `names` (*.example.com and * are many).
    """
    if not host:
        return False
    if is_loopback(host) or address_of(host) is not None:
        return True
    return any(
        name in (host, "*") or (name.startswith("*.") and host.endswith(name[1:])) for name in names
    )


def is_cross_site(request: Request) -> bool:
    """Whether another site's page sent it, as browsers tell of themselves. A link that is followed
    to here is none.
    """
    site = request.headers.get("sec-fetch-site", "")
    followed = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    return site in ("cross-site", "same-site") and not followed


def stranger(request: Request, names: Collection[str]) -> str:
    """The name under which the sender wrongly believes to know us, or from whose page it comes;
    empty if all is well.
    """
    if request.headers.get("sec-fetch-site") in ("same-origin", "none"):
        return ""
    asked = request.headers.get("host", "")
    host, origin = host_of(asked), request.headers.get("origin")
    if not is_known(host, names):
        return host or asked[:100] or "-"
    if origin is None:
        return ""
    sender = _host_of_origin(origin)
    # a proxy may have put its own address in place of the name in Host
    passed_on = host_of(request.headers.get("x-forwarded-host", "").split(",")[0])
    return (
        ""
        if sender and (sender in (host, passed_on) or is_known(sender, names))
        else (sender or origin[:100] or "-")
    )


def comes_from_elsewhere(request: Request) -> bool:
    """Whether it carries a sign that its sender sits at another machine. That there is none proves
    nothing: a tunnel may show none.
    """
    # either may be missing, or a path, where a proxy comes through a socket in the file system
    ends = [
        address_of(end[0] or "")
        for end in (request.scope.get("client"), request.scope.get("server"))
        if end
    ]
    if any(end is not None and not end.is_loopback for end in ends):
        return True
    # 0.0.0.0 is what some browsers on this machine call it, and what any web page may call it: an
    # image's address is enough
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
