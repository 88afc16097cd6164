"""What a client may send, against plain references: no spelling is another subject, and no secret is ever kept."""

import io
import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import cookie_parser
from werkzeug.wrappers import Request as FlaskRequest

from tests.helpers import AsgiCall, Call, Pairs, Received, Reply, WsgiCall, http_scope, wsgi_environ
from usagekeeper import Body, Cookie, Header, Policy, Query, Request, current_usage
from usagekeeper.exchange import AsgiRequest, WsgiRequest
from usagekeeper.identity import strategy
from usagekeeper.proxies import address_key, client_of, peer_of
from usagekeeper.records import SECRET_NAMES, is_secret
from usagekeeper.routes import Route, RouteTable, canonical
from usagekeeper.sources import Found, Rejection


def asgi(target: str = "/", headers: Pairs = (), body: bytes | None = None, **more: Any) -> Request:
    scope = http_scope("GET", target, headers, **more)
    raw = dict(scope["headers"])
    return AsgiRequest("GET", scope["path"], scope, raw, len(raw) != len(scope["headers"]), body)


def wsgi(target: str = "/", headers: Pairs = (), body: bytes | None = None, **more: Any) -> Request:
    return WsgiRequest("GET", "/", wsgi_environ("GET", target, headers, **more), body)


PROTOCOLS: Final[list[Callable[..., Request]]] = [asgi, wsgi]
build = st.sampled_from(PROTOCOLS)


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def found(identity: Any, request: Request) -> Found:
    (source,) = strategy(identity).sources(peer_of)
    return source.read(request)


# -- paths ------------------------------------------------------------------------------------------------------------

HOSTILE = st.text(st.sampled_from("ab./\\;#%: *\n\r\x00\x7fé") | st.characters(), max_size=40)


def reference(path: str) -> str:
    """`canonical`, by way of a list of names."""
    if not path.startswith("/"):
        path = re.sub(r"\A[a-zA-Z][\w+.-]*://[^/]*", "", path, count=1, flags=re.ASCII)
    parts = [part for part in path.split("/") if part]
    while parts:
        last = re.sub(r"[\x00-\x20\x7f]+\Z", "", parts.pop())
        if last:
            parts.append(last)
            break
    return "/" + "/".join(parts)


@given(path=HOSTILE | st.sampled_from(["http://h", "h+.-1://x//y"]).flatmap(lambda head: HOSTILE.map(head.__add__)))
def test_the_canonical_path_is_that_of_a_plain_reference(path: str) -> None:
    assert canonical(path) == reference(path)


PARTS = st.sampled_from(["a", "b", "..", ".", "", "a.b", "é", "a b"])


@given(parts=st.lists(PARTS, max_size=7), tail=st.sampled_from(["", "/", "\n", " ", "//"]))
def test_what_a_file_system_would_read_is_protected_too(parts: list[str], tail: str) -> None:
    path = "/" + "/".join(parts)
    meant = posixpath.normpath("/" + path.lstrip("/"))
    if meant != "/":
        table = RouteTable([Route("*", meant)])
        match = table.match(path + tail)
        assert match.entries == (0,)
        assert match.exact == (path + tail == meant)


SEGMENTS = st.sampled_from(["a", "b", "{x}", ":y", "*"])
PATTERNS = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)) | st.just("*")


def falls_under(pattern: str, path: str) -> bool:
    """The grammar of patterns as one regular expression."""
    if pattern == "*":
        return True
    *front, last = pattern[1:].split("/")
    inner = ["[^/]+" if part[0] in "{:*" else re.escape(part) for part in front]
    end = "(?:/.*)?" if last == "*" else "/[^/]+/?" if last[0] in "{:" else f"/{re.escape(last)}/?"
    prefix = "".join(f"/{part}" for part in inner)
    return re.fullmatch(prefix + end, path, re.DOTALL) is not None or (path == "/" and not prefix and last == "*")


