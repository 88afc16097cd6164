"""Options: their defaults, where they come from, and the one sentence that a wrong one is answered with."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, WsgiCall
from usagekeeper import ClientAddress, ConfigurationError, Header, Policy, Rate, Route, UsageKeeper
from usagekeeper.config import Options, Settings, read_settings
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.stores.memory import MemoryStore


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


DEFAULTS: Mapping[str, Any] = {
    "application": "default",
    "routes": (),
    "whitelist": (),
    "exempt": None,
    "identity": ClientAddress(),
    "policies": (),
    "rate_limits": {},
    "store": "sqlite:///usagekeeper.db",
    "counters": "auto",
    "retention": timedelta(days=90),
    "trusted_proxies": None,
    "headers": "both",
    "on_refusal": None,
    "on_outage": "allow",
    "enabled": True,
    "clock": time.time,
}


@pytest.mark.parametrize("option", DEFAULTS)
def test_an_option_has_its_documented_default(option: str) -> None:
    assert getattr(read_settings({}, {}), option) == DEFAULTS[option]


def test_every_option_is_declared_where_it_is_read() -> None:
    assert set(Options.__annotations__) == set(Settings.model_fields) == set(DEFAULTS)


@pytest.mark.parametrize("option", ["routes", "whitelist", "policies", "rate_limits", "identity", "exempt"])
def test_none_is_the_default_of_what_may_be_left_out(option: str) -> None:
    settings = read_settings({option: None}, {})
    assert getattr(settings, option) in (DEFAULTS[option], None)
    assert settings.parsed_identity() == ClientAddress()


def test_settings_are_not_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings({}, {}).application = "other"


# -- the environment --------------------------------------------------------------------------------------------------

FROM_ENVIRONMENT = [
    ("application", "orders", "orders"),
    ("store", "memory://", "memory://"),
    ("counters", "memory://", "memory://"),
    ("retention", "3 years", timedelta(days=3 * 366)),
    ("headers", "ietf", "ietf"),
    ("on_outage", "deny", "deny"),
    ("enabled", "false", False),
    ("enabled", "0", False),
    ("enabled", "true", True),
]


@pytest.mark.parametrize(("option", "text", "value"), FROM_ENVIRONMENT)
def test_a_plain_option_may_come_from_the_environment(option: str, text: str, value: Any) -> None:
    assert getattr(read_settings({}, {f"USAGEKEEPER_{option.upper()}": text}), option) == value


def test_an_argument_wins_over_the_environment() -> None:
    assert read_settings({"headers": "none"}, {"USAGEKEEPER_HEADERS": "ietf"}).headers == "none"


def test_a_keeper_reads_the_environment_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGEKEEPER_APPLICATION", "orders")
    assert UsageKeeper(store="memory://").application == "orders"


@pytest.mark.parametrize("option", ["routes", "policies", "clock", "identity", "exempt", "nonsense"])
def test_what_is_not_plain_does_not_come_from_the_environment(option: str) -> None:
    assert read_settings({}, {f"USAGEKEEPER_{option.upper()}": "x"}) == read_settings({}, {})


@pytest.mark.parametrize(
    ("option", "text"), [("retention", "soon"), ("enabled", "perhaps"), ("headers", "all"), ("application", "")]
)
def test_a_wrong_environment_is_told_at_once(option: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"option {option} cannot be '{text}'"):
        read_settings({}, {f"USAGEKEEPER_{option.upper()}": text})


@pytest.mark.parametrize(
    ("option", "text", "line"),
    [
        ("headers", "IETF", "USAGEKEEPER_HEADERS=ietf"),
        ("headers", '["ietf"]', "USAGEKEEPER_HEADERS=ietf"),
        ("enabled", "", "USAGEKEEPER_ENABLED=false"),
        ("on_outage", "true", "USAGEKEEPER_ON_OUTAGE=deny"),
        ("retention", "90", 'USAGEKEEPER_RETENTION="90 days"'),
        ("retention", "null", 'USAGEKEEPER_RETENTION="90 days"'),
        ("application", " ", "USAGEKEEPER_APPLICATION=orders"),
    ],
)
def test_a_wrong_environment_is_answered_with_its_own_line(option: str, text: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        read_settings({}, {f"USAGEKEEPER_{option.upper()}": text})
    assert str(told.value).endswith(f", as in {line}")


@pytest.mark.parametrize("text", ['"orders"', "'orders'"])
def test_quotes_that_became_part_of_a_value_are_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write USAGEKEEPER_APPLICATION=orders"):
        read_settings({}, {"USAGEKEEPER_APPLICATION": text})


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("USAGEKEEPER_ROUTES", "USAGEKEEPER_ROUTES is not read from the environment: write routes= in the code"),
        ("USAGEKEEPER_RATE_LIMITS", "write rate_limits= in the code"),
        ("USAGEKEEPER_TRUSTED_PROXIES", "write trusted_proxies= in the code"),
        ("USAGEKEEPER_ENABLE", "USAGEKEEPER_ENABLE is not read: did you mean USAGEKEEPER_ENABLED?"),
    ],
)
def test_an_environment_that_is_not_read_is_logged(key: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    read_settings({}, {key: "1"})
    assert told in caplog.text


@pytest.mark.parametrize("key", ["USAGEKEEPER_APP", "USAGEKEEPER_NONSENSE", "OTHER"])
def test_what_is_no_option_of_ours_is_no_matter(key: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read_settings({}, {key: "1"}) == read_settings({}, {})
    assert caplog.text == ""


# -- retention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ("90 days", 90),
        ("1 day", 1),
        ("90days", 90),
        ("  2 Weeks ", 14),
        ("1 month", 31),
        ("3 years", 3 * 366),
        ("99999 years", 99_999 * 366),
        (timedelta(days=7), 7),
    ],
    ids=str,
)
def test_retention_is_written_in_words_or_as_a_timedelta(given: Any, days: int) -> None:
    assert read_settings({"retention": given}, {}).retention == timedelta(days=days)


def test_retention_of_none_keeps_records_for_ever() -> None:
    assert read_settings({"retention": None}, {}).retention is None


# -- rate_limits ------------------------------------------------------------------------------------------------------


def test_rate_limits_are_turned_into_policies() -> None:
    keeper = UsageKeeper(store="memory://", rate_limits={"/api/users": {"limit": 1000, "window": "1h"}})
    assert keeper.policies == (Policy("/api/users", routes=["/api/users"], limits=[Rate(1000, "1h")]),)


def test_rate_limits_stand_beside_policies(call: Call[Any]) -> None:
    call.behind(
        policies=[Policy("p", identity=Header("X-Customer"), limits=["9/minute"])],
        rate_limits={"POST /api/x": {"limit": 2, "window": "10 seconds"}},
    )
    assert call.statuses(3, "POST") == [200, 200, 429]
    assert call.statuses(3, "GET") == [200, 200, 200]


@pytest.mark.parametrize("window", ["1 week", "2 months", "1 quarter", "year"])
def test_a_calendar_window_is_not_in_this_version_and_told_so(window: str) -> None:
    with pytest.raises(ConfigurationError, match="calendar quotas are not in this version"):
        UsageKeeper(store="memory://", rate_limits={"/api/users": {"limit": 1000, "window": window}})


def test_a_rate_limit_may_not_have_the_name_of_a_policy() -> None:
    with pytest.raises(ConfigurationError, match="two policies are called '/a'"):
        UsageKeeper(store="memory://", policies=[Policy("/a")], rate_limits={"/a": {"limit": 1, "window": "1h"}})


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("polices", "policies"), ("rate_limit", "rate_limits"), ("white_list", "whitelist"), ("Routes", "routes")],
)
def test_an_unknown_option_is_answered_with_the_one_that_was_meant(wrong: str, meant: str) -> None:
    options: dict[str, Any] = {wrong: []}
    with pytest.raises(ConfigurationError) as told:
        UsageKeeper(**options)
    assert str(told.value) == f"there is no option {wrong!r}: did you mean {meant!r}?"


@pytest.mark.parametrize("option", ["xyz", "journal", "plans", "dashboard", ""])
def test_an_option_of_no_likeness_is_answered_with_all_there_are(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no option '{option}': there are application, routes, .*, clock$"):
        read_settings({option: 1}, {})


# -- values -----------------------------------------------------------------------------------------------------------

LIST = "this is a list, as in"
PATTERN = 'write .*"/api/\\*"'
WRONG: list[tuple[str, Any, str]] = [
    ("application", "", 'as in application="orders"'),
    ("application", "x" * 101, "at most 100 characters"),
    *(("application", value, "without spaces around it") for value in (" ", "a ", "a\nb", "a\x1b[0m")),
    ("application", 5, "valid string"),
    ("application", b"x", "valid string"),
    ("application", None, "valid string"),
    ("routes", "/api/*", f"{LIST} routes="),
    ("routes", {"url": "/api/*"}, f"{LIST} routes="),
    ("routes", 5, f"{LIST} routes="),
    ("routes", {"/api/*"}, f"{LIST} routes="),
    ("routes", [5], PATTERN),
    ("routes", [None], PATTERN),
    ("routes", [{"url": "/x", "verb": "GET"}], PATTERN),
    ("routes", [{"method": "GET"}], PATTERN),
    ("routes", ["/api*"], "write '/api/\\*'"),
    ("routes", ["/*.json"], "write '/"),
    ("routes", ["GET /a, GET /b"], r'looks like several: .* \["GET /a", "/b"\]'),
    ("routes", ["/a /b"], "looks like several"),
    ("routes", ["/a;/b"], "looks like several"),
    ("whitelist", "/health", f"{LIST} whitelist="),
    ("whitelist", [{}], PATTERN),
    ("exempt", "/health", "callable, as in exempt="),
    ("identity", "X-Customer", 'give one such as Header\\("X-Customer"\\)'),
    ("identity", Header, 'give one such as Header\\("X-Customer"\\)'),
    ("identity", {"identityFieldName": "x"}, 'write {"identityFieldName"'),
    ("policies", Policy("p"), f"{LIST} policies="),
    ("policies", "p", f"{LIST} policies="),
    ("policies", ["p"], 'write Policy\\("default"'),
    ("policies", [{"name": "p"}], 'write Policy\\("default"'),
    ("policies", [Policy("p"), Policy("p")], "give each its own name"),
    ("rate_limits", 5, "as in rate_limits="),
    ("rate_limits", ["/a"], "as in rate_limits="),
    ("rate_limits", {"/a": 5}, "as in rate_limits="),
    ("rate_limits", {"/a": "5/minute"}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": 5}}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": "5", "window": "1h"}}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": True, "window": "1h"}}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": 5, "window": 60}}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": 5, "window": "1h", "per": "ip"}}, "as in rate_limits="),
    ("rate_limits", {5: {"limit": 5, "window": "1h"}}, "as in rate_limits="),
    ("rate_limits", {"/a": {"limit": 0, "window": "1h"}}, "from 1"),
    ("rate_limits", {"/a": {"limit": 5, "window": "soon"}}, "write second, minute, hour or day"),
    ("rate_limits", {"": {"limit": 5, "window": "1h"}}, r"rate_limits\[''\]: .* as in rate_limits="),
    ("rate_limits", {"/" + "x" * 100: {"limit": 5, "window": "1h"}}, "up to 100 characters.* as in rate_limits="),
    ("rate_limits", {"/a": {"limit": 5, "window": "60"}}, r"rate_limits\['/a'\]: '60' is not a window"),
    ("rate_limits", '{"/a": {"limit": 5, "window": "1h"}}', "as in rate_limits="),
    ("rate_limits", {"limit": 5, "window": "1h"}, "as in rate_limits="),
    ("rate_limits", {"/a*": {"limit": 5, "window": "1h"}}, "write '/a/\\*'"),
    ("store", "", "this version knows memory://, sqlite://"),
    ("store", "usage.db", "this version knows memory://, sqlite://"),
    ("store", "oracle://host", "this version knows memory://, sqlite://"),
    ("store", "sqlite://usage.db", "write sqlite:///relative.db"),
    ("store", "sqlite:///", "write sqlite:///relative.db"),
    ("store", "sqlite:////nowhere/usage.db", "Make it, or name a file in another folder"),
    ("store", "sqlite:////dev", "is a folder: name a file in it"),
    ("store", "memory://x", "use memory://"),
    ("store", None, 'a URL such as "sqlite:///usagekeeper.db" or an object'),
    ("store", "usage.db", 'as in store="sqlite:///usagekeeper.db"'),
    ("store", MemoryStore, 'a URL such as "sqlite:///usagekeeper.db" or an object'),
    ("counters", MemoryCounters, 'a URL such as "sqlite:///usagekeeper.db" or an object'),
    ("store", object(), 'a URL such as "sqlite:///usagekeeper.db" or an object'),
    ("counters", "", "this version knows memory://, sqlite://"),
    ("counters", "oracle://host", "this version knows memory://, sqlite://"),
    ("counters", "sqlite:///", "write sqlite:///relative.db"),
    ("counters", "sqlite:////nowhere/counters.db", "there is no folder /nowhere"),
    ("counters", None, "or an object"),
    *(("retention", value, 'write "90 days"') for value in ("", "90", "soon", "0 days", "-1 days", "1 fortnight", 90)),
    *(("retention", value, 'write "90 days"') for value in (True, 1.5, timedelta(0), timedelta(-1), "999999 days")),
    *(("trusted_proxies", value, "number of proxies \\(1\\) or a list") for value in (0, -1, True, 1.5, [], [10])),
    ("trusted_proxies", "1", "number of proxies \\(1\\) or a list"),
    ("trusted_proxies", ["proxy"], 'write "10.0.0.0/8" or one address'),
    ("headers", "all", "'both', 'ietf', 'legacy' or 'none'"),
    ("headers", None, "'both', 'ietf', 'legacy' or 'none'"),
    ("on_refusal", {"error": "x"}, "callable, as in on_refusal="),
    ("on_outage", "panic", "'allow' or 'deny'"),
    ("on_outage", None, "'allow' or 'deny'"),
    ("enabled", "perhaps", "as in enabled=False"),
    ("enabled", None, "as in enabled=False"),
    ("clock", 1_700_000_000, "callable, as in clock=time.time"),
    ("clock", None, "callable, as in clock=time.time"),
    ("clock", time.time_ns, "seconds since 1970, .* as in clock=time.time"),
    ("clock", datetime.now, "seconds since 1970, .* as in clock=time.time"),
    ("clock", lambda: float("nan"), "seconds since 1970, and this one says nan, as in clock=time.time"),
    ("clock", lambda zone: 1.0, "called without arguments, .* as in clock=time.time"),
]


def named(option: str, value: Any) -> str:
    unnamed = callable(value) or type(value) in (object, Policy)  # their addresses differ from run to run
    return f"{option}={type(value).__name__ if unnamed else ascii(value)[:40]}"


@pytest.mark.parametrize(
    ("option", "value", "way_out"), [pytest.param(*case, id=named(case[0], case[1])) for case in WRONG]
)
def test_a_wrong_value_is_answered_with_one_sentence_and_the_way_out(option: str, value: Any, way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=way_out) as told:
        UsageKeeper(**{"store": "memory://", option: value})
    sentence = str(told.value)
    assert "\n" not in sentence
    assert not {"Settings", "pydantic", "RateLimitForm"}.intersection(sentence.split())


def test_the_first_of_several_wrong_values_is_told() -> None:
    with pytest.raises(ConfigurationError) as told:
        UsageKeeper(headers="x", enabled="x", store="memory://")  # type: ignore[arg-type]
    assert str(told.value).count("option ") == 1


@pytest.mark.parametrize(
    "form",
    ["/api/*", "GET /api/*", {"url": "/api/*"}, {"method": "*", "url": "/api/*"}, Route("GET", "/api/*")],
    ids=str,
)
def test_a_route_may_be_written_in_four_ways(call: Call[Any], form: Any) -> None:
    call.behind(routes=[form])
    assert (len(call().records), len(call(target="/other").records)) == (1, 0)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_and_tuples_are_alike(kind: type[list[str]] | type[tuple[str, ...]]) -> None:
    assert read_settings({"routes": kind(["/a"])}, {}).routes == ("/a",)
