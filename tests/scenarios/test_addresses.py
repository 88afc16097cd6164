"""A forwarded address that the server has read already is not read again to a client's advantage, on live servers."""

from collections.abc import Callable, Sequence

import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.servers import gunicorn, uvicorn, waitress

APP = """
from usagekeeper import Policy
from usagekeeper.{protocol} import UsageMiddleware

async def asgi(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"x"}})

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]

app = UsageMiddleware({protocol}, policies=[Policy("p", limits=["1/day"])]{more})
"""
BOTH = ', trusted_proxies=["127.0.0.0/8"]'
READING = waitress("--trusted-proxy", "127.0.0.1", "--trusted-proxy-headers", "x-forwarded-for")
REAL = "198.51.100.7"


@pytest.mark.parametrize(
    ("protocol", "arguments", "more"),
    [
        pytest.param("asgi", uvicorn("--lifespan", "off"), BOTH, id="uvicorn and we"),
        pytest.param("asgi", uvicorn("--lifespan", "off"), "", id="uvicorn alone"),
        pytest.param("asgi", uvicorn("--lifespan", "off", "--no-proxy-headers"), BOTH, id="we behind uvicorn"),
        pytest.param("wsgi", READING, BOTH, id="waitress and we"),
        pytest.param("wsgi", READING, "", id="waitress alone"),
        pytest.param("wsgi", gunicorn(), BOTH, id="we behind gunicorn"),
    ],
)
def test_attack_2_live_whoever_reads_the_header_a_client_has_one_count(
    serve: Serve, protocol: str, arguments: Callable[[int], Sequence[str]], more: str
) -> None:
    server = serve(APP.format(protocol=protocol, more=more), arguments)

    def ask(chain: str) -> int:
        return server("GET", "/", {"X-Forwarded-For": chain}).status

    assert [ask(f"192.0.2.{n}, {REAL}") for n in range(3)] == [200, 429, 429]
    assert [ask(f"127.0.0.1, {REAL}"), ask(REAL), ask("198.51.100.8")] == [429, 429, 200]
    server.until(lambda: len(server.records()) == 6)
    assert {record.remote_address for record in server.records()[:5]} == {REAL}


@pytest.mark.parametrize(
    ("protocol", "arguments"),
    [
        pytest.param("asgi", uvicorn("--lifespan", "off", "--no-proxy-headers"), id="uvicorn"),
        pytest.param("wsgi", gunicorn(), id="gunicorn"),
    ],
)
def test_attack_1_live_a_header_that_nobody_trusts_names_nobody(
    serve: Serve, protocol: str, arguments: Callable[[int], Sequence[str]]
) -> None:
    server = serve(APP.format(protocol=protocol, more=""), arguments)
    names = ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP"]
    statuses = [server("GET", "/", {name: "for=192.0.2.1" if name == "Forwarded" else "192.0.2.1"}) for name in names]
    assert [answer.status for answer in statuses] == [200, 429, 429, 429, 429]
