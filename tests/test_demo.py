"""The demo: it ends by itself, leaves nothing behind, and its figures add up."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.helpers import WsgiCall
from usagekeeper import Policy, UsageError
from usagekeeper.cli import main
from usagekeeper.demo import HOST, command
from usagekeeper.demo.clients import AGENT, CLIENTS, Tally, Traffic
from usagekeeper.demo.ledger import OTHERS, Ledger
from usagekeeper.demo.summary import Row, rows, summary, total
from usagekeeper.demo.table import Lines, table, text

DEMO = [sys.executable, "-m", "usagekeeper", "demo"]
PATIENCE = 120
FINE = Row("acme", "calls", 5, 5, 3, 2, "0", 5, 2, 3)


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary files are in a folder of the test."""
    return {**os.environ, "TMPDIR": str(tmp_path)}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


# -- the whole of it --------------------------------------------------------------------------------------------------


def test_three_seconds_of_traffic_add_up(elsewhere: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [*DEMO, "--seconds", "3", "--json"],
        env=elsewhere,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    figures = json.loads(ended.stdout)
    assert figures["adds_up"] is True
    assert figures["failures"] == []
    assert figures["sent"] == figures["answered"] == figures["recorded"] > 10
    assert figures["allowed"] + figures["refused"] == figures["sent"]
    for name in ("sent", "answered", "allowed", "refused", "recorded", "recorded_refused", "units"):
        assert figures[name] == sum(client[name] for client in figures["clients"])

    clients = {client["name"]: client for client in figures["clients"]}
    assert list(clients) == [client.name for client in CLIENTS]
    assert figures["refused"] > 0
    assert all(client["units"] <= 6 + figures["seconds"] + 1 for client in clients.values())  # 6/6 seconds
    assert clients["acme"]["refused"] == 0  # it heeds the headers
    assert clients["initech"]["units"] > clients["initech"]["allowed"]  # a report costs more than one
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "lines"), [(signal.SIGINT, 1), (signal.SIGTERM, 8)], ids=["^C", "SIGTERM"])
def test_a_signal_ends_it_with_figures_that_add_up(
    number: signal.Signals, lines: int, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen([*DEMO, "--seconds", "0"], env=elsewhere, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        seen = [demo.stdout.readline() for _ in range(lines)]  # the eighth comes after five seconds
        assert "A sample API on http://" in seen[0]
        assert ("in the store" in seen[-1]) == (lines == 8)
        demo.send_signal(number)
        said, _ = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0
    assert said.endswith("It adds up.\n")
    assert list(tmp_path.iterdir()) == []


def test_it_shows_who_was_refused_and_what_is_left() -> None:
    ended = CliRunner().invoke(main, ["demo", "--seconds", "1"])
    assert ended.exit_code == 0
    assert "curl -i -H 'X-Customer: you' http://127.0.0.1:" in ended.output
    assert "client     sent  allowed  refused  left  recorded  units" in ended.output
    assert all(client.name in ended.output for client in CLIENTS)


# -- what may be wrong ------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_in_a_sentence(taken: int) -> None:
    ended = CliRunner().invoke(main, ["demo", "--port", str(taken)])
    assert ended.exit_code == 2
    assert f"Error: port {taken} of 127.0.0.1: Address already in use; leave out --port" in ended.output


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r'needs fastapi and uvicorn: pip install "usagekeeper\[cli,fastapi\]" uvicorn'
    ):
        command.run(seconds=1, port=0, as_json=True)


def test_a_sample_api_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UsageError, match="the sample API did not start"):
        command.run(seconds=1, port=0, as_json=True)


def test_requests_without_an_answer_are_told_from_answers(taken: int) -> None:
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    traffic = Traffic(port, CLIENTS[:1])
    traffic.start()
    traffic.stop()
    tally = traffic.tallies["acme"]
    assert (tally.sent, tally.answered) == (1, 0)
    assert "refused" in (tally.failure or "")


