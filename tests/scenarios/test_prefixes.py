"""Servers that serve an application below a prefix: limits and labels hold, by patterns with it and without it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.scenarios.conftest import end, folder
from tests.scenarios.servers import Server, daphne, granian, gunicorn, hypercorn, uvicorn, waitress

RULES = """
from usagekeeper import Policy, Rate

def ran(request_id: str | None) -> None:
    with open("ran", "a") as file:
        print(request_id, file=file)

def limit(name: str) -> list[Rate]:
    return [Rate(1_000_000, "300 days", algorithm="fixed", name=name)]

RULES = {
    "whitelist": ["/health", "/health/*", "/shop/health/*"],
    "policies": [
        Policy("bare", routes=["/api/x"], limits=limit("bare")),
        Policy("prefixed", routes=["/shop/api/x"], limits=limit("prefixed")),
        Policy("below", routes=["GET /api/{name}"], limits=limit("below")),
        Policy("all", routes=["/shop/*"], limits=limit("all")),
    ],
}
"""
FASTAPI = (
    RULES
    + """
from fastapi import FastAPI, Request
from usagekeeper.asgi import UsageMiddleware

app = FastAPI(OPTIONS)
app.add_middleware(UsageMiddleware, **RULES)

@app.get("/api/x")
async def x(request: Request) -> None:
    ran(request.headers.get("x-request-id"))
"""
)
FLASK = (
    RULES
    + """
from flask import Flask, request
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
UsageMiddleware(app, **RULES)

@app.get("/api/x")
def x() -> str:
    ran(request.headers.get("x-request-id"))
    return ""
"""
)
PLAIN = FASTAPI.replace("OPTIONS", "")


class How(NamedTuple):
    """How an application comes to be below /shop, and what asks for it there."""

    source: str
    arguments: Callable[[int], Sequence[str]]
    target: str = "/shop/api/x"
    headers: dict[str, str] = {}  # noqa: RUF012  never changed


SERVERS = {
    "uvicorn --root-path": How(PLAIN, uvicorn("--root-path", "/shop"), "/api/x"),
    "hypercorn --root-path": How(PLAIN, hypercorn("--root-path", "/shop")),
    "daphne --root-path": How(PLAIN, daphne("--root-path", "/shop")),
    "granian --url-path-prefix": How(PLAIN, granian("asgi", "--url-path-prefix", "/shop")),
    "FastAPI(root_path=)": How(FASTAPI.replace("OPTIONS", 'root_path="/shop"'), uvicorn()),
    "FastAPI(root_path=), prefix cut off": How(FASTAPI.replace("OPTIONS", 'root_path="/shop"'), uvicorn(), "/api/x"),
    "gunicorn, SCRIPT_NAME of the environment": How(FLASK, gunicorn("--env", "SCRIPT_NAME=/shop")),
    "gunicorn, SCRIPT_NAME of a header": How(FLASK, gunicorn(), headers={"SCRIPT_NAME": "/shop"}),
    "granian wsgi --url-path-prefix": How(FLASK, granian("wsgi", "--url-path-prefix", "/shop")),
    "waitress --url-prefix": How(FLASK, waitress("--url-prefix", "/shop")),
}
FORMS = [
    "{}", "/{}", "/shop{}", "/shop/shop{}", "{}/", "{}//", "{}%0a", "{}%00", "{}%20", "{};v", "{}?a=1", "{}#health",
    "/shop/health/..{}", "/shop/health%2f..{}", "/health/..{}", "/./{}", "/x/..{}", "/%2e%2e{}", "http://evil.example{}",
    "/shop/../shop{}", "/shop//{}", "/shop/.{}", "/SHOP{}", "/shop%0a{}", "/shop;v{}", "/shop%2f{}", "/%73hop{}",
]  # fmt: skip
TARGETS = [form.format(path) for form in FORMS for path in ("/api/x", "/shop/api/x", "/shop%2fapi/x", "/api%2fx")]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """All of them at once, because they take their time to start."""
    started = {name: Server(folder(tmp_path, f"s{at}"), *SERVERS[name][:2]) for at, name in enumerate(SERVERS)}
    yield started
    end(started.values())


def test_attack_11_live_no_request_below_a_prefix_is_free(
    servers: dict[str, Server], subtests: pytest.Subtests
) -> None:
    """CVE-2026-6556."""
    for name, server in servers.items():
        with subtests.test(name):
            check(server.ready(), SERVERS[name])


def check(server: Server, how: How) -> None:
    """Ask for everything; each run of the handler was charged by every pattern, and has its label."""
    numbers = count()
    sent: dict[str, str] = {}

    def ask(target: str) -> int:
        sent[f"r{next(numbers)}"] = target
        try:
            return server("GET", target, {**how.headers, "X-Request-Id": f"r{len(sent) - 1}"}).status
        except AssertionError:  # hung up on
            return 0

    assert ask(how.target) == 200
    for target in TARGETS:
        ask(target)
    assert ask(how.target) == 200
    ran = (server.folder / "ran").read_text().split()
    assert {"r0", f"r{len(sent) - 1}"} <= {*ran}
    server.until(lambda: {*ran} <= {record.request_id for record in server.records()})
    told = {record.request_id: (record.route, sorted(record.policies)) for record in server.records()}
    right = ("/api/x", ["all", "bare", "below", "prefixed"])
    assert {sent[one]: told.get(one) for one in ran if told.get(one) != right} == {}