@given(
    patterns=st.lists(PATTERNS, max_size=6, unique=True),
    path=st.lists(st.sampled_from(["b", "c"]), max_size=5).map(lambda parts: "/" + "/".join(parts)),
    root=st.sampled_from(["/a", "/a/c"]),
)
def test_attack_11_under_a_mount_a_pattern_holds_with_and_without_the_prefix(
    patterns: list[str], path: str, root: str
) -> None:
    table = RouteTable([Route("*", _once(pattern)) for pattern in patterns])
    expected = [at for at, one in enumerate(patterns) if falls_under(one, path) or falls_under(one, root + path)]
    assert list(table.match(path, root).entries) == expected


def _once(pattern: str) -> str:
    """The *pattern* with parameters of different names."""
    parts = pattern.split("/")
    return "/".join(f"{{p{at}}}" if part[:1] in ("{", ":") else part for at, part in enumerate(parts))


# -- one subject, one spelling ----------------------------------------------------------------------------------------

COOKIES = st.lists(
    st.sampled_from(["session", "x", "=", ";", " ", "\t", '"', "\\", "\\141", "a", "abc", "\\351", "é"]), max_size=12
).map("".join)


@given(one=COOKIES, other=COOKIES)
@settings(max_examples=200)
def test_what_starlette_reads_as_one_cookie_is_one_subject(one: str, other: str) -> None:
    lines = [f"session={one}", f"session ={other}"]
    read = [cookie_parser(line).get("session") for line in lines]
    subjects = [found(Cookie("session"), asgi(headers=[("cookie", line)])) for line in lines]
    if read[0] == read[1] and all(isinstance(subject, str) for subject in subjects):
        assert subjects[0] == subjects[1]
    for value, subject in zip(read, subjects, strict=True):
        assert (value in (None, "")) or subject is not None


@pytest.mark.parametrize(
    "cookie", ["session=abc", "session= abc", "session =abc", 'session="abc"', 'session="\\141bc"', "\tsession=abc ;"]
)
def test_attack_22_a_session_in_other_quotes_has_no_other_budget(call: Call[Any], cookie: str) -> None:
    call.behind(policies=[Policy("p", identity=Cookie("session"), limits=["1/minute"])])
    assert call.status(headers=[("cookie", "session=abc")]) == 200
    assert call.status(headers=[("cookie", cookie)]) == 429


SPELLED = st.lists(st.tuples(st.sampled_from("aé✓ +&="), st.booleans()), min_size=1, max_size=6)


def sent(spelled: list[tuple[str, bool]], safe: str = "aé✓") -> bytes:
    """Text as a client may send it: each character raw where that is possible and wanted, else encoded."""
    pieces = [char.encode() if raw and char in safe else quote(char, safe="").encode() for char, raw in spelled]
    return b"v=" + b"".join(pieces)


@given(spelled=SPELLED)
def test_a_query_names_for_flask_whom_it_names_for_us(spelled: list[tuple[str, bool]]) -> None:
    environ = wsgi_environ("GET", "/")
    environ["QUERY_STRING"] = sent(spelled).decode("latin-1")
    assert FlaskRequest(environ).args.get("v") == found(Query("v"), WsgiRequest("GET", "/", environ))


@given(spelled=SPELLED)
def test_a_form_names_for_flask_whom_it_names_for_us(spelled: list[tuple[str, bool]]) -> None:
    body = sent(spelled)
    form = [("content-type", "application/x-www-form-urlencoded"), ("content-length", str(len(body)))]
    environ = wsgi_environ("POST", "/", form)
    environ["wsgi.input"] = io.BytesIO(body)
    assert FlaskRequest(environ).form.get("v") == found(Body("v"), WsgiRequest("POST", "/", environ, body))


VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)


@given(make=build, values=st.lists(VALUES, max_size=3), other=VALUES)
def test_attack_24_a_header_is_one_value_or_none(make: Callable[..., Request], values: list[str], other: str) -> None:
    headers = [("x-other", other), *(("x-customer", value) for value in values)]
    subject = found(Header("X-Customer"), make(headers=headers))
    if len(values) > 1 or "," in "".join(values):
        assert isinstance(subject, Rejection)
    elif not "".join(values):
        assert subject is None
    else:
        raw = values[0].encode("latin-1")
        assert subject in (values[0], raw.decode("utf-8", "replace"))


# -- bodies -----------------------------------------------------------------------------------------------------------

