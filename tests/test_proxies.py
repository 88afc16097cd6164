"""Which address a client has, whatever it writes into the forwarded headers itself."""

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import AsgiCall, Call, Pairs, WsgiCall, http_scope, wsgi_environ
from usagekeeper import ClientAddress, ConfigurationError, Policy, Request, UsageKeeper
from usagekeeper.exchange import AsgiRequest, WsgiRequest
from usagekeeper.proxies import address_key, client_of, parse_address

PROXY = "10.0.0.1"
CDN = "192.0.2.7"
REAL = "203.0.113.5"
LIE = "198.51.100.66"
INSIDE = ["10.0.0.0/8", "192.0.2.0/24"]

Build = Callable[[str | None, Pairs], Request]


def asgi(peer: str | None, headers: Pairs) -> Request:
    scope = http_scope(headers=headers, client=peer)
    raw = dict(scope["headers"])
    return AsgiRequest("GET", "/", scope, raw, len(raw) != len(scope["headers"]))


def wsgi(peer: str | None, headers: Pairs) -> Request:
    return WsgiRequest("GET", "/", wsgi_environ(headers=headers, client=peer))


@pytest.fixture(params=[asgi, wsgi])
def build(request: pytest.FixtureRequest) -> Build:
    made: Build = request.param
    return made


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def forwarded_for(*values: str) -> Pairs:
    return [("x-forwarded-for", value) for value in values]


def forwarded(*values: str) -> Pairs:
    return [("forwarded", value) for value in values]


# -- which entry ------------------------------------------------------------------------------------------------------

