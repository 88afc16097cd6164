"""What a client sends makes nothing grow without bound and no work more than linear, through both drivers."""

import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import inf, nan
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

import usagekeeper
from tests.helpers import AsgiCall, Call, Message, Pairs, WsgiCall, hello, http_scope
from usagekeeper import (
    Body,
    ClientAddress,
    Cookie,
    FirstOf,
    Header,
    Host,
    PathParam,
    Policy,
    Query,
    Rate,
    UsageError,
    UsageKeeper,
    current_usage,
)
from usagekeeper.config import read_settings
from usagekeeper.counters.memory import MemoryCounters

SOURCES: Final = Path(usagekeeper.__file__).parent


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    one.clock.now = 1_700_000_000.0
    if isinstance(one, WsgiCall):
        one.validated = False
    yield one
    one.close()


EVERYTHING: Final[dict[str, Any]] = {
    "trusted_proxies": ["203.0.113.0/24"],
    "whitelist": ["GET /health", "/static/*"],
    "routes": ["/*"],
    "policies": [
        Policy("header", identity=FirstOf(Header("X-Customer"), Cookie("session"), Query("q")), limits=["9/second"]),
        Policy("host", identity=Host(), limits=["9000/second"], mode="soft"),
        Policy("part", routes=["/*/a/:b/{c}/*", "/{a}/{b}"], identity=PathParam("b"), limits=["9000/second"]),
        Policy("token", routes=["/a/{token}/*"], limits=["9000/second"], mode="shadow"),
        Policy("address", identity=ClientAddress(), limits=["90000/second"]),
    ],
}

# -- caches -----------------------------------------------------------------------------------------------------------


def cached() -> dict[str, int | None]:
    """Every function in the package that remembers answers, and how many; None where that has no bound."""
    found: dict[str, int | None] = {}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", ()):
                text = ast.unparse(call)
                if "lru_cache" in text or text.rpartition(".")[2] == "cache":
                    sizes = [word.value for word in getattr(call, "keywords", ()) if word.arg == "maxsize"]
                    size = sizes[0].value if sizes and isinstance(sizes[0], ast.Constant) else None
                    found[f"{path.stem}.{node.name}"] = size if isinstance(size, int) else None  # type: ignore[attr-defined]
    return found


def test_every_function_that_remembers_has_a_bound() -> None:
    sizes = cached()
    assert {"proxies._address_key", "records._is_secret", "decisions._rendered"} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size is None or size > 4096} == {}


def holdings(call: Call[Any]) -> dict[str, int]:
    """How much the front remembers of its clients, by name."""
    engine = call.app.engine
    proxies = importlib.import_module("usagekeeper.proxies")
    table = engine._table
    counters: Any = call.keeper.counters
    plans = [plan for leaf in engine._leaves.values() for plan in leaf.values() if plan is not None]
    return {
        "paths": len(engine._recent) + len(engine._older),
        "combinations of patterns": len(engine._leaves),
        "methods of one combination": max(map(len, engine._leaves.values())),
        "answers": len(table._answers) + len(table._known),
        "forms": max(len(plan._forms) for plan in plans),
        "addresses": proxies._address_key.cache_info().currsize,
        "subjects": sum(sum(map(len, one.shards)) for one in counters._tables.values()),
    }


BOUNDS: Final = {
    "paths": 2 * 100,
    "combinations of patterns": 64,
    "methods of one combination": 16,
    "answers": 64,
    "forms": 16,
    "addresses": 4096,
    "subjects": 100 + 5,  # new ones of one operation come together
}

