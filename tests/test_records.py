"""Records: what they hold, that they are bounded, and that no secret is ever among it."""

import functools
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus
from uuid import RFC_4122, UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import AsgiCall, Call, Pairs, WsgiCall, http_scope, wsgi_environ
from usagekeeper import Cookie, FirstOf, Header, Policy, Query, Request, Usage, UsageKeeper, UsageRecord
from usagekeeper.engine import Engine
from usagekeeper.exchange import AsgiRequest, WsgiRequest
from usagekeeper.records import (
    REDACTED,
    SECRET_NAMES,
    Serials,
    authorization,
    decode,
    encode,
    encode_bounded,
    grouped,
    is_secret,
    record_id,
    redact,
    redact_query,
    redact_url,
)
from usagekeeper.ticket import Ticket

AT: Final = 1_700_000_000_000_000
CUSTOMER: Final = Header("X-Customer")
FIELDS: Final = UsageRecord.__struct_fields__


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def asgi(method: str, target: str, headers: Pairs) -> Request:
    scope = http_scope(method, target, headers)
    raw = dict(scope["headers"])
    return AsgiRequest(method, scope["path"], scope, raw, len(raw) != len(scope["headers"]))


def wsgi(method: str, target: str, headers: Pairs) -> Request:
    environ = wsgi_environ(method, target, headers)
    return WsgiRequest(method, environ["PATH_INFO"], environ)


PROTOCOLS: Final = [asgi, wsgi]


@functools.lru_cache(maxsize=32)
def rules(identity: Header | FirstOf) -> Engine:
    policy = Policy("p", identity=identity, limits=["9/minute"])
    return UsageKeeper(store="memory://", policies=[policy], headers="none").engine()


def closed(
    request: Request,
    *,
    identity: Header | FirstOf = CUSTOMER,
    notes: Mapping[str, Any] | None = None,
    units: Any = 0,
    error_code: str | None = None,
) -> bytes:
    """The encoded record of one served request."""
    engine = rules(identity)
    plan = engine.find(request.method, request.path)
    assert plan is not None
    ticket = Ticket(plan, request, AT, 0, status=200)
    engine.price(ticket)
    usage = Usage(ticket)
    usage.note(**notes or {})
    usage.charge(units)
    usage.error_code = error_code
    return engine.close(ticket, 1000)


# -- ids --------------------------------------------------------------------------------------------------------------

moments = st.integers(0, 2**47 * 1000)
serials = st.integers(1, 2**26 - 1)
processes = st.integers(0, 2**48 - 1)


