"""Names and addresses of machines, as they stand in a Host header or on a socket."""

from __future__ import annotations

import ipaddress
import re

_AUTHORITY = re.compile(r"(\[[0-9a-z:.%]+\]|[^\s\[\]:/@]+)(?::[0-9]*)?")


def host_of(authority: str) -> str:
    """The name or address in a Host header, without its port; empty where it is none."""
    found = _AUTHORITY.fullmatch(authority.strip().lower())
    return found.group(1).strip("[]").removesuffix(".") if found else ""


def is_loopback(host: str) -> bool:
    """Whether a name or address always means the machine it is used on."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text spells; None if it spells none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
