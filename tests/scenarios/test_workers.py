"""Several processes behind one port: limits stay exact between them, and every answer has its record."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.scenarios.conftest import Run, Serve
from tests.scenarios.servers import gunicorn, uvicorn

# A window of 300 days, so that hardly a test ever sees one end. Where the machine is so busy that the counters miss
# their deadline, the request is refused and not let through uncounted.
FLASK = """
from flask import Flask

from usagekeeper import Policy, Rate
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
limit = Rate(100, "300 days", algorithm="fixed")
UsageMiddleware(app, policies=[Policy("default", limits=[limit], on_outage="deny")])

@app.get("/api/x")
def x() -> str:
    return "x"
"""

STARLETTE = """
import ctypes, signal, sys

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from usagekeeper import Policy, Rate
from usagekeeper.asgi import UsageMiddleware

if sys.platform == "linux":  # workers go with the process that started them, however that ends
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)

async def x(request: object) -> PlainTextResponse:
    return PlainTextResponse("x")

app = Starlette(routes=[Route("/api/x", x)])
limit = Rate(100, "300 days", algorithm="fixed")
app.add_middleware(UsageMiddleware, policies=[Policy("default", limits=[limit], on_outage="deny")])
"""


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        pytest.param(FLASK, gunicorn("--preload", "--workers", "4"), id="gunicorn, preloaded"),
        pytest.param(STARLETTE, uvicorn("--workers", "4"), id="uvicorn"),
    ],
)
def test_attack_28_four_workers_admit_exactly_a_hundred_of_four_hundred_and_record_every_answer(
    serve: Serve, source: str, arguments: Callable[[int], Sequence[str]]
) -> None:
    server = serve(source, arguments)
    answered = server.crowd([{"X-Request-Id": f"r{n}"} for n in range(400)], "/api/x")
    statuses = Counter(status for _, status in answered)
    assert statuses[200] == 100, (statuses, server.output)
    assert statuses[200] + statuses[429] + statuses[503] == 400, (statuses, server.output)
    server.stop()
    records = server.records()
    assert sorted((record.request_id, record.status) for record in records) == sorted(answered)
    assert len({record.id for record in records}) == 400
    assert len({record.process for record in records}) > 1, "one worker has done everything"
    assert sum(record.units for record in records) == 100


FORKING = """
import os, sys, threading

from tests.helpers import wsgi_environ
from usagekeeper import Policy, Rate, UsageKeeper
from usagekeeper.wsgi import UsageMiddleware

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

keeper = UsageKeeper(policies=[Policy("p", limits=[Rate(10**9, "day")])], counters=sys.argv[1], store=sys.argv[2])
app = UsageMiddleware(app, keeper=keeper)

def ask():
    body = app(wsgi_environ(), lambda *args: None)
    list(body)
    body.close()

def keep_asking():
    while not done.is_set():
        ask()

done = threading.Event()
threads = [threading.Thread(target=keep_asking) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        for _ in range(20):
            ask()
        os._exit(0 if keeper.flush() else 3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
for thread in threads:
    thread.join()
ask()
assert keeper.flush()
print("children:", *codes)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("where", ["memory", "sqlite"])
def test_attack_fork_a_child_that_is_forked_while_locks_are_held_goes_on_by_itself(run: Run, where: str) -> None:
    """A child that deadlocks never ends, and neither does the program."""
    counters, store = ("memory://",) * 2 if where == "memory" else ("auto", "sqlite:///usagekeeper.db")
    root = os.fspath(Path(__file__).parents[2])
    program = run(f"import sys\nsys.path.insert(0, {root!r})\n{FORKING}", ["served.py", counters, store])
    assert program.wait() == 0, program.output
    assert f"children: {' '.join(['0'] * 8)}" in program.output


@pytest.mark.skipif(sys.platform != "linux", reason="locks of the kernel are asked as Linux has them")
def test_a_stopped_process_that_holds_the_counters_stops_no_answer(serve: Serve, run: Run) -> None:
    server = serve(STRICT_AND_LENIENT, uvicorn())
    assert server("GET", "/lenient").header("ratelimit") is not None
    holder = run(HOLDING, ["holder.py"], "holder")
    holder.wait_for("locked")
    holder.process.send_signal(signal.SIGSTOP)
    lenient = [server("GET", "/lenient") for _ in range(10)]
    assert {(answer.status, answer.header("ratelimit")) for answer in lenient} == {(200, None)}
    strict = [server("GET", "/strict") for _ in range(10)]
    assert {(answer.status, answer.header("retry-after")) for answer in strict} == {(503, "1")}
    assert server("GET", "/free").status == 200
    holder.kill()
    server.until(lambda: server("GET", "/strict").header("ratelimit") is not None)
    server.stop()
    outcomes = Counter((record.path, record.outcome) for record in server.records())
    assert outcomes["/lenient", "unmetered"] == 10
    assert outcomes["/strict", "refused"] >= 10


STRICT_AND_LENIENT = """
import asyncio

from fastapi import FastAPI

from usagekeeper import Policy
from usagekeeper.asgi import UsageMiddleware

app = FastAPI()
app.add_middleware(
    UsageMiddleware,
    policies=[
        Policy("lenient", routes=["/lenient"], limits=["1000/day"]),
        Policy("strict", routes=["/strict"], limits=["1000/day"], on_outage="deny"),
    ],
)

@app.get("/{anything}")
async def answer() -> str:
    return "x"
"""

HOLDING = """
import fcntl, os, signal

lock = os.open("usagekeeper.counters.db.lock", os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked")
signal.pause()
"""