CHAINS = [
    pytest.param(None, REAL, forwarded_for(LIE), REAL, id="nobody is trusted"),
    pytest.param(None, REAL, forwarded(f"for={LIE}"), REAL, id="nobody is trusted, RFC 7239"),
    pytest.param(INSIDE, REAL, forwarded_for(LIE), REAL, id="the peer is no proxy"),
    pytest.param(INSIDE, PROXY, (), PROXY, id="a proxy that says nothing"),
    pytest.param(INSIDE, PROXY, forwarded_for(REAL), REAL, id="one proxy"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{LIE}, {REAL}"), REAL, id="one proxy and a lie"),
    pytest.param(INSIDE, PROXY, forwarded_for(LIE, REAL), REAL, id="a lie in a line of its own"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{LIE},{REAL} , {CDN}"), REAL, id="two proxies and a lie"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{PROXY}, {REAL}"), REAL, id="a lie that names the proxy"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{REAL}, garbage, {CDN}"), CDN, id="garbage stops at its proxy"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{REAL}, unknown"), PROXY, id="unknown stops at its proxy"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{REAL}, , {CDN}"), CDN, id="nothing stops at its proxy"),
    pytest.param(INSIDE, PROXY, forwarded_for(CDN), CDN, id="a client inside"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{REAL}:4711"), REAL, id="port"),
    pytest.param(INSIDE, PROXY, forwarded_for("[2001:db8::5]:4711"), "2001:db8::5", id="IPv6 and port"),
    pytest.param(INSIDE, PROXY, forwarded_for("2001:db8::5"), "2001:db8::5", id="IPv6"),
    pytest.param(INSIDE, f"::ffff:{PROXY}", forwarded_for(REAL), REAL, id="the proxy's address is mapped"),
    pytest.param(INSIDE, PROXY, forwarded_for(f"{REAL}, ::FFFF:{CDN}"), REAL, id="an entry is mapped"),
    pytest.param(["2001:DB8::/32"], "2001:db8::1%eth0", forwarded_for(REAL), REAL, id="the proxy has a zone"),
    pytest.param(PROXY, PROXY, forwarded_for(f"{LIE}, {REAL}"), REAL, id="one address"),
    pytest.param(INSIDE, PROXY, forwarded(f"for={LIE}, for={REAL};proto=https"), REAL, id="RFC 7239"),
    pytest.param(INSIDE, PROXY, forwarded(f"for={LIE}", f"by=x; FOR={REAL}"), REAL, id="RFC 7239, two lines"),
    pytest.param(INSIDE, PROXY, forwarded('for="[2001:db8::5]:4711"'), "2001:db8::5", id="RFC 7239, quoted"),
    pytest.param(INSIDE, PROXY, forwarded(f"for={LIE}, for=_hidden"), PROXY, id="RFC 7239, obfuscated"),
    pytest.param(INSIDE, PROXY, forwarded(f"for={LIE}, for=unknown"), PROXY, id="RFC 7239, unknown"),
    pytest.param(INSIDE, PROXY, forwarded(f"for={LIE}, by={PROXY}"), PROXY, id="RFC 7239, nobody named"),
    pytest.param(INSIDE, PROXY, forwarded(f'for="{LIE}, for={REAL}'), REAL, id="RFC 7239, a quote left open"),
    pytest.param(INSIDE, PROXY, [*forwarded_for(REAL), *forwarded(f"for={LIE}")], REAL, id="the older header wins"),
    pytest.param(1, REAL, (), REAL, id="one hop, no header"),
    pytest.param(1, PROXY, forwarded_for(f"{LIE}, {REAL}"), REAL, id="one hop and a lie"),
    pytest.param(2, PROXY, forwarded_for(f"{LIE}, {REAL}, {CDN}"), REAL, id="two hops and a lie"),
    pytest.param(2, PROXY, forwarded_for(LIE, REAL, CDN), REAL, id="two hops in lines of their own"),
    pytest.param(3, PROXY, forwarded_for(f"{LIE}, {REAL}"), PROXY, id="fewer hops than said"),
    pytest.param(1, PROXY, forwarded(f"for={LIE}, for={REAL}"), REAL, id="one hop, RFC 7239"),
    pytest.param(INSIDE, None, forwarded_for(LIE), None, id="a peer without an address is no proxy"),
    pytest.param(2, None, forwarded_for(LIE), None, id="a Unix socket, fewer hops than said"),
]


@pytest.mark.parametrize(("trusted", "peer", "headers", "expected"), CHAINS)
def test_the_client_is_whom_the_last_trusted_proxy_saw(
    build: Build, trusted: int | Sequence[str] | None, peer: str | None, headers: Pairs, expected: str | None
) -> None:
    assert client_of(trusted)(build(peer, headers)) == expected


forgeries = st.lists(
    st.sampled_from([LIE, PROXY, CDN, REAL, '"', '"for=', ",", ";", "for=", "[", "]", ":", "%", "\\", "_x", "é", " "]),
    max_size=12,
).map("".join)


@given(forgery=forgeries, trusted=st.sampled_from([INSIDE, 1, PROXY]), make=st.sampled_from([asgi, wsgi]))
def test_nothing_that_a_client_writes_changes_its_address(forgery: str, trusted: Any, make: Build) -> None:
    for headers in (forwarded_for(f"{forgery}, {REAL}"), forwarded_for(forgery, REAL)):
        assert client_of(trusted)(make(PROXY, headers)) == REAL
    for headers in (forwarded(f"{forgery}, for={REAL}"), forwarded(forgery, f"for={REAL}")):
        assert client_of(trusted)(make(PROXY, headers)) == REAL


def test_a_client_that_changes_its_forwarded_address_stays_in_one_count(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", identity=ClientAddress(), limits=["5/minute"])])
    lies = [forwarded_for(f"198.51.100.{n}") for n in range(6)]
    assert [call(headers=headers).status for headers in lies] == [200] * 5 + [429]


def test_clients_behind_a_trusted_proxy_are_told_apart(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["5/minute"])], trusted_proxies=INSIDE)
    clients = [forwarded_for(f"198.51.100.{n}") for n in range(6)]
    assert [call(headers=headers, client=PROXY).status for headers in clients] == [200] * 6
    assert call(headers=clients[0], client=PROXY).record.remote_address == "198.51.100.0"