Sent = tuple[str, str, Pairs]
FLOODS: Final[dict[str, Callable[[int], Sent]]] = {
    "paths": lambda n: ("GET", f"/{n:x}", ()),
    "deep paths": lambda n: ("GET", f"/{n % 7}/a/{n}/x/{n}", ()),
    "long paths": lambda n: ("GET", f"/{n}" + "x" * 300, ()),
    "odd paths": lambda n: ("GET", f"//./{n}/..;/%0a", ()),
    "methods": lambda n: (f"M{n}", "/x", ()),
    "hosts": lambda n: ("GET", "/x", [("host", f"h{n}.example")]),
    "user agents": lambda n: ("GET", "/x", [("user-agent", f"agent/{n}")]),
    "forwarded": lambda n: ("GET", "/x", [("x-forwarded-for", f"{n >> 8 & 255}.{n & 255}.7.7, {n}")]),
    "forwarded, RFC 7239": lambda n: ("GET", "/x", [("forwarded", f'for="[2001:db8:{n:x}::1]"')]),
    "customers": lambda n: ("GET", "/x", [("x-customer", f"customer {n}")]),
    "cookies": lambda n: ("GET", "/x", [("cookie", f"session={n}; n{n}={n}")]),
    "queries": lambda n: ("GET", f"/x?q={n}&n{n}[a]={n}", ()),
}


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("flood", FLOODS)
def test_attack_20_a_flood_of_what_is_always_new_is_remembered_up_to_a_bound(
    call: Call[Any], flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usagekeeper.engine._REMEMBERED", 100)
    call.behind(**EVERYTHING, counters=MemoryCounters(max_subjects=100))
    for n in range(600):
        call.status(*FLOODS[flood](n))
    assert {what: size for what, size in holdings(call).items() if size > BOUNDS[what]} == {}


def test_an_address_of_any_length_is_remembered_by_its_beginning() -> None:
    proxies = importlib.import_module("usagekeeper.proxies")
    assert proxies.address_key("1.2.3.4%" + "x" * 60_000, 64) == "1.2.3.4"
    before = proxies._address_key.cache_info().misses
    proxies.address_key("a" * 128 + "b" * 60_000, 64)
    proxies.address_key("a" * 128 + "c" * 60_000, 64)
    assert proxies._address_key.cache_info().misses <= before + 1


def test_attack_18_a_body_in_tiny_chunks_is_kept_as_few() -> None:
    """CVE-2019-9518: frames that hold nothing, without an end."""
    call = AsgiCall()
    given = [0]
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not got or got[-1].get("more_body"):
            got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        given[0] += 1
        return {"type": "http.request", "body": b" " * (given[0] % 2), "more_body": given[0] < 60_000}

    call.around(app, policies=[Policy("p", identity=Body("v"), limits=["9/minute"])])
    headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    call.run(call.exchange(http_scope("POST", "/", headers), receive))
    assert len(got) <= 257
    assert b"".join(message["body"] for message in got) == b" " * 30_000
    call.close()


# -- work -------------------------------------------------------------------------------------------------------------


def steps(work: Callable[[], object]) -> int:
    """Calls and lines that the package executes, and what C functions it calls."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(f"{SOURCES}{os.sep}"):
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


HUGE: Final[dict[str, Callable[[int], Sent]]] = {
    "path": lambda n: ("GET", "/" + "a" * 10 * n, ()),
    "segments": lambda n: ("GET", "/a" * n, ()),
    "semicolons": lambda n: ("GET", "/a" + ";" * n, ()),
    "encoded percents": lambda n: ("GET", "/" + "%25" * n, ()),
    "dot segments": lambda n: ("GET", "/a" + "/.." * n, ()),
    "slashes": lambda n: ("GET", "/" * n, ()),
    "header": lambda n: ("GET", "/a", [("x-customer", "c" * 7 * n)]),
    "headers": lambda n: ("GET", "/a", [(f"x-{at}", "v") for at in range(n // 5)]),
    "equal headers": lambda n: ("GET", "/a", [("x-customer", "v")] * (n // 5)),
    "forwarded": lambda n: ("GET", "/a", [("x-forwarded-for", "203.0.113.1," * n)]),
    "forwarded, RFC 7239": lambda n: ("GET", "/a", [("forwarded", "by=;" * n + ",for=203.0.113.1" * n)]),
    "cookies": lambda n: ("GET", "/a", [("cookie", "session=a;" * n)]),
    "quoted cookie": lambda n: ("GET", "/a", [("cookie", 'session="' + '\\"' * n + '"')]),
    "query": lambda n: ("GET", "/a?" + "q=1&" * n, ()),
    "nested query": lambda n: ("GET", "/a?" + "[" * n + "q" + "]" * n + "=1", ()),
    "referer": lambda n: ("GET", "/a", [("referer", "//@" * n)]),
    "referer without end": lambda n: ("GET", "/a", [("referer", "//" + "a" * n + "?" + ";&" * n)]),
    "authorization": lambda n: ("GET", "/a", [("authorization", " " * n + "Bearer" + " \t" * n)]),
    "host": lambda n: ("GET", "/a", [("host", "[:" * n)]),
    "traceparent": lambda n: ("GET", "/a", [("traceparent", "00-" * n)]),
}


@pytest.mark.parametrize("huge", HUGE)
def test_attack_16_twice_as_much_is_at_most_twice_the_work(call: Call[Any], huge: str) -> None:
    call.behind(**EVERYTHING)
    work = []
    for size in (1000, 2000):
        method, target, headers = HUGE[huge](size)
        call.status(method, target, headers)
        call.clock.advance(10)
        work.append(steps(lambda: call.status(method, target, headers)))  # noqa: B023
        assert call.last.status in (200, 400, 429)
    assert work[1] <= 2.1 * work[0] + 600  # a large record is encoded a second time


# -- amounts ----------------------------------------------------------------------------------------------------------

HUGEST: Final = 10**5000
"""Python refuses to write it out, and so refused to write the sentence about it."""
WRONG: Final = [-1, -HUGEST, HUGEST, 2**53, nan, inf, -inf, 1e308, True, "1", "-1", b"1", 1j, [1],
                Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity"), Decimal("1E+308"), Decimal(-1)]  # fmt: skip

DOORS: Final[dict[str, Callable[[Any], object]]] = {
    "cost of a policy": lambda amount: Policy("p", cost=amount),
    "cost of a rate": lambda amount: Rate(1, "minute", cost=amount),
    "count of a rate": lambda amount: Rate(amount, "minute"),
    "window of a rate": lambda amount: Rate(1, amount),
    "limit of a policy": lambda amount: Policy("p", limits=[amount]).rates(),
    "charge": lambda amount: current_usage().charge(amount),
    "rate_limits": lambda amount: UsageKeeper(store="memory://", rate_limits={"/": {"limit": amount, "window": "1h"}}),
    "window of rate_limits": lambda amount: UsageKeeper(
        store="memory://", rate_limits={"/": {"limit": 1, "window": amount}}
    ),
    "retention": lambda amount: UsageKeeper(store="memory://", retention=amount),
    "prefix": lambda amount: UsageKeeper(store="memory://", identity=ClientAddress(prefix=amount)),
}


def named(amount: Any) -> str:
    return f"{amount.bit_length()} bits" if isinstance(amount, int) else ascii(amount)[:24]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("amount", WRONG, ids=named)
def test_attack_30_no_wrong_amount_enters_at_any_door(door: str, amount: Any) -> None:
    with pytest.raises(UsageError) as caught:
        DOORS[door](amount)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("wrong", WRONG[:5], ids=["negative", "very negative", "huge", "2^53", "nan"])
def test_attack_30_a_callable_that_returns_a_wrong_cost_charges_nothing(call: Call[Any], wrong: Any) -> None:
    answers = iter([wrong, 1])
    policy = Policy("p", cost=lambda request: next(answers), limits=["2/minute"])
    call.behind(hello, policies=[policy])
    with pytest.raises(UsageError, match="whole number of units"):
        call()
    assert call().status == 200
    assert call.left(policy) == [1]


@pytest.mark.parametrize("option", ["ENABLED", "RETENTION"])
@pytest.mark.parametrize("written", ["-1", "nan", "inf", "1e308", "9" * 5000, "True days", "\x00"])
def test_attack_30_no_wrong_number_enters_by_the_environment(option: str, written: str) -> None:
    with pytest.raises(UsageError):
        read_settings({}, {f"USAGEKEEPER_{option}": written})
