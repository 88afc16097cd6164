"""What servers make of strange request lines, sent as raw bytes: no protected route is reached without its limit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import against
from tests.scenarios.conftest import end, folder
from tests.scenarios.servers import Server, gunicorn, uvicorn, waitress, werkzeug

FASTAPI = """
from fastapi import FastAPI

from usagekeeper import Policy
from usagekeeper.asgi import UsageMiddleware

app = FastAPI()
app.add_middleware(
    UsageMiddleware,
    store="memory://",
    whitelist=["GET /health", "/static/*"],
    policies=[Policy("reads", routes=["GET /api/*"], limits=["1/day"])],
)

@app.get("/api/x")
async def protected() -> str:
    return "the protected resource"

@app.get("/health")
async def health() -> str:
    return "fine"
"""

FLASK = """
from flask import Flask

from usagekeeper import Policy
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
UsageMiddleware(
    app,
    store="memory://",
    whitelist=["GET /health", "/static/*"],
    policies=[Policy("reads", routes=["GET /api/*"], limits=["1/day"])],
)

@app.get("/api/x")
def protected() -> str:
    return "the protected resource"

@app.get("/health")
def health() -> str:
    return "fine"
"""

TARGETS = [
    b"/api/x",
    b"//api/x",
    b"///api//x",
    b"/api//x",
    b"/api/x/",
    b"/api/x//",
    b"/api/x%0a",
    b"/api/x%0A",
    b"/api/x%0d",
    b"/api/x%0d%0a",
    b"/api/x%00",
    b"/api/x%20",
    b"/api/x%09",
    b"/api/%78",
    b"/%61pi/x",
    b"/api%2fx",
    b"/%2fapi/x",
    b"/api/./x",
    b"/api/y/../x",
    b"/api/y/%2e%2e/x",
    b"/api/%2e/x",
    b"/health/../api/x",
    b"/health/%2e%2e/api/x",
    b"/health%2f..%2fapi/x",
    b"/static/../api/x",
    b"/static/..%2fapi/x",
    b"/static/%2e%2e/api/x",
    b"/api/x;v=1",
    b"/api;v=1/x",
    b"/api/x?a=1",
    b"/api/x??",
    b"/api/x#fragment",
    b"/health#/api/x",
    b"/api/x#/health",
    b"/api/x%23",
    b"/api/x%3f",
    b"http://127.0.0.1/api/x",
    b"http://evil.example/api/x",
    b"http://evil.example//api/x",
    b"HTTP://evil.example:80/api/x?a#b",
    b"https://user:pass@evil.example/api/x",
    b"http:/api/x",
    b"api/x",
    b"./api/x",
    b"/api/%2578",
    b"/api/%C0%AFx",
    b"/api/x%e2%80%8b",
    b"/API/x",
    b"/api\\x",
    b"*",
]
METHODS = [b"get", b"Get", b"HEAD", b"head", b"GET "]


LENIENT = gunicorn("--worker-class", "gthread", "--threads", "2", "--permit-unconventional-http-method")
SERVERS = {
    "uvicorn, h11": (FASTAPI, uvicorn("--http", "h11")),
    "uvicorn, httptools": (FASTAPI, uvicorn("--http", "httptools")),
    "gunicorn": (FLASK, gunicorn("--worker-class", "gthread", "--threads", "2")),
    "gunicorn, lenient": (FLASK, LENIENT),
    "werkzeug": (FLASK, werkzeug()),
    "waitress": (FLASK, waitress()),
}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """All of them at once, because they take their time to start."""
    started = {name: Server(folder(tmp_path, name), *how) for name, how in SERVERS.items()}
    yield started
    end(started.values())


@against(7, 8, 9, 10, 13)
def test_no_request_line_gets_around_the_limit(servers: dict[str, Server], subtests: pytest.Subtests) -> None:
    for name, server in servers.items():
        with subtests.test(name):
            server.ready()
            rest = b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            assert server("GET", "/health").status == 200
            assert b"the protected resource" in server("GET", "/api/x").body
            lines = [*(b"GET " + target for target in TARGETS), *(method + b" /api/x" for method in METHODS)]
            answers = {line: server.raw(line + rest) for line in lines}
            assert answers[b"GET /api/x"].status == 429
            assert server("GET", "/health").status == 200, "the server is there, and what is whitelisted is served"
            assert {line: answer.status for line, answer in answers.items() if b"protected" in answer.body} == {}
            # A HEAD request runs the handler too, and has no body that shows it.
            heads = {line for line in answers if line[:4].upper() == b"HEAD" and answers[line].status == 200}
            assert heads == set()
