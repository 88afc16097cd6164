"""Rates: how they are written, and where one stands."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usagekeeper.errors import ConfigurationError
from usagekeeper.rates import LATE, Algorithm, Rate, moment, read_fixed, read_gcra, read_sliding, slide
from usagekeeper.values import SECOND

MINUTE = 60 * SECOND
HALF = 1000 * MINUTE + 30 * SECOND
"""The middle of the thousandth minute."""


# -- writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "seconds", "unit"),
    [
        ("100/hour", 100, 3600, "hour"),
        ("5 per minute", 5, 60, "minute"),
        ("5 PER Minute", 5, 60, "minute"),
        (" 20 / 10 seconds ", 20, 10, "10-second"),
        ("20/10seconds", 20, 10, "10-second"),
        ("1_000_000/day", 1_000_000, 86_400, "day"),
        ("3/s", 3, 1, "second"),
        ("3/sec", 3, 1, "second"),
        ("3/2m", 3, 120, "2-minute"),
        ("3/min", 3, 60, "minute"),
        ("3/h", 3, 3600, "hour"),
        ("3/hr", 3, 3600, "hour"),
        ("3/7 d", 3, 7 * 86_400, "7-day"),
        ("3/1 days", 3, 86_400, "day"),
    ],
)
def test_a_rate_is_read_as_it_is_said(text: str, count: int, seconds: int, unit: str) -> None:
    rate = Rate.parse(text)
    assert (rate.count, rate.seconds, rate.unit, rate.algorithm) == (count, seconds, unit, "gcra")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "5",
        "/minute",
        "5/",
        "-5/minute",
        "1.5/minute",
        "5 minute",
        "__/minute",
        "٥/minute",
        "9" * 5000 + "/day",
    ],
)
def test_what_is_no_rate_is_shown_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match='is not a limit: write "100/hour", "20/10 seconds"'):
        Rate.parse(text)


@pytest.mark.parametrize(
    "text", ["5/fortnight", "5/0 seconds", "5/1.5 hours", "5/minute/2", "5/minute;9/hour", "5/400 days"]
)
def test_what_is_no_window_is_shown_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a window: write second, minute, hour or day"):
        Rate.parse(text)


@pytest.mark.parametrize("window", ["9" * 5000 + " seconds", "31622401 seconds"])
def test_no_window_is_longer_than_a_year(window: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a window"):
        Rate(5, window)


@pytest.mark.parametrize("window", ["week", "month", "3 months", "quarter", "year"])
def test_a_calendar_window_is_said_to_be_one(window: str) -> None:
    with pytest.raises(ConfigurationError, match=r'is a calendar window.*a number of days such as "7 days"'):
        Rate(5, window)


def test_a_rate_of_nothing_says_how_a_route_is_closed() -> None:
    with pytest.raises(ConfigurationError, match="not 0; to close a route, leave it out"):
        Rate.parse("0/minute")


@pytest.mark.parametrize("count", [-1, 0, 10**15, 1.0, True, "5", None])
def test_a_count_is_a_whole_number_that_every_backend_can_hold(count: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"the count of a rate is a whole number from 1 to 10\^15 - 1"):
        Rate(count, "day", "fixed")


@pytest.mark.parametrize("cost", [-1, 10**15, 0.5, False])
def test_a_cost_is_a_whole_number(cost: Any) -> None:
    with pytest.raises(ConfigurationError, match="the cost of a rate is a whole number from 0"):
        Rate(5, "minute", cost=cost)


def test_an_algorithm_is_one_of_three() -> None:
    with pytest.raises(ConfigurationError, match='"gcra", "fixed" or "sliding", not \'token\''):
        Rate(5, "minute", "token")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "seconds", "unit"),
    [
        (1, 1, "second"),
        (90, 90, "90-second"),
        (7200, 7200, "2-hour"),
        (timedelta(days=1), 86_400, "day"),
        (timedelta(minutes=90), 5400, "90-minute"),
    ],
)
def test_a_window_is_named_by_its_largest_unit(window: int | timedelta, seconds: int, unit: str) -> None:
    rate = Rate(5, window)
    assert (rate.seconds, rate.unit, rate.period) == (seconds, unit, seconds * SECOND)


@pytest.mark.parametrize("window", [0, -1, True, 1.5, None, 366 * 86_400 + 1, timedelta(0), timedelta(days=-1)])
def test_a_window_is_whole_seconds_up_to_a_year(window: Any) -> None:
    with pytest.raises(ConfigurationError, match="a window is"):
        Rate(5, window)


def test_a_window_has_no_parts_of_a_second() -> None:
    with pytest.raises(ConfigurationError, match="a window is whole seconds"):
        Rate(5, timedelta(milliseconds=1500))


def test_a_gcra_too_fast_for_microseconds_is_offered_a_fixed_window() -> None:
    assert Rate(100_000, "second").spacing == 10
    with pytest.raises(ConfigurationError, match=r'use Rate\(100001, "second", algorithm="fixed"\)'):
        Rate(100_001, "second")
    assert Rate(100_001, "second", "fixed").count == 100_001


@given(st.integers(1, 100_000), st.integers(1, 86_400))
def test_units_are_never_spaced_closer_than_the_rate_allows(count: int, seconds: int) -> None:
    rate = Rate(count, seconds)
    assert rate.period <= rate.spacing * count < rate.period + count


def test_a_rate_is_a_value() -> None:
    assert Rate(5, "minute") == Rate.parse("5/minute")
    assert len({Rate(5, "minute"), Rate.parse("5/minute"), Rate(6, "minute")}) == 2


# -- standing -------------------------------------------------------------------------------------------


def test_gcra_spaces_its_units() -> None:
    rate = Rate(6, "minute")
    full = read_gcra("n", rate, [HALF + MINUTE], HALF, 1)
    assert full == ("n", False, 6, 0, 10 * SECOND, MINUTE, 10 * SECOND)
    assert read_gcra("n", rate, [HALF + MINUTE], HALF + 25 * SECOND, 1) == ("n", True, 6, 2, 5 * SECOND, 35 * SECOND, 0)
    assert read_gcra("n", rate, [0], HALF, 7) == ("n", False, 6, 6, 0, 0, None)


def test_a_fixed_window_starts_anew_at_its_edge() -> None:
    rate = Rate(6, "minute", "fixed")
    assert read_fixed("n", rate, [1000, 5], HALF, 1) == ("n", True, 6, 1, 30 * SECOND, 30 * SECOND, 0)
    assert read_fixed("n", rate, [1000, 5], HALF, 2) == ("n", False, 6, 1, 30 * SECOND, 30 * SECOND, 30 * SECOND)
    assert read_fixed("n", rate, [1000, 5], HALF, 7).retry_after is None
    assert read_fixed("n", rate, [999, 5], HALF, 6).allowed


def test_a_sliding_window_fades_out() -> None:
    rate = Rate(6, "minute", "sliding")
    assert read_sliding("n", rate, [999, 6, 0], HALF, 4) == ("n", False, 6, 3, 10 * SECOND, 30 * SECOND, 10 * SECOND)
    assert read_sliding("n", rate, [1000, 3, 6], HALF, 1).remaining == 0
    assert read_sliding("n", rate, [1000, 6, 0], HALF, 1).retry_after == 40 * SECOND  # in the next window
    assert read_sliding("n", rate, [1000, 6, 0], HALF, 7).retry_after is None
    assert read_sliding("n", rate, [998, 6, 6], HALF, 6).allowed


def test_what_is_past_a_limit_has_nothing_left() -> None:
    assert read_gcra("n", Rate(6, "minute"), [HALF + 2 * MINUTE], HALF, 1).remaining == 0
    assert read_fixed("n", Rate(6, "minute", "fixed"), [1000, 9], HALF, 1).remaining == 0
    assert read_sliding("n", Rate(6, "minute", "sliding"), [1000, 9, 9], HALF, 1).remaining == 0


@pytest.mark.parametrize("algorithm", ["gcra", "fixed", "sliding"])
def test_a_charge_of_nothing_fits_past_a_limit(algorithm: Algorithm) -> None:
    read = {"gcra": read_gcra, "fixed": read_fixed, "sliding": read_sliding}[algorithm]
    words = [HALF + 2 * MINUTE] if algorithm == "gcra" else [1000, 9, 9]
    assert read("n", Rate(6, "minute", algorithm), words, HALF, 0).allowed


@pytest.mark.parametrize(
    ("now", "judged"),
    [
        pytest.param(1000 * MINUTE, 1000 * MINUTE, id="at the start of the row's window"),
        pytest.param(1000 * MINUTE - 1, 1000 * MINUTE, id="late by a microsecond"),
        pytest.param(1000 * MINUTE - LATE, 1000 * MINUTE, id="as late as can be"),
        pytest.param(1000 * MINUTE - LATE - 1, 1000 * MINUTE - LATE - 1, id="by a clock that was set back"),
        pytest.param(HALF, HALF, id="in the row's window"),
        pytest.param(HALF + MINUTE, HALF + MINUTE, id="after the row's window"),
    ],
)
def test_a_late_charge_is_judged_where_the_row_stands(now: int, judged: int) -> None:
    assert moment(1000, now, MINUTE) == judged


@pytest.mark.parametrize(
    ("index", "used"), [(999, (4, 2)), (1000, (4, 2)), (1001, (0, 4)), (1002, (0, 0)), (5000, (0, 0))]
)
def test_counts_move_on_with_the_windows(index: int, used: tuple[int, int]) -> None:
    assert slide([1000, 4, 2], index) == used
