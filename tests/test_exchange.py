"""A request as strategies and callables see it: the same whichever protocol carried it."""

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import CLIENT, Pairs, http_scope, wsgi_environ
from usagekeeper import Request
from usagekeeper.exchange import (
    MANY,
    AsgiRequest,
    WsgiRequest,
    as_text,
    asgi_path,
    asgi_place,
    byte_length,
    header_key,
    pair_values,
    wsgi_path,
)


class Build(Protocol):
    def __call__(self, target: str = "/", headers: Pairs = (), **more: Any) -> Request: ...


def asgi(target: str = "/", headers: Pairs = (), **more: Any) -> Request:
    scope = http_scope("POST", target, headers, **more)
    raw = dict(scope["headers"])
    return AsgiRequest("POST", asgi_path(scope), scope, raw, len(raw) != len(scope["headers"]))


def wsgi(target: str = "/", headers: Pairs = (), **more: Any) -> Request:
    environ = wsgi_environ("POST", target, headers, **more)
    return WsgiRequest("POST", wsgi_path(environ), environ)


@pytest.fixture(params=[asgi, wsgi])
def build(request: pytest.FixtureRequest) -> Build:
    made: Build = request.param
    return made


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-Customer", "x-customer", "X-CUSTOMER", " x-Customer "])
def test_a_header_is_found_in_any_case(build: Build, name: str) -> None:
    assert build(headers=[("x-customer", "acme")]).header(name) == "acme"


@pytest.mark.parametrize("name", ["Content-Type", "Content-Length"])
def test_the_two_headers_that_wsgi_names_otherwise_are_found(build: Build, name: str) -> None:
    assert build(headers=[(name, "17")]).header(name) == "17"


def test_several_values_of_a_header_are_joined(build: Build) -> None:
    joined = build(headers=[("x-a", "1"), ("x-b", "-"), ("x-a", "2")]).header("X-A")
    assert joined is not None
    assert [value.strip() for value in joined.split(",")] == ["1", "2"]


def test_an_absent_header_is_none(build: Build) -> None:
    request = build()
    key = header_key("X-Customer")
    assert (request.header("X-Customer"), request.values(key), request.one(key.raw, key.environ)) == (None, [], None)


def test_one_value_out_of_several_is_never_chosen() -> None:
    key = header_key("X-Customer")
    assert asgi(headers=[("x-customer", "a"), ("x-customer", "a")]).one(key.raw, key.environ) is MANY
    assert repr(MANY) == "MANY"


def test_other_repeated_headers_leave_a_single_one_alone() -> None:
    key = header_key("X-Customer")
    assert asgi(headers=[("x-a", "1"), ("x-a", "2"), ("x-customer", "a")]).one(key.raw, key.environ) == "a"


# -- query, cookies ---------------------------------------------------------------------------------------------------


def test_query_values_are_decoded_in_order(build: Build) -> None:
    assert build("/?a=1&b=x&a=%C3%A9+2&a").query_values("a") == ["1", "é 2", ""]


@given(pairs=st.lists(st.tuples(st.sampled_from("aé&=+ "), st.text(st.characters(exclude_categories=["Cs"])))))
def test_every_value_of_an_encoded_query_is_found(pairs: list[tuple[str, str]]) -> None:
    encoded = urlencode(pairs)
    for name in "aé&=+ ":
        assert pair_values(encoded, name) == [value for key, value in pairs if key == name]


def test_the_query_is_given_as_it_was_sent(build: Build) -> None:
    request = build("/x?a=%41&b=;")
    assert (request.query, request.path) == ("a=%41&b=;", "/x")


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("a=1", ["1"]),
        ("b=0; a=1;a=2", ["1", "2"]),
        ('a="1"', ["1"]),
        ("a=1=2", ["1=2"]),
        ("a", []),
        ("A=1", []),
        ("a=", [""]),
        ("", []),
        (";;a=1;", ["1"]),
    ],
)
def test_every_value_of_a_cookie_is_found(build: Build, header: str, values: list[str]) -> None:
    assert build(headers=[("cookie", header)]).cookie_values("a") == values


