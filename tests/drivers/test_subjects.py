"""Who is asking, as both protocols tell it; and that a missing identity never means no limit."""

import json
from typing import Any

import pytest

from tests.helpers import CLIENT, AsgiCall, Call, Pairs, WsgiCall
from usagekeeper import Body, ClientAddress, Cookie, Everyone, FirstOf, Header, Host, PathParam, Policy, Query, Request

CUSTOMER = Header("X-Customer")


def limited(identity: Any, **more: Any) -> Policy:
    return Policy("p", identity=identity, limits=["1/minute"], **more)


# -- every place ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "target", "headers", "subject"),
    [
        pytest.param(CUSTOMER, "/api/x", {"x-customer": "anne"}, "anne", id="header"),
        pytest.param(CUSTOMER, "/api/x", {"X-CUSTOMER": " anne ".strip()}, "anne", id="header in capitals"),
        pytest.param(Query("user"), "/api/x?a=1&user=anne%20b", {}, "anne b", id="query"),
        pytest.param(PathParam("id"), "/api/an%20ne", {}, "an ne", id="path parameter"),
        pytest.param(Host(), "/api/x", {"Host": "Shop.Example.ORG.:8080"}, "shop.example.org", id="host"),
        pytest.param(FirstOf(CUSTOMER, Query("user")), "/api/x?user=anne", {}, "anne", id="the second of two"),
        pytest.param(lambda request: "anne", "/api/x", {}, "anne", id="callable"),
        pytest.param(
            {"identityFieldName": "userId", "identityFieldLocation": "query"}, "/api/x?userId=7", {}, "7", id="declared"
        ),
    ],
)
def test_a_subject_is_found(call: Call[Any], identity: Any, target: str, headers: dict[str, str], subject: str) -> None:
    call.behind(policies=[limited(identity, routes=["/api/{id}"])])
    answers = [call("GET", target, headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    record = answers[0].record
    assert (record.subject, record.subject_kind) == (subject, "subject")


async def nobody(request: Request) -> str | None:
    return None


def test_a_path_parameter_is_found_beside_an_asynchronous_strategy(call: Call[Any]) -> None:
    call.behind(policies=[limited(FirstOf(PathParam("id"), nobody), routes=["/api/{id}"])])
    assert call("GET", "/api/anne").record.subject == "anne"


def test_the_text_of_a_header_is_the_same_in_both_protocols(call: Call[Any]) -> None:
    call.behind(policies=[limited(CUSTOMER)])
    assert call(headers={"X-Customer": "müller".encode().decode("latin-1")}).record.subject == "müller"
    assert call(headers={"X-Customer": "m\xfcller"}).record.subject == "m\xfcller"


def test_a_path_parameter_is_the_same_however_the_path_is_written(call: Call[Any]) -> None:
    call.behind(policies=[limited(PathParam("id"), routes=["/api/{id}"])])
    asked = ["/api/anne", "//api//anne", "/api/anne/", "/api/%61nne", "/api/anne%0a"]
    assert [call("GET", target).status for target in asked] == [200, 429, 429, 429, 429]


def test_everyone_is_one_subject_that_no_client_can_name(call: Call[Any]) -> None:
    call.behind(policies=[Policy("all", identity=FirstOf(CUSTOMER, Everyone()), limits=["1/minute"])])
    asked = [{}, {}, {"X-Customer": ""}, {"X-Customer": "anne"}]
    assert [call(headers=headers).status for headers in asked] == [200, 429, 429, 200]


def test_an_async_callable_names_the_subject(call: Call[Any]) -> None:
    async def ask(request: Any) -> str | None:
        return request.header("X-Who")  # type: ignore[no-any-return]

    call.behind(policies=[limited(ask)])
    asked = [{"X-Who": "anne"}, {"X-Who": "anne"}, {"X-Who": "bob"}, {}, {}]
    assert [call(headers=headers).status for headers in asked] == [200, 429, 200, 200, 429]
    assert [record.subject for record in call.recorded()] == ["anne", "anne", "bob", CLIENT, CLIENT]


@pytest.mark.parametrize("value", [7, b"anne", ["anne"], object(), True])
def test_a_callable_that_names_nonsense_lets_nobody_through(call: Call[Any], value: Any) -> None:
    call.behind(policies=[limited(lambda request: value)])
    with pytest.raises(TypeError, match="returns a text or None"):
        call()
    assert (call.last.status, call.last.records[0].status) == (0, 500)


# -- missing ----------------------------------------------------------------------------------------------------------

MISSING: list[Any] = [
    pytest.param(CUSTOMER, {}, id="no header"),
    pytest.param(CUSTOMER, {"X-Customer": ""}, id="empty header"),
    pytest.param(Query("user"), {}, id="no parameter"),
    pytest.param(Cookie("session"), {"Cookie": "sessions=1; Session=2; xsession=3"}, id="no cookie of that name"),
    pytest.param(Cookie("session"), {"Cookie": "session="}, id="empty cookie"),
    pytest.param(PathParam("nothing"), {}, id="no such path parameter"),
    pytest.param(Host(), {"Host": ""}, id="no host"),
    pytest.param(Body("user"), {}, id="no body"),
    pytest.param(lambda request: None, {}, id="callable that does not know"),
    pytest.param(FirstOf(CUSTOMER, Query("user")), {}, id="none of two"),
]


@pytest.mark.parametrize(("identity", "headers"), MISSING)
def test_without_an_identity_the_address_is_limited(call: Call[Any], identity: Any, headers: dict[str, str]) -> None:
    call.behind(policies=[limited(identity)])
    assert call.statuses(2, headers=headers) == [200, 429]
    assert call(headers=headers, client="198.51.100.7").status == 200
    record = call.recorded()[0]
    assert (record.subject, record.subject_kind) == (CLIENT, "address")


@pytest.mark.parametrize(("identity", "headers"), MISSING)
def test_without_an_identity_a_strict_policy_answers_401(
    call: Call[Any], identity: Any, headers: dict[str, str]
) -> None:
    call.behind(policies=[limited(identity, on_missing_identity="reject")])
    answer = call(headers=headers)
    assert answer.status == 401
    assert answer.one("www-authenticate")
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "This request does not say who it is from.",
        "reason": "missing-identity",
    }
    assert (answer.record.outcome, answer.record.reason, answer.record.units) == ("refused", "missing-identity", 0)


@pytest.mark.parametrize(("identity", "headers"), MISSING)
def test_without_an_identity_a_policy_may_be_told_to_let_through(
    call: Call[Any], identity: Any, headers: dict[str, str]
) -> None:
    call.behind(policies=[limited(identity, on_missing_identity="allow"), Policy("rest", limits=["2/minute"])])
    assert call.statuses(3, headers=headers) == [200, 200, 429]


def test_clients_of_unknown_address_share_one_count(call: Call[Any]) -> None:
    call.behind(policies=[limited(CUSTOMER)])
    assert [call(client=None).status for _ in range(2)] == [200, 429]


def test_a_rejection_of_one_policy_charges_none_of_the_others(call: Call[Any]) -> None:
    wide = Policy("wide", limits=["9/minute"])
    call.behind(policies=[wide, limited(CUSTOMER, on_missing_identity="reject")])
    assert call.statuses(3) == [401, 401, 401]
    assert call.left(wide) == [9]


def test_a_shadow_policy_never_rejects(call: Call[Any]) -> None:
    call.behind(policies=[limited(CUSTOMER, on_missing_identity="reject", mode="shadow")])
    assert call.statuses(2) == [200, 200]


# -- several ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "target", "headers"),
    [
        pytest.param(CUSTOMER, "/", [("X-Customer", "a"), ("X-Customer", "b")], id="header twice"),
        pytest.param(CUSTOMER, "/", [("X-Customer", "a"), ("x-customer", "a")], id="the same header twice"),
        pytest.param(CUSTOMER, "/", [("X-Customer", "a"), ("X-Customer", "")], id="header and an empty one"),
        pytest.param(CUSTOMER, "/", [("X-Customer", "a,b")], id="joined with a comma"),
        pytest.param(CUSTOMER, "/", [("X-Customer", ",")], id="a comma alone"),
        pytest.param(Query("user"), "/?user=a&user=b", [], id="parameter twice"),
        pytest.param(Query("user"), "/?user=a&%75ser=b", [], id="parameter twice, once escaped"),
        pytest.param(Query("user"), "/?user=&user=b", [], id="an empty parameter first"),
        pytest.param(Cookie("s"), "/", [("Cookie", "s=a; s=b")], id="cookie twice"),
        pytest.param(FirstOf(CUSTOMER, Query("user")), "/?user=a", [("X-Customer", "a,b")], id="the first of two"),
    ],
)
def test_attack_24_an_identity_that_is_given_twice_is_refused(
    call: Call[Any], identity: Any, target: str, headers: Pairs
) -> None:
    call.behind(policies=[limited(identity)])
    answer = call("GET", target, headers)
    assert (answer.status, answer.record.reason) == (400, "ambiguous-identity")
    assert answer.one("content-type") == "application/problem+json"
    assert (answer.record.subject, answer.record.outcome) == (None, "refused")


