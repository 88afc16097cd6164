"""The command line beside a server that is running: what it reads there is true, and it disturbs nobody."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import PATIENCE
from tests.scenarios.conftest import Run, Serve
from tests.scenarios.servers import Server, gunicorn, uvicorn
from usagekeeper.stores.sqlite import SqliteStore
from usagekeeper.testing.store_suite import make_records

FASTAPI = """
import ctypes, signal, sys

from fastapi import FastAPI

from usagekeeper import ClientAddress, Header, Policy, Rate
from usagekeeper.asgi import UsageMiddleware

if sys.platform == "linux":  # workers go with the process that started them, however that ends
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)

app = FastAPI(openapi_url=None)
limit = Rate(20, "300 days", algorithm="fixed")
app.add_middleware(UsageMiddleware, policies=[
    Policy("customers", identity=Header("X-Customer"), limits=[limit], on_outage="deny"),
    Policy("address", identity=ClientAddress(), limits=["10000/second"]),
])

@app.get("/api/items/{item}")
async def item(item: str) -> str:
    return item
"""

FLASK = """
from flask import Flask

from usagekeeper import ClientAddress, Header, Policy, Rate
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__, static_folder=None)
limit = Rate(20, "300 days", algorithm="fixed")
UsageMiddleware(app, policies=[
    Policy("customers", identity=Header("X-Customer"), limits=[limit], on_outage="deny"),
    Policy("address", identity=ClientAddress(), limits=["10000/second"]),
])

@app.get("/api/items/<item>")
def item(item: str) -> str:
    return item
"""

BOTH = pytest.mark.parametrize(
    ("source", "arguments"),
    [
        pytest.param(FASTAPI, uvicorn("--workers", "2"), id="uvicorn"),
        pytest.param(FLASK, gunicorn("-w", "2"), id="gunicorn"),
    ],
)
ACME = {"X-Customer": "acme"}


def usagekeeper(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "usagekeeper", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


def begun(server: Server) -> Server:
    """Wait until the first record is there: without a file there is nothing to follow."""
    server("GET", "/api/items/first", {"X-Customer": "first"})
    server.until(lambda: (server.folder / "usagekeeper.db").exists() and len(server.records()) == 1)
    return server


@BOTH
def test_tail_shows_every_request_of_all_workers_once(source: str, arguments: Any, serve: Serve, run: Run) -> None:
    server = begun(serve(source, arguments))
    tail = run("", ["-m", "usagekeeper", "tail", "--store", "sqlite:///usagekeeper.db", "--json"], name="tailed")
    tail.wait_for('"request_id"')
    answered = server.crowd([{**ACME, "X-Request-Id": f"r{n}"} for n in range(100)], "/api/items/1", clients=8)
    tail.until(lambda: tail.output.count("\n") >= 101)
    server("GET", "/api/items/%0aINFO%1b[2Jlast")
    tail.until(lambda: "INFO" in tail.output)
    tail.process.send_signal(signal.SIGINT)
    assert tail.wait() == 0
    first, *shown, last = map(json.loads, tail.output.splitlines())
    assert sorted((one["request_id"], one["status"]) for one in shown) == sorted(answered)
    assert (first["subject"], last["path"]) == ("first", "/api/items/\nINFO\x1b[2Jlast")
    assert tail.output.replace("\n", "").isprintable()


def test_check_and_doctor_tell_the_truth_beside_a_server(serve: Serve) -> None:
    server = begun(serve(FLASK, gunicorn()))
    statuses = [server("GET", "/api/items/1", ACME).status for _ in range(20)]
    assert statuses == [200] * 20
    arguments = ("GET", "/api/items/1", "--header", "X-Customer: acme", "--app", "served:app", "--json")
    checked = usagekeeper(server.folder, "check", *arguments)
    told = json.loads(checked.stdout)
    assert (checked.returncode, told["status"], told["rulings"][0]["standing"][0]["remaining"]) == (1, 429, 0)
    answer = server("GET", "/api/items/1", ACME)
    assert (answer.status, json.loads(answer.body)) == (429, json.loads(told["body"]))
    healthy = usagekeeper(server.folder, "doctor", "--app", "served:app", "--workers", "2")
    assert (healthy.returncode, healthy.stdout.splitlines()[-1]) == (0, "0 errors, 0 warnings, 0 notes")


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "usage.db")
    store.append(make_records(3_000))
    store.close()
    command = f"{sys.executable} -m usagekeeper tail --no-follow --lines 3000 --store sqlite:///usage.db | head -c 9"
    ended = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (len(ended.stdout), ended.stderr) == (9, "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals on this system")
def test_on_a_terminal_there_are_colours_and_no_sequence_of_a_client(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(FASTAPI + "\napp.get('/[red]x[/]\\x1b[2J')(item)\n")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "usagekeeper", "routes", "--app", "served:app"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    ) as shown:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    assert shown.returncode == 0
    assert b"\x1b[1m" in said
    assert b"/[red]x[/]\\x1b[2J" in said
    assert b"\x1b[2J" not in said


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says so when the other side is closed
        return b""