@given(at=moments, serial=serials, process=processes)
def test_an_id_is_a_uuid_of_version_7(at: int, serial: int, process: int) -> None:
    identity = UUID(bytes=record_id(at, serial, process))
    assert (identity.version, identity.variant, identity.int >> 80) == (7, RFC_4122, at // 1000)


@given(one=st.tuples(moments, serials), other=st.tuples(moments, serials), process=processes)
def test_ids_sort_by_time_then_by_order(one: tuple[int, int], other: tuple[int, int], process: int) -> None:
    places = [(at // 1000, serial) for at, serial in (one, other)]
    ids = [record_id(*one, process), record_id(*other, process)]
    assert (ids[0] < ids[1], ids[0] == ids[1]) == (places[0] < places[1], places[0] == places[1])


def test_ids_of_one_moment_are_unique_within_a_process() -> None:
    own = Serials()
    assert len({record_id(AT, own.next(), own.process) for _ in range(20_000)}) == 20_000


def test_two_numberings_belong_to_different_processes() -> None:
    assert len({Serials().process for _ in range(100)}) == 100


SHOW = (
    "from usagekeeper.records import *; s = Serials(); [print(record_id(0, s.next(), s.process).hex()) for _ in '123']"
)
FORK = """
import os
from usagekeeper.records import Serials, record_id
numbering = Serials()
numbering.next()
reading, writing = os.pipe()
child = os.fork()
id = record_id(0, numbering.next(), numbering.process).hex()
if not child:
    os.write(writing, id.encode())
    os._exit(0)
os.waitpid(child, 0)
print(id, os.read(reading, 99).decode())
"""


def output(script: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_ids_of_one_moment_are_unique_across_processes() -> None:
    ids = output(SHOW) + output(SHOW) + output(SHOW)
    assert len({*ids}) == 9


def test_a_forked_child_numbers_its_records_anew() -> None:
    parent, child = output(FORK)
    assert parent != child


# -- encoding ---------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
some = st.none() | texts
whole = st.integers(0, 2**53)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
KINDS: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "int": whole,
    "int | None": st.none() | whole,
    "str": texts,
    "str | None": some,
    "bool": st.booleans(),
    "int | Decimal": whole | st.decimals(0, 2**53, places=6),
    "tuple[str, ...]": st.lists(texts, max_size=3).map(tuple),
    "dict[str, Any]": st.dictionaries(texts, plain_data, max_size=4),
}
OWN: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "request_mimetype": st.none() | st.just("application/json"),
    "response_mimetype": st.none() | st.just("text/html"),
    "request_length": st.none() | st.integers(0, 10**18 - 1),
    "response_length": st.none() | st.integers(0, 10**18 - 1),
    "trace_id": st.none(),
}
every_record = st.builds(
    UsageRecord,
    **{name: OWN.get(name, KINDS[str(UsageRecord.__annotations__[name])]) for name in FIELDS},
)
HEADERS: Final = ("host", "referer", "origin", "user_agent", "request_id", "query")


@given(record=every_record)
def test_what_was_encoded_is_decoded(record: UsageRecord) -> None:
    values = msgspec.structs.asdict(record)
    for name in HEADERS:  # as ASGI servers hand them over
        values[name] = values[name].encode() if values[name] is not None else None
    assert decode(encode(grouped(values))) == record


@given(record=every_record)
def test_text_of_wsgi_is_decoded_to_the_same(record: UsageRecord) -> None:
    values = msgspec.structs.asdict(record)
    for name in HEADERS:
        values[name] = values[name].encode().decode("latin-1") if values[name] is not None else None
    assert decode(encode(grouped(values))) == record


@pytest.mark.parametrize("sent", ["Ünï/1.0 日本".encode(), b"\xdcn\xef/1.0", b"plain/1.0"], ids=ascii)
def test_both_protocols_record_the_same_text(sent: bytes) -> None:
    meant = {b"\xdcn\xef/1.0": "Ünï/1.0"}.get(sent) or sent.decode()
    text = sent.decode("latin-1")
    headers = [("user-agent", text), ("origin", text), ("referer", f"http://h/{text}?{text}")]
    for build in PROTOCOLS:
        record = decode(closed(build("GET", f"/x?q={text}", headers)))
        told = (record.user_agent, record.origin, record.referer, record.query)
        assert told == (meant, meant, f"http://h/{meant}?{meant}", f"q={meant}")


@pytest.mark.parametrize(
    ("sent", "length"),
    [
        ("0", 0),
        ("17", 17),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("1" * 5000, None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1_0", None),
        ("٣", None),
        ("²", None),
        ("", None),
        ("x", None),
    ],
    ids=lambda sent: ascii(sent)[:20],
)
def test_a_length_is_digits_or_unknown(sent: str, length: int | None) -> None:
    spelled = sent.encode().decode("latin-1")
    for build in PROTOCOLS:
        assert decode(closed(build("GET", "/x", [("content-length", spelled)]))).request_length == length


TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-brings", TRACE),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01 ", None),
        ("<script>", None),
        ("", None),
    ],
)
def test_a_trace_is_recorded_when_it_is_one(sent: str, trace: str | None) -> None:
    assert decode(closed(asgi("GET", "/x", [("traceparent", sent)]))).trace_id == trace


@pytest.mark.parametrize(
    ("sent", "mimetype"),
    [("Application/JSON; charset=utf-8", "application/json"), (" text/html ", "text/html"), ("", None), (";", None)],
)
def test_a_mimetype_is_recorded_without_parameters(sent: str, mimetype: str | None) -> None:
    assert decode(closed(asgi("GET", "/x", [("content-type", sent)]))).request_mimetype == mimetype


def test_a_record_tells_the_url_that_the_client_wrote() -> None:
    record = decode(closed(asgi("GET", "/x?a=1&token=s3cret", [("host", "example.com")])))
    assert record.url == "http://example.com/x?a=1&token=REDACTED"


# -- hostile requests -------------------------------------------------------------------------------------------------

BOUND: Final = 48 * 1024
KEPT: Final = ("host", "referer", "origin", "user-agent", "content-type", "traceparent", "x-request-id", "x-customer")


@pytest.mark.parametrize("build", PROTOCOLS)
def test_a_record_of_a_huge_request_is_bounded(build: Callable[[str, str, Pairs], Request]) -> None:
    huge = [(name, "é" * 100_000) for name in KEPT]
    encoded = closed(build("A" * 4096, f"/{'é' * 50_000}?{'é=1&' * 50_000}", huge), notes={"a": "x" * 8000})
    record = decode(encoded)
    assert len(encoded) < BOUND
    assert (record.method, len(record.path), len(record.user_agent or "")) == ("_OTHER", 2048, 512)


