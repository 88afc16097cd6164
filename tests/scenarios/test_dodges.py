"""Every run of a limited handler is paid for, whatever the request looked like and whatever the server made of it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest

from tests.helpers import against
from tests.scenarios.conftest import Serve
from tests.scenarios.servers import Server, daphne, granian, gunicorn, hypercorn, uvicorn, uwsgi, waitress, werkzeug
from usagekeeper import UsageRecord

RULES = """
from usagekeeper import Header, Policy, Rate

def ran(name: str, request_id: str | None, path: str) -> None:
    with open("ran", "a") as file:
        print(name, request_id, ascii(path), file=file)

def limit(name: str) -> list[Rate]:
    return [Rate(100_000, "300 days", algorithm="fixed", name=name)]

RULES = {
    "whitelist": ["GET /health", "GET /static/*"],
    "policies": [
        Policy("reads", routes=["GET /api/x"], limits=limit("reads")),
        Policy("writes", routes=["POST /api/x"], limits=limit("writes")),
        Policy("removals", routes=["DELETE /api/*"], limits=limit("removals")),
        Policy("items", routes=["/items/{name}"], limits=limit("items")),
        Policy("named", routes=["/named"], identity=Header("X-Customer"), limits=limit("named")),
    ],
}
"""

FASTAPI = """
from fastapi import FastAPI, Request

from usagekeeper.asgi import UsageMiddleware

app = FastAPI()
app.add_middleware(UsageMiddleware, **RULES)

@app.api_route("/api/x", methods=["GET", "HEAD"])
async def reads(request: Request) -> None:
    ran("reads", request.headers.get("x-request-id"), request.scope["path"])

@app.post("/api/x")
async def writes(request: Request) -> None:
    ran("writes", request.headers.get("x-request-id"), request.scope["path"])

@app.delete("/api/x")
async def removals(request: Request) -> None:
    ran("removals", request.headers.get("x-request-id"), request.scope["path"])

@app.api_route("/items/{name}", methods=["GET", "HEAD", "DELETE", "OPTIONS"])
async def items(request: Request) -> None:
    ran("items", request.headers.get("x-request-id"), request.scope["path"])

@app.get("/named")
async def named(request: Request) -> None:
    ran("named", request.headers.get("x-request-id"), request.scope["path"])

@app.get("/health")
async def health(request: Request) -> None:
    ran("health", request.headers.get("x-request-id"), request.scope["path"])

@app.get("/static/{path:path}")
async def files(request: Request) -> None:
    ran("static", request.headers.get("x-request-id"), request.scope["path"])
"""

FLASK = """
from flask import Flask, request

from usagekeeper.flask import UsageMiddleware

app = Flask(__name__, static_folder=None)
UsageMiddleware(app, **RULES)

@app.get("/api/x")
def reads() -> str:
    ran("reads", request.headers.get("x-request-id"), request.path)
    return ""

@app.post("/api/x")
def writes() -> str:
    ran("writes", request.headers.get("x-request-id"), request.path)
    return ""

@app.delete("/api/x")
def removals() -> str:
    ran("removals", request.headers.get("x-request-id"), request.path)
    return ""

@app.route("/items/<name>", methods=["GET", "HEAD", "DELETE", "OPTIONS"])
def items(name: str) -> str:
    ran("items", request.headers.get("x-request-id"), request.path)
    return ""

@app.get("/named")
def named() -> str:
    ran("named", request.headers.get("x-request-id"), request.path)
    return ""

@app.get("/health")
def health() -> str:
    ran("health", request.headers.get("x-request-id"), request.path)
    return ""

@app.get("/static/<path:path>")
def files(path: str) -> str:
    ran("static", request.headers.get("x-request-id"), request.path)
    return ""