def test_attack_2_a_server_that_rewrote_the_peer_needs_no_header_again(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["5/minute"])])
    record = call(headers=forwarded_for(f"{LIE}, {REAL}"), client=REAL).record
    assert (record.remote_address, record.subject) == (REAL, REAL)


def test_a_long_entry_is_cut(build: Build) -> None:
    found = client_of(1)(build(PROXY, forwarded_for(f"{REAL}%{'z' * 60_000}")))
    assert found is not None
    assert len(found) <= 128
    assert address_key(found, 64) == REAL


# -- which addresses are one client -----------------------------------------------------------------------------------

SAME = [
    pytest.param("1.2.3.4", "1.2.3.4", id="IPv4"),
    pytest.param("::ffff:1.2.3.4", "1.2.3.4", id="mapped"),
    pytest.param("::FFFF:102:304", "1.2.3.4", id="mapped in upper case"),
    pytest.param("0:0:0:0:0:ffff:1.2.3.4", "1.2.3.4", id="mapped in full"),
    pytest.param("64:ff9b::1.2.3.4", "1.2.3.4", id="NAT64"),
    pytest.param("2001:DB8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="IPv6 in upper case"),
    pytest.param("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64", id="the end of a network"),
    pytest.param("2001:0db8:0001:0002::", "2001:db8:1:2::/64", id="IPv6 with zeros"),
    pytest.param("fe80::1%eth0", "fe80::/64", id="zone"),
    pytest.param("fe80::1%25eth0", "fe80::/64", id="zone, encoded"),
    pytest.param("::ffff:1.2.3.4%eth0", "1.2.3.4", id="mapped with a zone"),
    pytest.param("_hidden", "_hidden", id="obfuscated identifier"),
    pytest.param("/run/app.sock", "/run/app.sock", id="no address"),
    pytest.param("x" * 99, "x" * 64, id="no address, and long"),
]


@pytest.mark.parametrize(("text", "key"), SAME)
def test_one_client_has_one_key(text: str, key: str) -> None:
    assert address_key(text, 64) == key


def test_turning_through_a_network_stays_in_one_count(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["5/minute"])])
    assert [call(client=f"2001:db8::{n:x}:1").status for n in range(6)] == [200] * 5 + [429]
    assert call(client="2001:db8:0:1::1").status == 200


def test_both_forms_of_one_address_stay_in_one_count(call: Call[Any]) -> None:
    call.behind(policies=[Policy("p", limits=["2/minute"])])
    assert [call(client=one).status for one in ("1.2.3.4", "::ffff:1.2.3.4", "::FFFF:102:304")] == [200, 200, 429]


@given(one=st.ip_addresses(v=4), other=st.ip_addresses(v=4))
def test_mapped_addresses_share_a_key_only_with_themselves(one: IPv4Address, other: IPv4Address) -> None:
    assert (address_key(f"::ffff:{one}", 64) == address_key(str(other), 64)) == (one == other)


@given(base=st.ip_addresses(v=6), bits=st.integers(0, 2**128 - 1), prefix=st.integers(32, 128))
def test_keys_are_equal_exactly_within_the_prefix(base: IPv6Address, bits: int, prefix: int) -> None:
    other = IPv6Address(int(base) ^ bits)
    if not isinstance(parse_address(str(base)), IPv6Address) or not isinstance(parse_address(str(other)), IPv6Address):
        return
    same = address_key(str(base), prefix) == address_key(str(other).upper(), prefix)
    assert same == (bits >> (128 - prefix) == 0)


@given(text=st.text(max_size=300))
def test_any_text_has_a_bounded_key(text: str) -> None:
    assert len(address_key(text, 64)) <= 64


# -- wrong options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trusted", [0, -1, True, 1.5, [], (), "", "proxy", ["10.0.0.0/33"], [10], b"10.0.0.0/8", {"10.0.0.0/8"}], ids=repr
)
def test_wrong_proxies_are_told_at_once(trusted: Any) -> None:
    with pytest.raises(ConfigurationError, match=r'trusted_proxies .*"10\.0\.0\.0/8"'):
        UsageKeeper(store="memory://", trusted_proxies=trusted)
