"""The benchmarks measure what they say: their tables build, and a case that does not do its work is not measured."""

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.end_to_end import FULL_DEFAULT, GROUPS, OURS, Round, complete, read_wrk
from benchmarks.peers import Built, Case, Unproven, asgi_asking, rows, tables, verify, wsgi_asking
from benchmarks.request_path import starlette_app
from benchmarks.timing import table

FRAMEWORKS = ["FastAPI", "Starlette", "Flask"]
WRK = """Running 1s test
  Latency Distribution
     50%    1.50ms
     99%  720.00us
  4711 requests in 1.10s, 0.90MB read
Requests/sec:   4282.73
"""


def bare(amounts: Sequence[int]) -> Built:
    """Claims to limit."""
    return Built(starlette_app())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_a_peer_does_is_measured_of_ours_before_it(framework: str) -> None:
    first, *cases = tables()[framework]
    assert first.name == "bare"
    done = set()
    for case in cases:
        if case.who.startswith("usagekeeper"):
            done.add(case.work)
        assert case.work in done


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_cases_have_names_of_their_own(framework: str) -> None:
    names = [case.name for case in tables()[framework]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_ours_in_memory_prove_themselves(framework: str) -> None:
    cases = [case for case in tables()[framework] if "usagekeeper" in case.who and "SQLite" not in case.who]
    with asyncio.Runner() as runner:
        asking = wsgi_asking if framework == "Flask" else asgi_asking(runner)
        for case in cases:
            assert verify(case, asking).app


@pytest.mark.parametrize(
    ("case", "why"),
    [
        pytest.param(Case("1 limit", "x", bare, 1), "3 requests a minute", id="never refuses"),
        pytest.param(Case("headers", "x", bare, 0, "x-ratelimit-remaining"), "the headers", id="tells nothing"),
        pytest.param(Case("record", "x", lambda _: Built(starlette_app(), lambda ask: False)), "recorded", id="idle"),
    ],
)
def test_a_case_that_does_not_do_its_work_is_not_measured(case: Case, why: str) -> None:
    with asyncio.Runner() as runner, pytest.raises(Unproven, match=why):
        verify(case, asgi_asking(runner))


def test_without_the_bare_application_nothing_is_compared() -> None:
    with pytest.raises(Unproven, match="was not measured"):
        rows([])


def test_what_wrk_says_is_read() -> None:
    assert read_wrk(WRK) == Round(4711, 4282.73, 1.5, 0.72)


def test_behind_each_server_the_defaults_stand_beside_the_bare_application() -> None:
    assert OURS[FULL_DEFAULT][1] == {}
    for group in GROUPS:
        assert {"bare", FULL_DEFAULT} <= set(group.cases)


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-le", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
    ],
)
def test_the_client_knows_when_an_answer_is_complete(received: bytes, whole: bool) -> None:
    assert complete(bytearray(received)) is whole


def test_a_table_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    table("Title", {"us": ".1f", "added": "+.1f"}, {"bare": (1.0, None)}, notes=["Of one run."], style="markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == ["| | us | added |", "|---|---|---|", "| bare | 1.0 |  |"]
