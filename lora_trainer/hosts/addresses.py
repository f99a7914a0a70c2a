"""Host names and addresses, from a Host header or a socket."""

from __future__ import annotations

import ipaddress
import re

_AUTHORITY = re.compile(r"(\[[0-9a-z:.%]+\]|[^\s\[\]:/@]+)(?::[0-9]*)?")


def host_of(authority: str) -> str:
    """The name or address in a Host header, without its port; empty if invalid."""
    found = _AUTHORITY.fullmatch(authority.strip().lower())
    return found.group(1).strip("[]").removesuffix(".") if found else ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a string, or None. IPv4-mapped IPv6 addresses become IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
