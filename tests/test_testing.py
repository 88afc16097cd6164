"""What applications are tested with: the clock, the switch, the records, the reset."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CLIENT, AsgiCall, Call, Received, Reply, WsgiCall
from usagekeeper import Policy, UsageError, current_usage
from usagekeeper.testing import ManualClock, assert_recorded, disabled, recorded, reset

TWO = Policy("two", limits=["2/minute"])
PAGE = Path(__file__).parent.parent / "docs/testing.md"


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


def test_the_clock_begins_where_it_is_told_and_moves_when_told() -> None:
    clock = ManualClock(100.0)
    clock.advance(5)
    assert clock() == 105.0


# -- disabled ---------------------------------------------------------------------------------------------------------


def test_a_disabled_keeper_neither_limits_nor_records(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    with disabled(call.keeper):
        assert call.statuses(5) == [200] * 5
        assert "ratelimit" not in call().names
    assert recorded(call.keeper) == []


def test_a_middleware_that_has_served_is_disabled_and_limits_again_where_it_stood(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(1) == [200]
    with disabled(call.keeper):
        assert call.statuses(5) == [200] * 5
    assert call.statuses(2) == [200, 429]


def test_a_keeper_that_was_switched_off_stays_off_afterwards(call: Call[Any]) -> None:
    call.behind(policies=[TWO], enabled=False)
    with disabled(call.keeper):
        assert call.statuses(3) == [200] * 3
    assert call.statuses(3) == [200] * 3


def test_disabled_may_be_nested_and_left_by_an_exception(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    with pytest.raises(KeyError), disabled(call.keeper), disabled(call.keeper):
        raise KeyError
    assert call.statuses(3) == [200, 200, 429]


def test_every_middleware_of_the_keeper_is_disabled(call: Call[Any]) -> None:
    keeper = call.keep(policies=[TWO])
    apps = [call.middleware(call.application(lambda _: Reply()), keeper) for _ in range(2)]
    for app in apps:
        call.app = app
        call()
    with disabled(keeper):
        for app in apps:
            call.app = app
            assert call().status == 200


def test_inside_a_disabled_keeper_a_handler_sees_an_idle_usage(call: Call[Any]) -> None:
    watched: list[bool] = []

    def handler(request: Received) -> Reply:
        watched.append(current_usage().watched)
        return Reply()

    call.behind(handler)
    call()
    with disabled(call.keeper):
        call()
    assert watched == [True, False]


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_come_in_order_and_at_once(call: Call[Any]) -> None:
    call.behind()
    for path in ("/a", "/b", "/c"):
        call.status(target=path)
    assert [record.path for record in recorded(call.keeper)] == ["/a", "/b", "/c"]


def test_records_of_another_application_in_the_same_store_are_left_out(call: Call[Any]) -> None:
    first = call.keep(application="first")
    second = call.keep(application="second", store=first.store)
    for keeper in (first, second):
        call.behind(keeper=keeper)
        call.status()
    assert [record.application for record in recorded(second)] == ["second"]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"route": "*"},
        {"subject": CLIENT},
        {"status": 200},
        {"outcome": "allowed"},
        {"units": 1},
        {"route": "*", "status": 200, "units": 1},
    ],
    ids=str,
)
def test_what_was_recorded_is_asserted(call: Call[Any], wanted: dict[str, Any]) -> None:
    call.behind(routes=["*"])
    call.status()
    (record,) = assert_recorded(call.keeper, **wanted)
    assert record.path == "/api/x"


def test_nothing_recorded_is_asserted_by_zero_times(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    call.status()
    assert assert_recorded(call.keeper, outcome="refused", times=0) == []


def test_a_failure_lists_what_was_recorded_instead(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    call.status(target="/api/items")
    with pytest.raises(AssertionError) as told:
        assert_recorded(call.keeper, status=404, subject="acme")
    assert str(told.value) == (
        "subject='acme', status=404: expected 1 times, found 0; recorded:\n"
        f"  GET /api/items route='*' subject={CLIENT!r} status=200 outcome='allowed' units=1"
    )


def test_a_failure_without_records_says_nothing(call: Call[Any]) -> None:
    call.behind()
    with pytest.raises(AssertionError, match=r"anything: expected 1 times, found 0; recorded:\n  nothing$"):
        assert_recorded(call.keeper)


def test_a_failure_lists_twenty_records_at_most(call: Call[Any]) -> None:
    call.behind()
    call.statuses(25)
    with pytest.raises(AssertionError, match="the last 20 of 25 records") as told:
        assert_recorded(call.keeper, status=500)
    assert str(told.value).count("GET /api/x") == 20


def test_records_that_cannot_be_written_are_told(call: Call[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    call.behind()
    monkeypatch.setattr(call.keeper, "flush", lambda: False)
    with pytest.raises(UsageError, match="could not be written"):
        recorded(call.keeper)
    monkeypatch.undo()


# -- reset ------------------------------------------------------------------------------------------------------------


def test_after_a_reset_counts_and_records_start_from_nothing(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(3) == [200, 200, 429]
    call.status()
    reset(call.keeper)
    assert recorded(call.keeper) == []
    assert call.statuses(3) == [200, 200, 429]


@pytest.mark.parametrize("where", ["store", "counters"])
def test_a_reset_leaves_files_alone_and_says_so(call: Call[Any], where: str, tmp_path: Path) -> None:
    options: Any = {"store": "memory://", "counters": "memory://", where: f"sqlite:///{tmp_path}/usage.db"}
    call.behind(policies=[TWO], **options)
    call.status()
    with pytest.raises(UsageError, match=r'has a Sqlite\w+: build the one of the tests with store="memory://"'):
        reset(call.keeper)
    assert len(recorded(call.keeper)) == 1
    assert call.statuses(2) == [200, 429]


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_helpers_import_no_test_framework_and_no_backend() -> None:
    script = "import sys, usagekeeper.testing; print({*sys.modules} & {'pytest', 'pydantic', 'sqlite3', 'asyncio'})"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


def test_the_tests_of_the_page_pass_as_they_stand(tmp_path: Path) -> None:
    blocks = PAGE.read_text().split("```python\n")[1:]
    (tmp_path / "test_page.py").write_text("\n\n".join(block.partition("```")[0] for block in blocks))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    ended = subprocess.run([*command, "test_page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "4 passed" in ended.stdout