def test_cookies_of_several_lines_are_found() -> None:
    assert asgi(headers=[("cookie", "a=1"), ("cookie", "a=2")]).cookie_values("a") == ["1", "2"]


# -- where it comes from ----------------------------------------------------------------------------------------------


def test_the_peer_is_what_the_server_says(build: Build) -> None:
    assert (build().peer, build(client=None).peer) == (CLIENT, None)


def test_the_scheme_is_what_the_server_says(build: Build) -> None:
    assert build(headers=[("x-forwarded-proto", "https")]).scheme == "http"


def test_a_body_is_none_where_no_strategy_asked(build: Build) -> None:
    assert build().body is None


@pytest.mark.parametrize(
    ("headers", "announced"),
    [
        pytest.param([], False, id="nothing said"),
        pytest.param([("content-length", "5")], True, id="length"),
        pytest.param([("transfer-encoding", "chunked")], True, id="chunked"),
    ],
)
def test_a_body_is_announced_by_length_or_encoding(build: Build, headers: Pairs, announced: bool) -> None:
    assert build(headers=headers).has_body is announced


def test_a_body_over_http2_needs_no_announcement() -> None:
    assert asgi(http_version="2").has_body


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "path", "below"),
    [
        ("", "/a/b", "/a/b"),
        ("/a", "/a/b", "/b"),
        ("/a", "/a", "/"),
        ("/a", "/a/", "/"),
        ("/a", "/ab", "/ab"),
        ("/a", "/b", "/b"),
        ("/a", "/A/b", "/A/b"),
    ],
)
def test_an_asgi_path_is_read_below_its_mount(root: str, path: str, below: str) -> None:
    assert asgi_path({"root_path": root, "path": path}) == below


@pytest.mark.parametrize(
    ("root", "path", "place"),
    [
        ("/shop", "/shop/x", ("/x", "/shop")),
        ("/shop", "/x", ("/x", "/shop")),
        ("/shop", "/shop/x/shop/y", ("/x/shop/y", "/shop")),
        ("/shop", "/x/shop/y", ("/x/shop/y", "*/shop")),
        ("/shop", "/shopx", ("/shopx", "*/shop")),
        ("/shop/", "/shop/x", ("/shop/x", "*/shop/")),
    ],
)
def test_a_root_elsewhere_than_in_front_has_a_star(root: str, path: str, place: tuple[str, str]) -> None:
    assert asgi_place({"root_path": root, "path": path}) == place


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        pytest.param(b"/a", "/a", id="plain"),
        pytest.param(b"", "/", id="empty"),
        pytest.param("/café".encode(), "/café", id="UTF-8"),
        pytest.param(b"/caf\xe9", "/caf�", id="no UTF-8"),
    ],
)
def test_a_wsgi_path_is_utf8(raw: bytes, path: str) -> None:
    assert wsgi_path({"PATH_INFO": raw.decode("latin-1")}) == path


@given(path=st.text())
def test_no_wsgi_path_raises(path: str) -> None:
    assert wsgi_path({"PATH_INFO": path})


# -- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_the_size_of_a_chunk_is_its_bytes(kind: Callable[[bytes], object]) -> None:
    assert byte_length(kind(b"12345")) == 5


def test_headers_are_latin1_text_for_wsgi() -> None:
    assert as_text([(b"x-a", b"caf\xe9")]) == [("x-a", "café")]


def test_both_protocols_observe_the_same_request() -> None:
    headers = [("host", "h"), ("user-agent", "ua"), ("referer", "r"), ("content-length", "3"), ("origin", "o")]

    def told(request: Request) -> list[str | None]:
        *first, kept = request.observed()
        flat: list[str | bytes | None] = [*first, *kept]
        return [part.decode() if isinstance(part, bytes) else part for part in flat]

    assert told(asgi("/x?q=1", headers)) == told(wsgi("/x?q=1", headers))
