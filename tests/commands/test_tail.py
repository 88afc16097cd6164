"""`tail`: which records it shows, in which order, and how they look."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.apps import FASTAPI
from tests.commands.conftest import Project
from usagekeeper import StoreUnavailable
from usagekeeper.commands.tail import Wanted, line, tail
from usagekeeper.records import UsageRecord
from usagekeeper.stores.base import RecordQuery
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.testing.store_suite import make_record, make_records

STORE = ("--store", "sqlite:///usage.db", "--no-follow")


def shown(project: Project, *more: str) -> list[Any]:
    return [json.loads(row) for row in project.run("tail", *STORE, "--json", *more).stdout.splitlines()]


@pytest.mark.parametrize(("lines", "serials"), [(2, [4, 5]), (0, []), (99, [1, 2, 3, 4, 5])])
def test_the_newest_are_shown_in_their_order(lines: int, serials: list[int], project: Project, filled: Any) -> None:
    filled(make_records(5))
    assert [record["serial"] for record in shown(project, "--lines", str(lines))] == serials


@pytest.mark.parametrize(
    ("options", "serials"),
    [
        pytest.param(["--subject", "acme"], [1, 3], id="subject"),
        pytest.param(["--route", "/x"], [2, 3], id="route"),
        pytest.param(["--refused"], [3], id="refused"),
        pytest.param(["--refused", "--subject", "nobody"], [], id="none"),
    ],
)
def test_only_what_is_wanted_is_shown(options: list[str], serials: list[int], project: Project, filled: Any) -> None:
    filled(
        [
            make_record(1, subject="acme", route="/y"),
            make_record(2, subject="b", route="/x"),
            make_record(3, subject="acme", route="/x", outcome="refused"),
        ]
    )
    assert [record["serial"] for record in shown(project, *options)] == serials


def test_json_has_every_field_and_the_id(project: Project, filled: Any) -> None:
    filled([make_record(1)])
    (record,) = shown(project)
    assert record.keys() == {"id", *UsageRecord.__struct_fields__}
    assert record["id"] == str(make_record(1).id)


def test_an_application_shows_its_own_records(project: Project, filled: Any) -> None:
    filled([make_record(1, application="shop"), make_record(2, application="other")])
    project.write(FASTAPI + "app = make(application='shop')")
    rows = project.run("tail", "--app", "shop:app", "--no-follow", "--json").stdout.splitlines()
    assert [json.loads(row)["application"] for row in rows] == ["shop"]


class Script:
    """What happens between two looks, in order; then it is over."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    def __call__(self) -> bool:
        if not self.steps:
            return False
        self.steps.pop(0)()
        return True


def test_what_comes_between_two_looks_is_shown_once() -> None:
    store, seen = MemoryStore(), []
    store.append(make_records(3))
    steps = [lambda: store.append([make_record(4)]), lambda: None, lambda: store.append([make_record(5)])]
    tail(store, Wanted(), lines=2, show=lambda record: seen.append(record.serial), again=Script(*steps))
    assert seen == [2, 3, 4, 5]


def test_what_comes_while_the_first_are_read_is_neither_lost_nor_shown_twice() -> None:
    class Racing(MemoryStore):
        def read(self, query: RecordQuery) -> Any:
            if query.limit is not None:
                self.append([make_record(4), make_record(5)])
            return super().read(query)

    store, seen = Racing(), []
    store.append(make_records(3))
    tail(store, Wanted(), lines=1, show=lambda record: seen.append(record.serial), again=Script(int, int))
    assert sorted(seen) == [4, 5]


def test_filters_hold_for_what_comes() -> None:
    store, seen = MemoryStore(), []
    step = Script(lambda: store.append([make_record(1, subject="a"), make_record(2, subject="b")]))
    tail(store, Wanted(subject="b"), lines=9, show=lambda record: seen.append(record.serial), again=step)
    assert seen == [2]


def test_a_store_that_fails_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(MemoryStore):
        away = False

        def read(self, query: RecordQuery) -> Any:
            if self.away:
                raise StoreUnavailable("usage.db did not answer")
            return super().read(query)

    store, seen = Failing(), []

    def leave() -> None:
        store.away = True

    def come_back() -> None:
        store.away = False
        store.append(make_records(1))

    steps = Script(leave, come_back)
    tail(store, Wanted(), lines=1, show=lambda record: seen.append(record.serial), again=steps)
    assert (seen, capsys.readouterr().err) == ([1], "usage.db did not answer; asked again\n")


EVIL = "\r\n2026-01-01 INFO forged\x1b[2J\x1b]0;t\x07\u202egpj\x9b1m\x00"


@pytest.mark.parametrize("field", ["path", "query", "subject", "user_agent", "reason", "error_code", "exception"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_attack_33_log_injection_stays_on_its_line(field: str, form: list[str], project: Project, filled: Any) -> None:
    filled([make_record(1, **{field: f"/a{EVIL}"})])
    printed = project.run("tail", *STORE, *form).stdout
    assert printed.count("\n") == 1
    assert printed.removesuffix("\n").isprintable()
    assert "forged" in printed


def test_a_line_tells_what_matters() -> None:
    record = make_record(
        1, status=429, outcome="refused", subject="acme", method="GET", path="/x", query="a=b", duration=1500, units=0,
        reason="quota-exceeded", violated=("p-minute",), user_agent="curl/8",
    )  # fmt: skip
    told = line(record).split("  ", 1)[1]
    assert told == '429  refused    acme  GET /x?a=b  1.5 ms  0 units  (quota-exceeded, p-minute)  "curl/8"'


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ["--store", "memory://"], "records in memory are known to the server's process alone", id="memory"
        ),
        pytest.param(["--store", "sqlite:///absent.db"], "there are no records in ", id="absent"),
        pytest.param(["--store", "kafka://x"], "store 'kafka://x' cannot be opened", id="unknown"),
        pytest.param(["--store", "sqlite:///foreign.db"], "belongs to another application", id="foreign"),
        pytest.param([], "which application?", id="nothing"),
        pytest.param(["--lines", "-1"], "-1 is not in the range x>=0", id="lines"),
    ],
)
def test_what_cannot_be_read_ends_with_2(arguments: list[str], sentence: str, project: Project, tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "foreign.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    ended = project.run("tail", *arguments)
    assert (ended.exit_code, sentence in ended.stderr) == (2, True)
    assert not (tmp_path / "absent.db").exists()
