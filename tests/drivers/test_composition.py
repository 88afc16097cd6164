"""Several middlewares, keepers and applications together."""

from typing import Any

import pytest

from tests.helpers import CLIENT, AsgiCall, Call, Received, Reply, WsgiCall, hello, http_scope, receiver, wsgi_environ
from usagekeeper import Header, PathParam, Policy, current_usage

TWO = Policy("two", limits=["2/minute"])


def nested(call: Call[Any], *keepers: Any, handler: Any = hello) -> None:
    """Put middlewares with these keepers around one another, the last one outermost."""
    app = call.application(handler)
    for keeper in keepers:
        app = call.middleware(app, keeper)
    call.app = app


def test_attack_twice_two_middlewares_with_one_keeper_count_once(call: Call[Any]) -> None:
    keeper = call.keep(policies=[TWO])
    nested(call, keeper, keeper, keeper)
    answers = [call() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [len(answer.records) for answer in answers] == [1, 1, 1]
    assert [answer.names.count("ratelimit") for answer in answers] == [1, 1, 1]


def test_two_keepers_count_each_for_itself(call: Call[Any]) -> None:
    inner = call.keep(application="inner", policies=[Policy("in", limits=["2/minute"])])
    outer = call.keep(application="outer", policies=[Policy("out", limits=["3/minute"])])
    nested(call, inner, outer)
    answers = [call() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    told = [sorted((record.application, record.outcome) for record in answer.records) for answer in answers]
    assert told[0] == told[1] == [("inner", "allowed"), ("outer", "allowed")]
    assert told[2] == [("inner", "refused"), ("outer", "allowed")]
    assert told[3] == [("outer", "refused")]


def test_the_headers_of_the_inner_of_two_keepers_are_left_alone(call: Call[Any]) -> None:
    inner = call.keep(policies=[Policy("in", limits=["2/minute"])])
    outer = call.keep(policies=[Policy("out", limits=["3/minute"])])
    nested(call, inner, outer)
    answer = call()
    assert answer.one("ratelimit").startswith('"in-minute"')
    assert answer.one("x-ratelimit-limit") == "2"


def test_a_handler_of_two_keepers_sees_the_inner_one(call: Call[Any]) -> None:
    known: list[str | None] = []

    def handler(request: Received) -> Reply:
        known.append(current_usage().subject)
        current_usage().charge(3)
        return Reply()

    inner = call.keep(application="inner", identity=Header("X-Customer"))
    outer = call.keep(application="outer")
    nested(call, inner, outer, handler=handler)
    answer = call(headers={"X-Customer": "anne"})
    assert known == ["anne"]
    assert {record.application: record.units for record in answer.records} == {"inner": 4, "outer": 1}
    assert not current_usage().watched


def test_two_applications_that_share_a_keeper_share_its_limits(call: Call[Any]) -> None:
    keeper = call.keep(policies=[TWO])
    apps = [call.middleware(call.application(hello), keeper) for _ in range(2)]
    statuses = []
    for app in (*apps, *apps):
        call.app = app
        statuses.append(call().status)
    assert statuses == [200, 200, 429, 429]


def test_applications_of_one_store_share_limits_only_under_one_name(call: Call[Any]) -> None:
    first = call.keep(policies=[TWO])
    shared: dict[str, Any] = {"policies": [TWO], "counters": first.counters}
    same, other = call.keep(**shared), call.keep(application="other", **shared)
    statuses = []
    for keeper in (first, same, same, other):
        call.behind(keeper=keeper)
        statuses.append(call().status)
    assert statuses == [200, 200, 429, 200]


def test_a_keeper_can_be_closed_and_used_again(call: Call[Any]) -> None:
    call.behind(policies=[TWO])
    assert call.statuses(1) == [200]
    call.keeper.close()
    assert call.statuses(2) == [200, 429]
    assert len(call.recorded()) == 3


def test_building_a_keeper_opens_and_starts_nothing(call: Call[Any], tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    keeper = call.keep(policies=[TWO], store="sqlite:///usage.db")
    call.behind(keeper=keeper)
    assert (keeper.epoch, list(tmp_path.iterdir())) == (None, [])
    assert call.statuses(3) == [200, 200, 429]
    assert {file.name for file in tmp_path.iterdir()} >= {"usage.db", "usage.counters.db"}


def test_a_route_that_only_whitelists_never_starts_the_keeper_in_earnest(call: Call[Any], tmp_path: Any) -> None:
    call.behind(policies=[TWO], whitelist=["*"], store=f"sqlite:///{tmp_path}/usage.db")
    call._drive("GET", "/", [], [], CLIENT, None)
    assert (call.last.status, list(tmp_path.iterdir())) == (200, [])


# -- mounts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["/api/x", "/shop/api/x"], ids=["below the mount", "with the mount's prefix"])
def test_a_mounted_asgi_application_is_protected_by_patterns_with_and_without_its_prefix(
    asgi: AsgiCall, pattern: str
) -> None:
    asgi.behind(policies=[Policy("p", routes=[pattern], limits=["1/minute"])])
    statuses = []
    for _ in range(2):
        scope = http_scope("GET", "/shop/api/x", root_path="/shop")
        asgi.run(asgi.exchange(scope, receiver()))
        statuses.append(asgi.last.status)
    assert statuses == [200, 429]


@pytest.mark.parametrize("pattern", ["/api/x", "/shop/api/x"], ids=["below the mount", "with the mount's prefix"])
def test_a_mounted_wsgi_application_is_protected_by_patterns_with_and_without_its_prefix(
    wsgi: WsgiCall, pattern: str
) -> None:
    wsgi.validated = False
    wsgi.behind(policies=[Policy("p", routes=[pattern], limits=["1/minute"])])
    statuses = []
    for _ in range(2):
        wsgi.last = wsgi.last._replace(status=0)
        wsgi.exchange({**wsgi_environ("GET", "/api/x"), "SCRIPT_NAME": "/shop"})
        statuses.append(wsgi.last.status)
    assert statuses == [200, 429]


TENANT = Policy("p", routes=["/shop/{tenant}/x"], identity=PathParam("tenant"), limits=["1/minute"])


def test_a_path_parameter_below_the_prefix_of_an_asgi_mount_is_the_one_that_the_pattern_names(asgi: AsgiCall) -> None:
    asgi.behind(policies=[TENANT])
    for tenant in ("acme", "other"):
        asgi.run(asgi.exchange(http_scope("GET", f"/shop/{tenant}/x", root_path="/shop"), receiver()))
    assert [record.subject for record in asgi.fresh()] == ["acme", "other"]


def test_a_path_parameter_below_the_prefix_of_a_wsgi_mount_is_the_one_that_the_pattern_names(wsgi: WsgiCall) -> None:
    wsgi.behind(policies=[TENANT])
    for tenant in ("acme", "other"):
        wsgi.last = wsgi.last._replace(status=0)
        wsgi.exchange({**wsgi_environ("GET", f"/{tenant}/x"), "SCRIPT_NAME": "/shop"})
    assert [record.subject for record in wsgi.fresh()] == ["acme", "other"]
