"""Which of the framework's routes a pattern covers."""

import re
from typing import Any

import pytest

from usagekeeper import Body, ClientAddress, Everyone, FirstOf, Header, Policy, Rate, Route, UsageKeeper
from usagekeeper.inspection.coverage import asked, covered, rate, reach, rules_of
from usagekeeper.routes import Parameter, Rest, Segment, Template

ANY = Parameter("id")
NUMBER = Parameter("id", re.compile("[0-9]+"))


@pytest.mark.parametrize(
    ("pattern", "segments", "found"),
    [
        pytest.param("*", ("api",), "all", id="everything"),
        pytest.param("/api/*", ("api", "items", ANY), "all", id="below"),
        pytest.param("/api/*", ("api",), "all", id="the-prefix-itself"),
        pytest.param("/api/*", ("web",), "none", id="elsewhere"),
        pytest.param("/api/{x}", ("api", ANY), "all", id="parameter-on-parameter"),
        pytest.param("/api/{x}", ("api", "items"), "all", id="parameter-on-text"),
        pytest.param("/api/items", ("api", ANY), "some", id="text-on-parameter"),
        pytest.param("/api/items", ("api", NUMBER), "none", id="text-that-does-not-fit"),
        pytest.param("/api/7", ("api", NUMBER), "some", id="text-that-fits"),
        pytest.param("/api", ("api", ANY), "none", id="too-short"),
        pytest.param("/api/x/y", ("api", ANY), "none", id="too-long"),
        pytest.param("/files/a", ("files", Rest()), "some", id="text-on-the-rest"),
        pytest.param("/files/*", ("files", Rest()), "all", id="rest-on-rest"),
        pytest.param("/", (), "all", id="the-root"),
    ],
)
def test_a_pattern_covers_all_some_or_none(pattern: str, segments: tuple[Segment, ...], found: str) -> None:
    assert reach(Route.parse(pattern).segments, segments) == found


def rows(templates: list[Template], **options: Any) -> list[tuple[str, str, str, list[str]]]:
    keeper = UsageKeeper(store="memory://", **options)
    found = covered(keeper.settings, rules_of(keeper), templates)
    return [("|".join(row.methods), row.route, row.status, [rule.name for rule, _ in row.rules]) for row in found]


ITEM = Template("/items/{id}", frozenset({"GET", "HEAD", "DELETE", "OPTIONS"}), ("items", ANY))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        pytest.param({}, [("DELETE|GET", "watched", [])], id="alike"),
        pytest.param({"routes": ["/web/*"]}, [("DELETE|GET", "not watched", [])], id="not-watched"),
        pytest.param({"routes": ["/items/7"]}, [("DELETE|GET", "watched in part", [])], id="in-part"),
        pytest.param(
            {"whitelist": ["GET /items/*"]}, [("DELETE", "watched", []), ("GET", "whitelisted", [])], id="by-method"
        ),
        pytest.param({"whitelist": ["/items/7"]}, [("DELETE|GET", "whitelisted in part", [])], id="white-in-part"),
        pytest.param(
            {"policies": [Policy("d", routes=["DELETE /items/*"]), Policy("all")]},
            [("DELETE", "watched", ["d", "all"]), ("GET", "watched", ["all"])],
            id="policies",
        ),
    ],
)
def test_a_route_is_told_by_what_happens_to_it(options: Any, shown: list[Any]) -> None:
    assert rows([ITEM], **options) == [(methods, "/items/{id}", status, names) for methods, status, names in shown]


def test_a_mount_that_has_no_requests_of_its_own_is_left_out() -> None:
    assert rows([Template("/sub/{path}", frozenset(), ("sub", Rest()), mounted=0)]) == []


def customer_of(request: object) -> str:
    return "x"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        pytest.param(Header("X-Customer"), 'Header("X-Customer"), else ClientAddress()', id="header"),
        pytest.param(ClientAddress(prefix=56), "ClientAddress(prefix=56)", id="address"),
        pytest.param(FirstOf(Header("A"), Body("b.c")), 'Header("A"), else Body("b.c"), else ClientAddress()', id="of"),
        pytest.param(customer_of, "customer_of(), else ClientAddress()", id="callable"),
        pytest.param(Everyone(), "Everyone(), else ClientAddress()", id="everyone"),
        pytest.param(
            {"identityFieldName": "u", "identityFieldLocation": "query"}, 'Query("u"), else ClientAddress()', id="form"
        ),
    ],
)
def test_who_is_counted_is_told_as_it_is_written(identity: Any, words: str) -> None:
    keeper = UsageKeeper(store="memory://", policies=[Policy("p", identity=identity)])
    assert asked(rules_of(keeper)[0]) == words


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Rate(5, "minute"), "5/minute"),
        (Rate(20, "10 seconds"), "20/10 seconds"),
        (Rate(9, "day", algorithm="fixed"), "9/day (fixed)"),
    ],
)
def test_a_limit_is_told_as_it_is_written(limit: Rate, words: str) -> None:
    assert rate(limit) == words