def test_large_notes_are_dropped_and_said_to_be() -> None:
    record = decode(closed(asgi("GET", "/x", ()), notes={"a": "x" * 100_000, "b": 1}))
    assert record.metadata == {"_dropped": "more than 8 KiB of notes"}


def test_notes_of_eight_kilobytes_are_kept_also_in_a_large_record() -> None:
    notes = {"a": "x" * 8000}
    assert decode(closed(asgi("GET", "/x", [("user-agent", "u" * 9000)]), notes=notes)).metadata == notes


rough = st.text(st.characters(exclude_categories=[]), max_size=60)


@given(path=rough, method=rough, agent=st.text(st.characters(max_codepoint=255)), note=rough, code=rough)
def test_no_text_of_a_request_stops_its_record(path: str, method: str, agent: str, note: str, code: str) -> None:
    request = asgi(method, "/x", [("user-agent", agent), ("host", agent)])
    request.path = f"/{path}"
    record = decode(closed(request, notes={"note": note, "nested": {note: [note]}}, error_code=code))
    assert record.path.encode() == f"/{path}".encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    assert record.method in ("_OTHER", method)


class Fraction(float):
    """As NumPy's numbers are."""


class Count(int):
    """As NumPy's numbers once were."""


class Level(IntEnum):
    HIGH = 3


class Colour(Enum):
    RED = "red"


class Name(str):
    __slots__ = ()


NOTES = [
    (Fraction(0.5), 0.5),
    (Count(7), 7),
    (Level.HIGH, 3),
    (Colour.RED, "Colour.RED"),
    (Name("n"), "n"),
    (True, True),
    (None, None),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
    (2**64, str(2**64)),
    (1 << 20_000, REDACTED),
    (Decimal("1.50"), "1.50"),
    (PurePosixPath("/a/b"), "/a/b"),
    (b"\xff", "b'\\xff'"),
    ((1, (Count(2), [Fraction(3)])), [1, [2, [3.0]]]),
    ({1: Count(2)}, {"1": 2}),
    ("a\ud800b", "a�b"),
    ("\x00", "\x00"),
]


@pytest.mark.parametrize(("noted", "kept"), NOTES, ids=[f"{type(noted).__name__} as {kept!a}" for noted, kept in NOTES])
def test_any_note_is_kept_as_plain_data(noted: Any, kept: Any) -> None:
    assert decode(closed(asgi("GET", "/x", ()), notes={"note": noted})).metadata == {"note": kept}


def test_a_note_that_holds_itself_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert decode(closed(asgi("GET", "/x", ()), notes={"note": endless})).metadata["note"]


@pytest.mark.parametrize("units", [0, 1, 2**53 - 1, Decimal("0.000001"), 1.5, Decimal("1E+3")], ids=repr)
def test_units_are_recorded_exactly(units: Any) -> None:
    assert decode(closed(asgi("GET", "/x", ()), units=units)).units == 1 + Decimal(str(units))


def test_units_beyond_64_bits_are_recorded_exactly() -> None:
    values = dict.fromkeys(FIELDS) | {"units": 2**70, "violated": (), "policies": ()}
    assert decode(encode_bounded(grouped(values))).units == 2**70


# -- secrets ----------------------------------------------------------------------------------------------------------

HEAD, TAIL = "s3cr3tH", "Ts3cr3t"
secrets = st.text("abcXYZ019._~!$'()*@:+-é", max_size=20).map(lambda middle: f"{HEAD}{middle}{TAIL}")


def leaks(encoded: bytes, secret: str) -> bool:
    """Whether an end of *secret* stands in *encoded*, plain or in a form that a client may have sent it in."""
    forms = {HEAD, TAIL, b64encode(f"user:{secret}".encode()).decode(), quote(secret, safe="")}
    return any(form.encode() in encoded for form in forms)


def spellings(name: str) -> set[str]:
    """Ways in which programs write the *name* of a secret."""
    words = name.split("-")
    camel = words[0] + "".join(word.capitalize() for word in words[1:])
    spelled = {name, name.upper(), name.title(), name.replace("-", "_"), camel, "".join(words)}
    return spelled | {f"user[{name}]", f"user.{name}", f"login[0][{name}]"}


NAMES: Final = sorted({spelled for name in SECRET_NAMES for spelled in spellings(name)})
names = st.sampled_from(NAMES)