"""

IDENTITIES: dict[tuple[str, ...], str | None] = {
    ("X-Customer: anne",): "anne",
    ("X-Customer: anne", "X-Customer: bob"): None,
    ("X-Customer: anne, bob",): None,
    ("X-Customer: anne,",): None,
    ("X-Customer: anne", "x-customer: anne"): None,
    ("X-Customer: ", "X-Customer: bob"): None,
    ("X-Customer: anne", "X_Customer: bob"): "anne",
    ("X_Customer: bob", "X-Customer: anne"): "anne",
    ("X_Customer: bob",): "127.0.0.1",
}
"""Headers, and the subject that they name; None is refused."""

SMUGGLED: dict[str, dict[tuple[str, ...], str]] = {
    "granian, wsgi": {("X-Customer: anne", "X_Customer: bob"): "bob", ("X_Customer: bob",): "bob"},
    "uwsgi": {("X_Customer: bob",): "bob"},
}
"""Servers that hand an underscore over as a dash: a proxy in front has to drop such headers, as nginx does."""

LENIENT = gunicorn("--worker-class", "gthread", "--threads", "2", "--permit-unconventional-http-method")
SERVERS = {
    "uvicorn, h11": (RULES + FASTAPI, uvicorn("--http", "h11", "--no-proxy-headers")),
    "uvicorn, httptools": (RULES + FASTAPI, uvicorn("--http", "httptools", "--no-proxy-headers")),
    "granian, asgi": (RULES + FASTAPI, granian("asgi")),
    "hypercorn": (RULES + FASTAPI, hypercorn()),
    "daphne": (RULES + FASTAPI, daphne()),
    "gunicorn, asgi": (RULES + FASTAPI, gunicorn("--worker-class", "asgi")),
    "gunicorn, lenient": (RULES + FLASK, LENIENT),
    "granian, wsgi": (RULES + FLASK, granian("wsgi")),
    "uwsgi": (RULES + FLASK, uwsgi()),
    "waitress": (RULES + FLASK, waitress()),
    "werkzeug": (RULES + FLASK, werkzeug()),
}

PATHS = ["/api/x", "/items/x", "/health", "/static/a"]
FORMS = [
    "{}", "/{}", "//{}", "{}/", "{}//", "{}%0a", "{}%0d", "{}%0d%0a", "{}%00", "{}%20", "{}%09", "{}%7f", "{}%0a/",
    "{};v=1", "{}?a=1", "{}??", "{}#fragment", "{}%23", "{}%3f", "{}.", "{}%e2%80%8b", "{}%c0%af", "{}%85", "{}%a0",
    "/.{}", "/..{}", "/y/..{}", "/y/%2e%2e{}", "/%2e{}", "/health/..{}", "/health%2f..{}", "/static/..{}",
    "/static/%2e%2e{}", "/static/..%2f{}", "/static/%2e%2e%2f{}", "/static//..{}", "{}/../../api/x",
    "{}/..%2f..%2fapi/x",
    "http://127.0.0.1{}", "http://evil.example{}", "http://evil.example/{}", "HTTP://evil.example:80{}?a#b",
    "https://user:pass@evil.example{}", "http:{}", "http://evil.example/health?{}", "http://[::1]{}", "ftp://x{}",
]  # fmt: skip
TARGETS = [form.format(path) for form in FORMS for path in PATHS] + [
    "/api/%78", "/%61pi/x", "/%68ealth", "/api%2fx", "/%2fapi/x", "/api//x", "/api/./x", "/api/y/../x", "/api/%2578",
    "/API/x", "/api/X", "/HEALTH", "/api\\x", "\\api\\x", "/items/a%2fb", "/items/a%252fb", "/items/%2e%2e",
    "/items/..", "/items/.", "/items/%2f", "/items/%0a", "/items/%20", "/items/a;b", "/items/a%00b", "/items//x",
    "/items/x%2f",
    "/items/../api/x", "/items/%2e%2e/api/x", "/items/" + "y" * 3000, "/health#/api/x", "/api/x#/health", "api/x", "*",
]  # fmt: skip
METHODS = [
    "get", "Get", "gET", "HEAD", "head", "POST", "post", "DELETE", "delete", "Delete", "OPTIONS", "options", "QUERY",
    "PUT", "TRACE", "CONNECT", "FOO", "_OTHER", "G-E.T", "X" * 4096,
]  # fmt: skip
ADDRESSES = ["X-Forwarded-For", "X_Forwarded_For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "Remote-Addr"]
HEADERS = [
    *(f"{name}: 192.0.2.{n}" for name in ADDRESSES for n in (1, 2)),
    "Forwarded: for=192.0.2.9", "X-Forwarded-For: 192.0.2.1, 192.0.2.2", "X-Forwarded-Host: example.org/health?",
    "X-Original-URL: /health", "X-Rewrite-URL: /health", "X-Forwarded-Prefix: /shop", "X-Script-Name: /shop",
    "Script-Name: /shop", "SCRIPT_NAME: /shop", "Path-Info: /health", "PATH_INFO: /health",
    "X-HTTP-Method-Override: OPTIONS", "X-HTTP-Method: POST", "X-Method-Override: HEAD", "Content-Length: 0",
    "Usagekeeper: 1", "X-Forwarded-Proto: https", "Upgrade: websocket", "Origin: null",
]  # fmt: skip
HOSTS = ["example.org/health?", "example.org/health#", "x@y/health", "/health", "", "[::1]", "a:99999"]


class Attack:
    """Sends strange requests, each with its own X-Request-Id, and remembers which was which."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: dict[str, str] = {}
        self._numbers = count()

    def __call__(self, method: str, target: str, *headers: str, host: str = "127.0.0.1") -> int:
        """The status, 0 where the server hung up without one."""
        name = f"r{next(self._numbers)}"
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", f"X-Request-Id: {name}", *headers]
        self.sent[name] = self.told(method, target, headers, host)
        try:
            return self.server.raw("\r\n".join([*lines, "", ""]).encode("latin-1")).status
        except AssertionError:
            return 0

    @staticmethod
    def told(method: str, target: str, headers: Sequence[str], host: str = "127.0.0.1") -> str:
        return f"{method[:20]} {target[:200]} {headers} {host}"

    def everything(self) -> None:
        for target in TARGETS:
            self("GET", target)
        for method in METHODS:
            for path in PATHS:
                self(method, path)
        for header in HEADERS:
            for path in ("/api/x", "/items/x"):
                self("GET", path, header)
        for host in HOSTS:
            self("GET", "/api/x", host=host)

    @property
    def ran(self) -> list[list[str]]:
        """Which handler ran, for which request, and the path that the application saw."""
        return [line.split(" ", 2) for line in (self.server.folder / "ran").read_text().splitlines()]