NASTY = [
    b'{"v":"a","v":"b"}',
    b'{"v":' * 5000,
    b"[" * 60_000,
    b'{"v":' + b"9" * 60_000 + b"}",
    b'{"v":1e999}',
    b'{"v":NaN}',
    b'{"v":"\\ud800"}',
    b'{"\\ud800":1,"v":"\\udfff\\ud800"}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00",
    b'{"v":true}',
    b"v=%" * 9000,
    b"&" * 60_000,
    b"v=%ED%A0%80",
    b"\x00" * 60_000,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["v", "w", ""]), inner),
    max_leaves=6,
)
BODIES = st.sampled_from(NASTY) | st.binary(max_size=60) | JSON.map(lambda value: json.dumps({"v": value}).encode())


KINDS = st.sampled_from(["application/json", "a/b+json", "application/x-www-form-urlencoded"])


@given(make=build, body=BODIES, kind=KINDS)
def test_no_body_raises_and_no_subject_passes_the_cap(make: Callable[..., Request], body: bytes, kind: str) -> None:
    for path in ("v", "v.v.v", "w"):
        subject = found(Body(path), make(headers=[("content-type", kind)], body=body))
        assert subject is None or isinstance(subject, Rejection) or 0 < len(subject) <= 256
        if isinstance(subject, str):
            subject.encode()


# -- addresses --------------------------------------------------------------------------------------------------------

ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)
INSIDE: Final = ["10.0.0.0/8", "fd00::/8"]


def node(address: IPv4Address | IPv6Address, port: int | None) -> str:
    """An address as RFC 7239 has it."""
    text = f"[{address}]" if address.version == 6 else str(address)
    text = text if port is None else f"{text}:{port}"
    return f'"{text}"' if ":" in text else text


@given(
    make=build,
    chain=st.lists(st.tuples(ADDRESSES, st.none() | st.integers(1, 65535), st.booleans()), min_size=1, max_size=5),
    gap=st.sampled_from([",", ", ", " ,\t"]),
    more=st.sampled_from(["", ";proto=https", ";by=_hidden;host=h"]),
)
def test_attack_1_both_forwarded_headers_name_the_last_address_that_is_no_proxy(
    make: Callable[..., Request], chain: list[tuple[Any, int | None, bool]], gap: str, more: str
) -> None:
    addresses = [IPv4Address("10.0.0.9") if inside else address for address, _, inside in chain]
    trusted = [any(str(one).startswith(head) for head in ("10.", "fd")) or _mapped_inside(one) for one in addresses]
    outside = [address for address, ours in zip(addresses, trusted, strict=True) if not ours]
    expected = outside[-1] if outside else addresses[0]
    older = gap.join(node(one, port).strip('"') for one, (_, port, _) in zip(addresses, chain, strict=True))
    newer = gap.join(f"For={node(one, port)}{more}" for one, (_, port, _) in zip(addresses, chain, strict=True))
    for header in (("x-forwarded-for", older), ("forwarded", newer)):
        assert client_of(INSIDE)(make(headers=[header], client="10.1.2.3")) == str(expected)