@given(secret=secrets, name=names, separator=st.sampled_from("&;"), build=st.sampled_from(PROTOCOLS))
def test_no_secret_of_a_query_is_recorded(
    secret: str, name: str, separator: str, build: Callable[[str, str, Pairs], Request]
) -> None:
    for spelled in (name, quote(name, safe=""), quote_plus(f" {name} ")):
        query = f"a=1{separator}{spelled}={quote(secret)}{separator}b=2"
        referer = [("referer", f"https://example.com/p?{query}"), ("host", "h")]
        for request in (build("GET", f"/x?{query}", ()), build("GET", "/x", referer)):
            assert not leaks(closed(request), secret)


@given(secret=secrets, build=st.sampled_from(PROTOCOLS))
def test_no_secret_of_a_referer_is_recorded(secret: str, build: Callable[[str, str, Pairs], Request]) -> None:
    spelled = secret.encode().decode("latin-1")
    for referer in (f"https://user:{spelled}@example.com/p", f"//{spelled}@h", f"https://h/p#access_token={spelled}"):
        assert not leaks(closed(build("GET", "/x", [("referer", referer)])), secret)


SCHEMES: Final = ["Basic", "basic", "Bearer", "Digest", "DPoP", "AWS4-HMAC-SHA256", "Made-Up", "", "Token"]


@given(secret=secrets, scheme=st.sampled_from(SCHEMES), space=st.sampled_from([" ", "  ", "\t", ""]))
def test_no_authorization_is_recorded(secret: str, scheme: str, space: str) -> None:
    spelled = secret.encode().decode("latin-1")
    for credentials in (spelled, b64encode(f"user:{secret}".encode()).decode()):
        headers = [("authorization", f"{scheme}{space}{credentials}")]
        for build in PROTOCOLS:
            assert not leaks(closed(build("GET", "/x", headers)), secret)


SECRET_HEADERS: Final = [name for name in NAMES if name.replace("-", "").replace("_", "").isalnum() and name.islower()]


@given(secret=secrets, name=st.sampled_from(SECRET_HEADERS), build=st.sampled_from(PROTOCOLS))
def test_no_secret_header_is_recorded(secret: str, name: str, build: Callable[[str, str, Pairs], Request]) -> None:
    spelled = secret.encode().decode("latin-1")
    headers = [(name.replace("_", "-"), spelled)]
    assert not leaks(closed(build("GET", "/x", headers), identity=Header(name.replace("_", "-"))), secret)


@given(secret=secrets, name=names, build=st.sampled_from(PROTOCOLS))
def test_no_secret_identity_is_recorded(secret: str, name: str, build: Callable[[str, str, Pairs], Request]) -> None:
    identity = FirstOf(Query(name), Cookie("visitor"))
    target = f"/x?{quote(name, safe='')}={quote(secret)}"
    assert not leaks(closed(build("GET", target, ()), identity=identity), secret)
    cookie = [("cookie", f"visitor={quote(secret)}")]
    assert not leaks(closed(build("GET", "/x", cookie), identity=identity), secret)


@dataclass
class User:
    name: str
    password: str


class Login(NamedTuple):
    name: str
    api_key: str


class Session(msgspec.Struct):
    user: User
    access_token: str


class Form(pydantic.BaseModel):
    name: str
    client_secret: str


def nested(secret: str, name: str) -> list[Any]:
    return [
        {name: secret},
        {"a": [{"b": {name: secret}}]},
        {"a": ({name: [secret, {"x": secret}]},)},
        {name: {"deep": {"deeper": secret}}},
        User("ann", secret),
        [User("ann", secret)],
        Login("ann", secret),
        Session(User("ann", secret), secret),
        {"form": Form(name="ann", client_secret=secret)},
        {"exact": pydantic.SecretStr(secret)},
    ]


@given(secret=secrets, name=names)
def test_o4_no_secret_of_a_note_is_recorded(secret: str, name: str) -> None:
    for noted in nested(secret, name):
        encoded = closed(asgi("GET", "/x", ()), notes={"note": noted})
        assert not leaks(encoded, secret)
    assert not leaks(closed(asgi("GET", "/x", ()), notes={name: secret}), secret)


