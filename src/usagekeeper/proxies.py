"""Which address a client has: the socket's peer, unless proxies that the user named vouch for another.

Forwarded headers are written by whoever sent the request. They are read right to left (each proxy appends the peer it
saw), and only as far as the entries were appended by a trusted proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from usagekeeper.errors import ConfigurationError, shown
from usagekeeper.exchange import Request, header_key

ClientOf = Callable[[Request], str | None]

_FORWARDED_FOR: Final = header_key("x-forwarded-for")
_FORWARDED: Final = header_key("forwarded")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LONGEST: Final = 128
_MOST: Final = 64


def client_of(trusted: int | Sequence[str] | None) -> ClientOf:
    """A reader of the client's address.

    *trusted* is None (the peer is the client), a number of proxies in front, or their networks ("10.0.0.0/8"). Proxies
    that write the address into the connection themselves (uvicorn's ``--proxy-headers``) need none of this: the peer
    is the client's address then, and applying the header twice would let clients choose their own.
    """
    if trusted is None:
        return peer_of
    if isinstance(trusted, int) and not isinstance(trusted, bool) and 1 <= trusted <= _MOST:
        return _Hops(trusted)
    networks = trusted
    if isinstance(trusted, str):
        networks = [] if trusted.isdecimal() else [trusted]  # "1" is a number that was meant as one
    if (
        isinstance(networks, Sequence)
        and not isinstance(networks, str)
        and networks
        and all(isinstance(network, str) for network in networks)
    ):
        return _Networks(networks)
    raise ConfigurationError(
        f'trusted_proxies is a number of proxies (1) or a list of networks (["10.0.0.0/8"]), not {shown(trusted)}'
    )


def peer_of(request: Request) -> str | None:
    """The client is the socket's peer."""
    return request.peer


class _Hops:
    """So many proxies in front: the entry that the outermost of them appended."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, request: Request) -> str | None:
        chain = _chain(request)
        if len(chain) < self._count:
            return request.peer
        return chain[-self._count]


class _Networks:
    """Proxies by network: the right-most address that is none of theirs."""

    __slots__ = ("_trusts",)

    def __init__(self, trusted: Sequence[str]) -> None:
        networks = tuple(_network(text) for text in trusted)

        @lru_cache(maxsize=1024)
        def trusts(text: str) -> bool:
            address = parse_address(text)
            return address is not None and any(address in network for network in networks)

        self._trusts = trusts

    def __call__(self, request: Request) -> str | None:
        peer = request.peer
        if peer is None or not self._trusts(peer[:_LONGEST]):
            return peer
        client = peer
        for entry in reversed(_chain(request)):
            if parse_address(entry) is None:
                return client  # what is not an address was not written by a proxy
            client = entry
            if not self._trusts(entry):
                return client
        return client


def _chain(request: Request) -> list[str]:
    """The forwarded addresses, the client's first; RFC 7239's header only where the older one is absent."""
    entries = [entry.strip() for entry in _last(request.values(_FORWARDED_FOR))]
    if not entries:
        entries = [_forwarded_for(element) for element in _last(request.values(_FORWARDED))]
    return [_without_port(entry[:_LONGEST]) for entry in entries]  # they are remembered, and a zone id has no end


def _last(values: list[str]) -> list[str]:
    """The entries next to us: nobody has more proxies, and thousands that a client writes would take long to read."""
    return [entry for value in values[-_MOST:] for entry in value.rsplit(",", _MOST)[-_MOST:]][-_MOST:]


def _forwarded_for(element: str) -> str:
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.lower() == "for":
            return value.strip('"')
    return ""


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.rpartition(":")
    return host if colon and ":" not in host and port.isdigit() else entry


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigurationError(
            f'trusted_proxies holds {text!r}, which is no network: write "10.0.0.0/8" or one address'
        ) from error


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as it was meant: zone ids dropped, IPv4 taken out of its IPv6 forms (mapped and NAT64)."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def address_key(text: str, prefix: int) -> str:
    """The value that requests from one client share: an IPv4 address, or the IPv6 network that one client owns."""
    return _address_key(text[:_LONGEST], prefix)  # a server that trusts forwarded headers hands over any text


@lru_cache(maxsize=4096)
def _address_key(text: str, prefix: int) -> str:
    address = parse_address(text)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, prefix), strict=False))
    return text[:64] if address is None else str(address)