def _mapped_inside(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped is not None and mapped.packed[0] == 10


@given(address=st.ip_addresses(v=4), zone=st.sampled_from(["", "%eth0", "%25lo"]), upper=st.booleans())
def test_attack_3_every_form_of_an_ipv4_address_is_one_key(address: IPv4Address, zone: str, upper: bool) -> None:
    number = int(address)
    forms = [f"::ffff:{address}{zone}", f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}", f"64:ff9b::{address}{zone}"]
    forms += [str(IPv6Address(0xFFFF_0000_0000 | number)), IPv6Address(0xFFFF_0000_0000 | number).exploded]
    assert {address_key(form.upper() if upper else form, 64) for form in forms} == {str(address)}


@given(network=st.integers(2**125, 2**126 - 1).map(lambda bits: bits >> 64 << 64), host=st.integers(0, 2**64 - 1))
def test_attack_4_every_form_of_an_ipv6_address_is_the_key_of_its_network(network: int, host: int) -> None:
    address = IPv6Address(network | host)
    forms = [str(address), address.exploded, address.exploded.upper(), f"{address}%eth0"]
    assert {address_key(form, 64) for form in forms} == {str(IPv6Network((network, 64)))}


# -- secrets ----------------------------------------------------------------------------------------------------------

SECRET: Final = "pl4ntedS3cret"
SPELLINGS = st.sampled_from(SECRET_NAMES).flatmap(
    lambda name: st.sampled_from(
        [name, name.upper(), name.replace("-", "_"), f"user[{name}]", f"user.{name}", f"user:{name}", f"a->{name}",
         f"a/{name}", f"{{{name}}}", f"?{name}", f"{name}[]", f" {name} ", "x" * 600 + f"[{name}]"]
    )
)  # fmt: skip


@given(name=SPELLINGS, percent=st.booleans(), data=st.data())
def test_the_name_of_a_secret_is_known_in_any_wrapping(name: str, percent: bool, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    spelled = f"{name[:at]}%{ord(name[at]):02x}{name[at + 1 :]}" if percent else name
    assert is_secret(spelled)


ROUTES: Final = ["/plain", "/token/{token}", "/v/{id}/{api_key}", "/small"]
TARGETS = st.sampled_from(
    ["/plain", f"/token/{SECRET}", f"//token/{SECRET}/", f"/x/../token/{SECRET}", f"/./token/{SECRET}",
     f"/token/{SECRET}%0a", f"/v/1/{SECRET}", f"/v/./1/{SECRET}", "/small"]
)  # fmt: skip


def _secretly(request: Received) -> Reply:
    current_usage().note(password=SECRET, deep=[{"apiKey": SECRET, "x": {"Set-Cookie": [SECRET]}}])
    return Reply(headers=[("content-type", "text/plain"), ("set-cookie", f"s={SECRET}")])


HEADERS = st.lists(
    st.sampled_from(
        [("authorization", f"Bearer {SECRET}"), ("authorization", f"Basic {SECRET}"), ("authorization", SECRET),
         ("cookie", f"session={SECRET}"), ("cookie", f'session= "{SECRET}"; a'), ("x-api-key", SECRET),
         ("x-auth-token", f" {SECRET}"), ("referer", f"https://u:{SECRET}@h/p"), ("referer", f"//h/#{SECRET}"),
         ("referer", f"https://h/?a=1&Token={SECRET}"), ("x-api-key", f"{SECRET},{SECRET}")]
    ),
    max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("kind", [AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def test_attack_34_a_planted_secret_is_in_nothing_that_is_kept_said_or_answered(
    kind: type[Call[Any]], caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    call = kind()
    policies = [
        *(Policy(f"p{at}", routes=[one], limits=["900/minute"]) for at, one in enumerate(ROUTES)),
        Policy("key", identity=Header("X-API-Key"), limits=["900/minute"]),
        Policy("cookie", identity=Cookie("session"), limits=["900/minute"]),
        Policy("query", identity=Query("user[token]"), limits=["900/minute"]),
        Policy("few", routes=["/small"], limits=["1/day"]),
    ]
    call.behind(_secretly, policies=policies, store=f"sqlite:///{tmp_path}/usage.db")
    caplog.set_level(logging.DEBUG)
    answers: list[bytes] = []

    @given(target=TARGETS, headers=HEADERS, names=st.lists(SPELLINGS | st.just("user[token]"), max_size=3))
    @settings(max_examples=60)
    def drive(target: str, headers: Pairs, names: list[str]) -> None:
        query = "&".join(f"{quote(name, safe='[]>')}={SECRET}" for name in names)
        call.status("GET", f"{target}?{query}", headers)
        if call.last.status != 200:
            answers.append(call.last.body + repr(call.last.headers).encode())

    drive()
    records = "".join(map(repr, call.recorded()))
    call.close()
    files = [file for file in tmp_path.iterdir() if SECRET.encode() in file.read_bytes()]
    said = caplog.text + "".join(map(str, answers))
    assert (files, SECRET in records, SECRET in said) == ([], False, False)


def test_the_user_of_an_absolute_target_is_not_recorded() -> None:
    call = AsgiCall()
    call.behind()
    paths = [call("GET", f"http://ann:{SECRET}@h{path}").record.path for path in ("/a", "", "//b/")]
    call.close()
    assert paths == ["/a", "/", "/b"]
