"""Where a source may lead: the guard against addresses in private networks, and URLs fit to be shown."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiohappyeyeballs import AddrInfoType
from yarl import URL

_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".cluster.local")
_MASK = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedAddressError(OSError):
    """The guard let no connection to this address be made; an OSError, so that the next address is tried."""


class AddressGuard:
    """A socket factory that makes sockets for permitted addresses only.

    It sees the address that is connected to, so neither a name that resolves to a private address nor an unusual
    spelling of one gets past it.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self.refused: list[str] = []
        self.permitted = 0
        self._allow_private = allow_private

    def forget(self) -> None:
        """Begin to count anew, for another request."""
        self.refused.clear()
        self.permitted = 0

    def __call__(self, info: AddrInfoType) -> socket.socket:
        """Return a socket for the address, or raise RefusedAddressError."""
        family, kind, protocol, _, place = info
        address = str(place[0])
        if not self._allow_private and not is_public(address):
            self.refused.append(address)
            raise RefusedAddressError(f"{address} is not a public address")
        self.permitted += 1
        return socket.socket(family=family, type=kind, proto=protocol)


def is_public(text: str) -> bool:
    """Tell whether an IP address, and any address embedded in it, is on the public Internet."""
    address = ipaddress.ip_address(text)
    if (embedded := _embedded(address)) is not None:
        return is_public(str(embedded))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that a translating network would deliver to."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def names_private_network(host: str) -> bool:
    """Tell whether a host name, by its form alone, says that it is in a private network."""
    host = host.lower().rstrip(".")
    try:
        return not is_public(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_SUFFIXES)


def may_be_private(url: URL, *, named: URL, allow_private: bool) -> bool:
    """Tell whether `url` may lead into a private network: only where the operator said so, or named that very host."""
    if allow_private:
        return True
    return bool(named.host) and url.host == named.host and names_private_network(str(named.host))


def redact(url: str) -> str:
    """Return `url` without credentials and fragment, and with every value in its query masked."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition(':')[0]}://{_MASK}"
    place = parts.netloc.rpartition("@")[2]
    query = "&".join(_mask(field) for field in parts.query.split("&")) if parts.query else ""
    return urlunsplit((parts.scheme, place, parts.path, query, ""))


def redact_all(text: str) -> str:
    """Return `text` with every URL in it redacted."""
    return _URL.sub(lambda match: redact(match[0]), text)


def _mask(field: str) -> str:
    name, equals, _ = field.partition("=")
    return f"{name}={_MASK}" if equals else _MASK


def origin(url: URL) -> tuple[Any, ...]:
    """Return what has to be equal for credentials to be sent along."""
    return url.scheme, url.host, url.port
