"""Whether clients are told apart by what they cannot choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Final

from usagekeeper.doctor.codes import Finding, finding
from usagekeeper.doctor.surroundings import Surroundings
from usagekeeper.doctor.traffic import Sample
from usagekeeper.identity import Body, ClientAddress, Cookie, Header, Host, PathParam, Query
from usagekeeper.inspection.coverage import Rule, asked, rules_of, widest
from usagekeeper.inspection.locate import Installation

_CHOSEN: Final = (Header, Query, Cookie, Body, PathParam, Host)
"""Strategies that take a client at its word."""
_WIDE: Final = {4: 4, 6: 8}
"""A trusted network with so few bits, or fewer, is everybody."""
_READERS: Final = ("ProxyFix", "ProxyHeadersMiddleware")
_ENOUGH: Final = 100
_AGENTS: Final = 3


def findings(found: Installation, around: Surroundings, records: Sample) -> Iterator[Finding]:
    """What is wrong with addresses and names."""
    trusted = found.keeper.settings.trusted_proxies
    yield from _everybody(trusted)
    if found.kind == "asgi" and around.rewrites:
        yield from _server(around, trusted)
    yield from _layers(found, trusted)
    if trusted is None and around.allowed is None:
        yield from _one_peer(records)
    yield from _made_up(rules_of(found.keeper))


def _everybody(trusted: Any) -> Iterator[Finding]:
    for text in [trusted] if isinstance(trusted, str) else trusted if isinstance(trusted, Sequence) else ():
        network = ip_network(text, strict=False)
        if network.prefixlen <= _WIDE[network.version]:
            yield finding(
                "UK201",
                f"trusted_proxies has {text}, which is nearly every address: any client may then name its own in"
                " X-Forwarded-For, and no limit by address holds.",
            )


def _server(around: Surroundings, trusted: Any) -> Iterator[Finding]:
    allowed = around.allowed
    if allowed is not None and _open(allowed):
        yield finding(
            "UK203",
            f"{around.allowed_from} is {allowed}: the server takes the left-most forwarded address of any peer, which"
            " clients write themselves.",
            f"{around.allowed_from}=10.0.0.2, the address of the proxy",
        )
    elif allowed is not None and trusted is not None:
        yield finding(
            "UK202",
            f"{around.allowed_from} is {allowed}, so the server puts the client's address into the connection, and"
            f" trusted_proxies={trusted!r} reads the header again: where a client is in a trusted network, it may then"
            " choose its address.",
        )
    elif trusted is not None:
        yield finding(
            "UK202",
            f"trusted_proxies={trusted!r} is set, and uvicorn reads the header as well when the proxy is on 127.0.0.1"
            " or ::1: that is its default.",
            "uvicorn --no-proxy-headers (UVICORN_PROXY_HEADERS=0), or leave trusted_proxies out",
        )


def _layers(found: Installation, trusted: Any) -> Iterator[Finding]:
    for layer in found.layers[: found.place]:
        if layer.name in _READERS and trusted is not None:
            yield finding(
                "UK202",
                f"{layer.name} stands outside UsageMiddleware and puts the client's address into the request, and"
                f" trusted_proxies={trusted!r} reads the header again: where a client is in a trusted network, it may"
                " then choose its address.",
            )


def _open(allowed: str) -> bool:
    for text in allowed.split(","):
        try:
            if text.strip() == "*" or ip_network(text.strip(), strict=False).prefixlen == 0:
                return True
        except ValueError:  # names of Unix sockets may stand there too
            continue
    return False


def _one_peer(records: Sample) -> Iterator[Finding]:
    """What can be known: records keep the peer, and no forwarded header."""
    peers = Counter(record.remote_address for record in records.records if record.remote_address)
    agents = {record.user_agent for record in records.records}
    if len(peers) != 1 or peers.total() < _ENOUGH or len(agents) < _AGENTS:
        return
    (peer,) = peers
    if _private(peer):
        yield finding(
            "UK204",
            f"All of the {peers.total()} newest records, with {len(agents)} user agents, come from {peer}, a private"
            " address: that looks like a proxy, behind which all clients share one limit.",
            "trusted_proxies=1, or let the server rewrite the address (--forwarded-allow-ips)",
        )


def _private(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_private
    except ValueError:
        return False


def _made_up(rules: Sequence[Rule]) -> Iterator[Finding]:
    bounds = [route for rule in rules if rule.enforced and _by_address(rule) for route in rule.routes]
    for rule in rules:
        if not rule.enforced or not any(isinstance(one, _CHOSEN) for one in rule.strategies):
            continue
        if any(widest(bounds, _any(route.method), route.segments) != "all" for route in rule.routes):
            yield finding(
                "UK205",
                f"Policy {rule.name!r} counts by {asked(rule)}, which a client writes itself: under ever new names it"
                " escapes the limit, and under another's name it uses that one up.",
                f'Policy("{_free(rule.name, rules)}", identity=ClientAddress(), limits=["300/minute"]),'
                " or a gateway that sets the value",
            )


def _by_address(rule: Rule) -> bool:
    return isinstance(rule.strategies[0], ClientAddress)


def _any(method: str) -> str:
    """A method that nothing but "*" covers stands for any."""
    return "_OTHER" if method == "*" else method


def _free(name: str, rules: Sequence[Rule]) -> str:
    return "address" if all(rule.name != "address" for rule in rules) else f"{name}-address"