def test_the_rest_of_an_object_in_a_note_is_kept() -> None:
    noted = [User("ann", "x"), Login("bob", "x"), Form(name="eve", client_secret="x")]
    kept = decode(closed(asgi("GET", "/x", ()), notes={"users": noted})).metadata["users"]
    assert kept == [
        {"name": "ann", "password": REDACTED},
        {"name": "bob", "api_key": REDACTED},
        {"name": "eve", "client_secret": REDACTED},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_secret_is_known_in_every_spelling(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["db_password", "password2", "password_confirmation", "new-password-again", "X-Hub-Signature", "stripe_secret_key",
     "github_token", "my_api_key", "x-goog-signature", "X-Amz-Security-Token", "API key", "secret[]", "%74oken"],
)  # fmt: skip
def test_names_made_of_a_secret_are_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["tokens", "max_tokens", "total_tokens", "keyboard", "monkey", "author", "authored_by", "encoding", "postcode",
     "country_code", "sides", "spin", "design", "page", "q", "customer", "model", "barcode", "", "[]"],
)  # fmt: skip
def test_names_that_only_look_like_a_secret_are_not(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("a=1&b=2", "a=1&b=2"),
        ("token=x", "token=REDACTED"),
        ("a=1&api_key=x&api_key=y", "a=1&api_key=REDACTED&api_key=REDACTED"),
        ("token", "token"),
        ("token=", "token=REDACTED"),
        ("a;b=1;sig=x&c", "a;b=1;sig=REDACTED&c"),
        ("a=;;token=x;&", "a=;;token=REDACTED;&"),
        ("%74oken=x", "%74oken=REDACTED"),
        ("q=token=x", "q=token=x"),
        ("max_tokens=5", "max_tokens=5"),
        ("X-Amz-Credential=a%2Fb&X-Amz-Signature=f", "X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED"),
    ],
)
def test_a_query_keeps_its_shape(query: str, kept: str) -> None:
    assert redact_query(query) == kept


@given(query=st.text("ab=&;%token", max_size=40))
def test_a_query_without_secrets_is_kept_as_it_is(query: str) -> None:
    if "token" not in query and "%" not in query:
        assert redact_query(query) == query


def test_a_query_is_cut_before_it_is_read() -> None:
    assert redact_query("a=" + "x" * 5000) == "a=" + "x" * 2046
    assert redact_query("token=" + "x" * 5000) == "token=REDACTED"


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.com/a?b=1", "https://example.com/a?b=1"),
        ("https://ann:x@example.com/a", "https://example.com/a"),
        ("https://ann:p@ss@example.com/a", "https://example.com/a"),
        ("https://example.com/@ann/b@c", "https://example.com/@ann/b@c"),
        ("https://example.com/a?to=x@y.z", "https://example.com/a?to=x@y.z"),
        ("https://example.com/a#id_token=x", "https://example.com/a"),
        ("https://example.com/a?token=x#f", "https://example.com/a?token=REDACTED"),
        ("/relative", "/relative"),
        ("", ""),
    ],
)
def test_a_url_loses_its_secrets_alone(url: str, kept: str) -> None:
    assert redact_url(url) == kept


@pytest.mark.parametrize(
    ("header", "scheme", "known"),
    [
        (b"Basic dXNlcjpw", "basic", False),
        (b"basic  dXNlcjpw", "basic", False),
        (b"Basic\tdXNlcjpw", "basic", False),
        (b"Bearer abc", "bearer", True),
        (b"BEARER abc", "bearer", True),
        (b"Bearer", None, True),
        (b"abc", None, True),
        (b"Made-Up abc", None, True),
        (b"\xff\x00", None, True),
        (b"", None, True),
    ],
)
def test_an_authorization_is_a_known_scheme_and_a_digest(header: bytes, scheme: str | None, known: bool) -> None:
    told, fingerprint = authorization(header)
    assert (told, fingerprint is not None) == (scheme, known)


def test_equal_credentials_have_equal_digests_in_any_spelling() -> None:
    assert authorization(b"Bearer abc") == authorization(b"bearer  abc ") != authorization(b"Bearer abd")


def test_notes_deeper_than_eight_are_replaced() -> None:
    deep: Any = "bottom"
    for _ in range(12):
        deep = {"a": deep}
    assert "bottom" not in str(redact(deep))
    assert REDACTED in str(redact(deep))


def test_a_note_is_copied() -> None:
    noted = {"list": [1]}
    kept = redact(noted)
    noted["list"].append(2)
    assert kept == {"list": [1]}


def test_no_planted_secret_reaches_the_store(call: Call[Any]) -> None:
    policy = Policy("p", identity=Cookie("session"), limits=["9/minute"])
    call.behind(policies=[policy])
    headers = [
        ("authorization", "Bearer s3cr3tH1"),
        ("cookie", "session=s3cr3tH2"),
        ("x-api-key", "s3cr3tH3"),
        ("referer", "https://u:s3cr3tH4@h/?password=s3cr3tH5#s3cr3tH6"),
        ("proxy-authorization", "Basic s3cr3tH7"),
    ]
    record = call("POST", "/api/x?sig=s3cr3tH8", headers, body=b"password=s3cr3tH9").record
    assert HEAD not in repr(record)
    assert record.subject is not None
    assert record.subject.startswith("digest:")
