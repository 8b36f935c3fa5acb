"""Which addresses the endpoint may fetch pictures from, decided before anything is connected to.

Nothing unless named. An address must be spelt plainly (no user, no backslash, no odd port, no
encoded host), its host be on a list, and every IP that the host resolves to be public; the
connection then goes to one of those very IPs, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from d2det_platform.serve.options import Outside
from d2det_platform.serve.problems import Problem

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port to IP addresses."""

_HOST = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
"""A name in lower case; its last label begins with a letter, so no spelling of an IP is one."""
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Target:
    """Where to connect to.

    ip: of the host, checked.  host: name for TLS and the Host header.  path: with its query.
    """

    ip: str
    host: str
    port: int
    path: str
    is_tls: bool


def target_of(url: str, outside: Outside, resolve: Resolve) -> Target:
    """Returns where to fetch an address from.

    Raises:
        Problem: url_not_allowed, or fetch_failed where its host is unknown.
    """
    parts = _split(url)
    host, scheme = parts.hostname or "", parts.scheme
    is_private = host in outside.private_hosts
    if not is_private and not _is_allowed(host, outside.allow_hosts):
        raise _refused("its host is not on the list of this server")
    if scheme == "http" and not is_private:
        raise _refused("https is needed")
    port = parts.port if parts.port is not None else _PORTS[scheme]
    if port != _PORTS[scheme] and not is_private:
        raise _refused("its port is not the usual one")
    try:
        ips = [ip.partition("%")[0] for ip in resolve(host, port)]
    except OSError:
        raise Problem("fetch_failed", f"{host} is not known") from None
    if not ips or not (is_private or all(is_public(ip) for ip in ips)):
        raise _refused("its host is not on the public internet")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(ips[0], host, port, path, is_tls=scheme == "https")


def is_public(ip: str) -> bool:
    """Returns whether an IP is one of the public internet, also inside IPv6 wrappings."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _split(url: str) -> SplitResult:
    if len(url) > 2048 or not url.isascii() or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise _refused("it is not spelt plainly")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("it cannot be read") from None
    if parts.scheme not in _PORTS:
        raise _refused("https is needed")
    plain = parts.hostname or ""
    if port is not None:
        plain += f":{port}"
    if parts.netloc.lower() != plain or not _HOST.fullmatch(parts.hostname or ""):
        raise _refused("its host is not spelt plainly")
    return parts


def _is_allowed(host: str, patterns: Sequence[str]) -> bool:
    """ "*.example.org" stands for every name below example.org."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


def _refused(reason: str) -> Problem:
    return Problem("url_not_allowed", f"the address is refused: {reason}", parameter="url")