@against(1, 5, 7, 8, 9, 10, 12, 13, 24)
@pytest.mark.parametrize("name", list(SERVERS))
def test_every_run_of_a_handler_is_charged_to_its_own_limit(serve: Serve, name: str) -> None:
    server = serve(*SERVERS[name])
    attack = Attack(server)
    attack.everything()
    subjects = {headers: attack("GET", "/named", *headers) for headers in IDENTITIES}
    last = str(len(attack.sent) - 1)
    left = {limit: units_left(server, limit) for limit in ASKED}
    server.until(lambda: {f"r{last}", "check-items"} <= {record.request_id for record in server.records()})
    records = {record.request_id: record for record in server.records()}
    ran = attack.ran
    assert len(ran) > 150, "the attack reached hardly anything"

    limited = [(handler, one) for handler, one, _ in ran if handler not in ("health", "static")]
    assert [(handler, attack.sent.get(one)) for handler, one in limited if not paid(handler, records.get(one))] == []
    free = {path for handler, one, path in ran if handler in ("health", "static") and one not in records}
    assert free >= {"'/health'", "'/static/a'"}
    assert [path for path in free if not EXEMPT.fullmatch(path)] == []
    charged = Counter(policy for record in records.values() if record.units for policy in record.policies)
    assert {limit: 100_000 - left[limit] for limit in left} == {limit: charged[limit] for limit in left}

    sent = {attack.sent[one]: record.subject for one, record in records.items() if one in attack.sent}
    for headers, status in subjects.items():
        subject = sent[attack.told("GET", "/named", headers)]
        expected = SMUGGLED.get(name, {}).get(headers, IDENTITIES[headers])
        assert (status, subject) in [(200, expected), (400, None)], headers


TEMPLATES = {
    "reads": {"/api/x"},
    "writes": {"/api/x"},
    "removals": {"/api/x"},
    "items": {"/items/{name}", "/items/<name>"},
    "named": {"/named"},
}
EXEMPT = re.compile(r"(?!.*\\(?:[nrt]|x[01]|x7f))'/(?:health|static(?:/(?!\.\.?['/])[^/]+)+)'")
"""What the whitelist names, as `ascii` shows the path that the application saw."""
ASKED = {
    "reads": ("GET", "/api/x"),
    "writes": ("POST", "/api/x"),
    "removals": ("DELETE", "/api/x"),
    "items": ("GET", "/items/x"),
}


def paid(handler: str, record: UsageRecord | None) -> bool:
    """Whether the run of a handler was charged to its policy, and recorded under its label."""
    if record is None or record.route not in TEMPLATES[handler]:
        return False
    return handler in record.policies and record.units == 1


def units_left(server: Server, limit: str) -> int:
    answer = server(*ASKED[limit], {"X-Request-Id": f"check-{limit}"})
    (left,) = re.findall(rf'"{limit}";r=(\d+)', answer.header("ratelimit") or "")
    return int(left)