def test_a_value_that_is_too_long_is_refused(call: Call[Any]) -> None:
    call.behind(policies=[limited(CUSTOMER)])
    assert call(headers={"X-Customer": "x" * 256}).status == 200
    answer = call(headers={"X-Customer": "x" * 257})
    assert (answer.status, answer.record.reason) == (400, "invalid-identity")


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_ipv6_client_is_its_network(call: Call[Any]) -> None:
    call.behind(policies=[limited(ClientAddress())])
    clients = ["2001:db8::1", "2001:db8::ffff:1", "2001:DB8:0:0:dead::2", "2001:db8:0:1::1"]
    assert [call(client=client).status for client in clients] == [200, 429, 429, 200]


def test_the_network_of_an_ipv6_client_may_be_smaller(call: Call[Any]) -> None:
    call.behind(policies=[limited(ClientAddress(prefix=128))])
    assert [call(client=client).status for client in ("2001:db8::1", "2001:db8::2", "2001:db8::1")] == [200, 200, 429]


@pytest.mark.parametrize("form", ["::ffff:192.0.2.1", "::FFFF:c000:201", "64:ff9b::192.0.2.1", "::ffff:192.0.2.1%eth0"])
def test_a_mapped_ipv4_client_is_its_ipv4_address(call: Call[Any], form: str) -> None:
    call.behind(policies=[limited(ClientAddress())])
    assert [call(client=client).status for client in ("192.0.2.1", form, "192.0.2.2")] == [200, 429, 200]


PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        pytest.param(None, "192.0.2.1", PROXY, id="nobody is trusted"),
        pytest.param(1, "192.0.2.1", "192.0.2.1", id="one proxy"),
        pytest.param(1, "6.6.6.6, 192.0.2.1", "192.0.2.1", id="one proxy, the client lies"),
        pytest.param(2, "192.0.2.1, 10.0.0.2", "192.0.2.1", id="two proxies"),
        pytest.param(2, "192.0.2.1", PROXY, id="fewer than there should be"),
        pytest.param(["10.0.0.0/8"], "6.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1", id="networks"),
        pytest.param(["10.0.0.0/8"], "6.6.6.6, nonsense, 10.0.0.2", "10.0.0.2", id="no address"),
        pytest.param(["172.16.0.0/12"], "192.0.2.1", PROXY, id="another network"),
        pytest.param(["10.0.0.0/8"], "[2001:db8::1]:443", "2001:db8::/64", id="IPv6 with a port"),
        pytest.param(["10.0.0.0/8"], "192.0.2.1:51000", "192.0.2.1", id="IPv4 with a port"),
        pytest.param(["10.0.0.0/8"], None, PROXY, id="no header"),
    ],
)
def test_forwarded_addresses_count_as_far_as_proxies_are_trusted(
    call: Call[Any], trusted: Any, forwarded: str | None, client: str
) -> None:
    call.behind(policies=[limited(ClientAddress())], trusted_proxies=trusted)
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert call(headers=headers, client=PROXY).record.subject == client


def test_repeated_forwarded_headers_are_one_chain(call: Call[Any]) -> None:
    call.behind(policies=[limited(ClientAddress())], trusted_proxies=["10.0.0.0/8"])
    headers = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "10.0.0.2")]
    assert call(headers=headers, client=PROXY).record.subject == "192.0.2.1"


def test_the_standard_header_is_read_where_the_older_one_is_absent(call: Call[Any]) -> None:
    call.behind(policies=[limited(ClientAddress())], trusted_proxies=["10.0.0.0/8"])
    headers = {"Forwarded": 'for=6.6.6.6;by=x, For="[2001:db8::7]:80";proto=https, for=10.0.0.2'}
    assert call(headers=headers, client=PROXY).record.subject == "2001:db8::/64"


# -- the protocols' own -----------------------------------------------------------------------------------------------


def test_a_unix_socket_has_no_address_in_asgi(asgi: AsgiCall) -> None:
    asgi.behind(policies=[limited(ClientAddress())])
    assert [asgi(client=None).record.subject for _ in range(2)] == ["unknown", "unknown"]


def test_a_unix_socket_has_no_address_in_wsgi(wsgi: WsgiCall) -> None:
    wsgi.behind(policies=[limited(ClientAddress())])
    assert [wsgi(client="").record.subject for _ in range(2)] == ["unknown", "unknown"]