# -- the figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"answered": 4}, id="no-answer"),
        pytest.param({"recorded": 4}, id="no-record"),
        pytest.param({"recorded": 6}, id="recorded-twice"),
        pytest.param({"allowed": 4}, id="counted-twice"),
        pytest.param({"recorded_refused": 1}, id="recorded-as-allowed"),
    ],
)
def test_one_wrong_figure_does_not_add_up(wrong: dict[str, Any]) -> None:
    assert FINE.adds_up
    assert not FINE._replace(**wrong).adds_up


@pytest.fixture
def ledger() -> Iterator[tuple[WsgiCall, Ledger]]:
    """An application to call, and the ledger of its store."""
    call = WsgiCall()
    call.behind(policies=[Policy("two", limits=["2/minute"], cost=1)])
    yield call, Ledger(call.keeper.store)
    call.close()


def test_the_ledger_counts_each_record_once(ledger: tuple[WsgiCall, Ledger]) -> None:
    call, counted = ledger
    for expected in (1, 2, 3):
        call(headers={"user-agent": f"{AGENT}acme"})
        counted.read()
        counted.read()
        assert counted.clients["acme"].records == expected
        call.clock.advance(0.001)
    assert (counted.clients["acme"].refused, counted.clients["acme"].units) == (1, 2)


def test_the_ledger_finds_records_again_after_a_long_pause(ledger: tuple[WsgiCall, Ledger]) -> None:
    call, counted = ledger
    for _ in range(3):
        call(headers={"user-agent": f"{AGENT}acme"})
        call.clock.advance(3600)
        counted.read()
    assert counted.clients["acme"].records == 3


def test_requests_of_others_are_not_the_demos(ledger: tuple[WsgiCall, Ledger]) -> None:
    call, counted = ledger
    call(headers={"user-agent": "curl/8"})
    call()
    counted.read()
    ended = summary(1.0, {client.name: Tally() for client in CLIENTS}, counted)
    assert counted.clients[OTHERS].records == ended.others == 2
    assert ended.adds_up
    assert "Besides these, 2 of your own were recorded." in ended.sentence()


def test_the_summary_says_when_it_does_not_add_up(ledger: tuple[WsgiCall, Ledger]) -> None:
    tallies = {client.name: Tally() for client in CLIENTS}
    tallies["globex"] = Tally(sent=1, failure="GET /api/items/8: timed out")
    ended = summary(1.0, tallies, ledger[1])
    assert ended.sentence() == (
        "1 requests sent, 0 answered, 0 recorded; 0 allowed + 0 refused = 0. It does not add up."
    )
    assert ended.failures == ["globex: GET /api/items/8: timed out"]
    assert ended.as_json()["adds_up"] is False


# -- how it looks -----------------------------------------------------------------------------------------------------


def test_the_rows_are_aligned_and_summed() -> None:
    assert text([FINE, FINE._replace(name="globex", left=None)]).splitlines() == [
        "client  sent  allowed  refused  left  recorded  units",
        "acme       5        3        2     0         5      3  calls",
        "globex     5        3        2               5      3  calls",
        "total     10        6        4              10      6",
    ]


def test_the_table_of_a_terminal_fits_into_80_columns(ledger: tuple[WsgiCall, Ledger]) -> None:
    clients = rows({client.name: Tally(sent=2_499, left="8") for client in CLIENTS}, ledger[1])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(12.3, clients))
    shown = console.export_text().splitlines()
    assert len(shown) == len(CLIENTS) + 3
    assert shown[0].strip() == "12 s"
    assert str(total(clients).sent) in shown[-1]


def test_elsewhere_there_is_a_line_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for seconds in (1.0, 4.9, 5.1, 6.0, 10.2):
        lines(seconds, [FINE])
    assert capsys.readouterr().out.splitlines() == [
        "   5 s  5 sent, 3 allowed, 2 refused, 5 in the store",
        "  10 s  5 sent, 3 allowed, 2 refused, 5 in the store",
    ]
