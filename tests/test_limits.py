"""The limits of a policy: charged all or none, told truly, and never passed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usagekeeper.errors import ConfigurationError
from usagekeeper.limits import LimitSet, standing, written_standing
from usagekeeper.rates import LATE, Algorithm, Rate
from usagekeeper.values import SECOND, SHADOW, SOFT, Limits, Words

NOW = 1_800_000_000 * SECOND + 250_000
MINUTE = 60 * SECOND
ALGORITHMS: Sequence[Algorithm] = ("gcra", "fixed", "sliding")

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
rates = st.builds(
    Rate,
    st.integers(1, 20) | st.integers(1, 100_000),
    st.sampled_from([1, 2, 7, 60, 3600]),
    st.sampled_from(ALGORITHMS),
)
costs = st.integers(1, 6) | st.integers(0, 30)
steps = (
    st.just(0) | st.integers(0, SECOND) | st.integers(0, 100 * SECOND) | st.sampled_from([SECOND, 7 * SECOND, MINUTE])
)
charges = st.lists(st.tuples(steps, costs), min_size=1, max_size=40)


def limits_of(*rates: Rate) -> LimitSet:
    return LimitSet("app", "policy", rates)


def empty(limits: LimitSet) -> Words:
    return [0] * limits.size


def charged(limits: LimitSet, charges: Sequence[tuple[int, int]]) -> tuple[Words, int, list[tuple[int, int]]]:
    """The row and the moment after *charges* (time since the last one, cost), and the admitted ones."""
    row, now, admitted = empty(limits), NOW, []
    for step, cost in charges:
        now += step
        after = limits.allocate(row, now, cost)
        if after is not None:
            row = after
            admitted.append((now, cost))
    return row, now, admitted


# -- never above the bound ------------------------------------------------------------------------


@given(rates, charges)
def test_no_stretch_of_time_passes_the_bound_of_its_algorithm(rate: Rate, charges: list[tuple[int, int]]) -> None:
    _, _, admitted = charged(limits_of(rate), charges)
    for position, (begin, _) in enumerate(admitted):
        taken = 0
        for now, cost in admitted[position:]:
            taken += cost
            if rate.algorithm == "gcra":
                assert taken <= rate.count + Fraction(now - begin, rate.spacing)
            elif now // rate.period == begin // rate.period:
                assert taken <= rate.count


@given(rates, charges)
def test_a_sliding_window_is_never_above_its_weighted_bound(rate: Rate, charges: list[tuple[int, int]]) -> None:
    rate = Rate(rate.count, rate.seconds, "sliding")
    _, _, admitted = charged(limits_of(rate), charges)
    for last, (now, cost) in enumerate(admitted):
        index, gone = divmod(now, rate.period)
        taken = [Fraction(0), Fraction(0)]
        for then, units in admitted[: last + 1]:
            if index - then // rate.period < 2:
                taken[index - then // rate.period] += units
        assert not cost or taken[0] + taken[1] * (1 - Fraction(gone, rate.period)) <= rate.count


@every_algorithm
@given(data=st.data())
def test_late_charges_grant_no_more_than_their_lateness(algorithm: Algorithm, data: st.DataObject) -> None:
    rate = Rate(data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 2, 60])), algorithm)
    limits = limits_of(rate)
    row, now, admitted, used = empty(limits), NOW, list[tuple[int, int]](), dict[int, int]()
    for step, cost in data.draw(charges):
        now += step
        read = now - data.draw(st.integers(0, LATE))  # what the clock said some time ago
        after = limits.allocate(row, read, cost)
        if after is not None:
            assert after[0] >= row[0]  # neither an arrival nor a window goes back
            row = after
            admitted.append((now, cost))
            used[row[0]] = used.get(row[0], 0) + cost
    if algorithm == "gcra":
        for position, (begin, _) in enumerate(admitted):
            taken = sum(cost for _, cost in admitted[position:])
            assert taken <= rate.count + Fraction(admitted[-1][0] - begin + LATE, rate.spacing)
    else:
        assert max(used.values(), default=0) <= rate.count


@given(st.lists(rates, min_size=1, max_size=4, unique_by=lambda rate: (rate.algorithm, rate.seconds)), charges)
def test_limits_are_charged_all_or_none(rates: list[Rate], charges: list[tuple[int, int]]) -> None:
    rates = [Rate(rate.count, rate.seconds, rate.algorithm, name=f"{rate.algorithm} {rate.seconds}") for rate in rates]
    together, alone = limits_of(*rates), [limits_of(rate) for rate in rates]
    row, rows, now = empty(together), [empty(limits) for limits in alone], NOW
    for step, cost in charges:
        now += step
        after = together.allocate(row, now, cost)
        separately = [limits.allocate(words, now, cost) for limits, words in zip(alone, rows, strict=True)]
        assert (after is None) == (None in separately)
        if after is not None:
            row = after
            rows = [words for words in separately if words is not None]
            assert list(after) == [word for words in rows for word in words]


# -- told truly -----------------------------------------------------------------------------------


@given(rates, charges, steps, costs)
def test_what_is_read_is_what_happens(rate: Rate, before: list[tuple[int, int]], step: int, cost: int) -> None:
    limits = limits_of(rate)
    row, now, _ = charged(limits, before)
    now += step
    (spend,) = limits.read(row, now, cost)
    assert spend.allowed == (limits.allocate(row, now, cost) is not None)
    assert spend.allowed == (spend.retry_after == 0)
    assert limits.allocate(row, now, spend.remaining) is not None
    assert limits.allocate(row, now, spend.remaining + 1) is None
    assert (spend.retry_after is None) == (cost > rate.count)


@given(rates, charges, steps, costs, st.integers(-30, 60))
def test_a_told_wait_is_as_long_as_needed_and_no_longer(
    rate: Rate, before: list[tuple[int, int]], step: int, cost: int, correction: int
) -> None:
    limits = limits_of(rate)
    row, now, _ = charged(limits, before)
    now += step
    row = limits.force(row, now, correction)
    (spend,) = limits.read(row, now, cost)
    if spend.retry_after:
        slack = 1 if correction > 0 and rate.algorithm == "gcra" else 0
        assert limits.allocate(row, now + spend.retry_after + slack, cost) is not None
        assert limits.allocate(row, now + spend.retry_after - 1, cost) is None
    if spend.remaining < rate.count:
        assert limits.read(row, now + spend.more_after + 1)[0].remaining > spend.remaining
        assert limits.read(row, now + spend.more_after - 1)[0].remaining == spend.remaining
        assert limits.read(row, now + spend.reset_after + 1)[0].remaining == rate.count
        assert limits.read(row, now + spend.reset_after + 1)[0].reset_after in (0, rate.period - 1)


@given(st.lists(rates, min_size=1, max_size=4, unique_by=lambda rate: rate.unit), charges, steps)
def test_what_clients_are_told_is_what_is_read(rates: list[Rate], before: list[tuple[int, int]], step: int) -> None:
    limits = limits_of(*rates)
    row, now, _ = charged(limits, before)
    tell = written_standing(tuple(limits.faces(0)), (limits.size,), charged=False)
    for moment in (now, now + step, now - step):
        spends = limits.read(row, moment)
        assert tell([row], moment) == standing(limits.faces(0), [row], moment)
        told, least, tightest, whole = standing(limits.faces(0), [row], moment)
        expected = []
        for face, spend in zip(limits.faces(0), spends, strict=True):
            expected.append(spend.remaining)
            if not face[-1]:
                expected.append(_seconds(spend.more_after))
            assert standing([face], [row], moment)[3] == _seconds(moment + spend.reset_after)
        assert list(told) == expected
        assert whole == _seconds(moment + spends[tightest].reset_after)
        assert least == min(spend.remaining for spend in spends)
        assert tightest == [spend.remaining for spend in spends].index(least)


@given(st.lists(rates, min_size=1, max_size=4, unique_by=lambda rate: rate.unit), charges, costs)
def test_after_a_charge_the_short_way_tells_the_same(
    rates: list[Rate], before: list[tuple[int, int]], cost: int
) -> None:
    limits = limits_of(*(rate for rate in rates if rate.algorithm != "sliding"), Rate(30, "day"))
    row, now, _ = charged(limits, before)
    after = limits.allocate(row, now, cost)
    if after is not None:
        faces = tuple(limits.faces(1))
        tell = written_standing(faces, (None, limits.size), charged=True)
        assert tell([(), after], now) == standing(faces, [(), after], now)


@given(st.lists(rates, min_size=1, max_size=4, unique_by=lambda rate: rate.unit), charges, costs, steps)
def test_written_out_a_charge_is_what_the_loop_makes_of_it(
    rates: list[Rate], before: list[tuple[int, int]], cost: int, back: int
) -> None:
    limits = limits_of(*rates)
    row, now, _ = charged(limits, before)
    for moment in (now, now - back, now + back):
        expected = limits._walk(row, moment, cost)
        after = limits.allocate(row, moment, cost)
        assert (after and list(after)) == expected


def _seconds(microseconds: int) -> int:
    return -(-microseconds // SECOND)


# -- forced ---------------------------------------------------------------------------------------


@given(rates, charges, st.integers(-40, -1))
def test_what_is_given_back_can_be_used_and_no_more(rate: Rate, before: list[tuple[int, int]], correction: int) -> None:
    limits = limits_of(rate)
    row, now, _ = charged(limits, before)
    (then,) = limits.read(row, now)
    (given_back,) = limits.read(limits.force(row, now, correction), now)
    assert then.remaining <= given_back.remaining <= min(rate.count, then.remaining - correction)


@given(rates, charges, st.integers(0, 40))
def test_what_fits_is_forced_like_a_charge(rate: Rate, before: list[tuple[int, int]], cost: int) -> None:
    limits = limits_of(rate)
    row, now, _ = charged(limits, before)
    after = limits.allocate(row, now, cost)
    forced = limits.force(row, now, cost)
    if after is not None:
        assert forced == list(after)
    assert limits.passed(forced, now) == (() if after is not None else limits.names)


@every_algorithm
def test_what_is_forced_past_a_limit_is_known_to_be(algorithm: Algorithm) -> None:
    limits = limits_of(Rate(3, "minute", algorithm), Rate(9, "hour", algorithm))
    row = limits.force(empty(limits), NOW, 5)
    assert [spend.remaining for spend in limits.read(row, NOW)] == [0, 4]
    assert limits.passed(row, NOW) == ("policy-minute",)


def test_a_debt_of_a_gcra_is_no_longer_than_its_window() -> None:
    limits = limits_of(Rate(6, "minute"))
    row = limits.force(limits.force(empty(limits), NOW, 1000), NOW, 1000)
    assert limits.allocate(row, NOW + 10 * SECOND, 1) is None
    assert limits.allocate(row, NOW + 10 * SECOND + 1, 1) is not None


@every_algorithm
def test_no_correction_grows_beyond_64_bits(algorithm: Algorithm) -> None:
    limits = limits_of(Rate(6, "minute", algorithm))
    row: Words = empty(limits)
    for _ in range(10):
        row = limits.force(row, NOW, 2**62)
    assert max(row) < 2**63
    assert limits.expires(row) < 2**63


@every_algorithm
def test_late_corrections_change_no_window_but_their_own(algorithm: Algorithm) -> None:
    limits, edge = limits_of(Rate(6, "second", algorithm)), (NOW // SECOND + 1) * SECOND
    row = limits.allocate(empty(limits), edge, 6)
    assert row is not None
    late = limits.force(row, edge - 1000, -2)
    assert [spend.remaining for spend in limits.read(late, edge)] == [2]


def test_a_cost_of_its_own_is_charged_and_given_back_whatever_the_charge() -> None:
    limits = limits_of(Rate(9, "minute", name="requests", cost=1), Rate(9, "minute", "fixed", name="tokens"))

    def left(row: Words) -> list[int]:
        return [spend.remaining for spend in limits.read(row, NOW)]

    row = limits.allocate(empty(limits), NOW, 5)
    assert row is not None
    assert left(row) == [8, 4]
    row = limits.force(row, NOW, 3)
    assert left(row) == [7, 1]
    assert left(limits.force(row, NOW, -3)) == [8, 4]
    assert [spend.allowed for spend in limits.read(row, NOW, 3)] == [True, False]


def test_a_limit_with_a_cost_of_its_own_refuses_a_free_charge_too() -> None:
    limits = limits_of(Rate(1, "minute", name="requests", cost=1))
    row = limits.allocate(empty(limits), NOW, 0)
    assert row is not None
    assert limits.allocate(row, NOW, 0) is None
    assert [spend.allowed for spend in limits.read(row, NOW, 0)] == [False]
    assert [spend.allowed for spend in limits.read(row, NOW)] == [True]


# -- forgotten and mended -------------------------------------------------------------------------


@given(rates, charges, steps)
def test_when_a_row_expires_it_reads_like_an_unknown_one(rate: Rate, before: list[tuple[int, int]], step: int) -> None:
    limits = limits_of(rate)
    row, _, admitted = charged(limits, before)
    ends = limits.expires(row)
    assert limits.read(row, ends - LATE + step) == limits.read(empty(limits), ends - LATE + step)
    if any(cost for _, cost in admitted):
        assert ends > admitted[0][0]


@every_algorithm
def test_a_row_is_kept_as_long_as_it_says_something(algorithm: Algorithm) -> None:
    limits = limits_of(Rate(6, "minute", algorithm))
    row = limits.allocate(empty(limits), NOW, 6)
    assert row is not None
    last = limits.expires(row) - LATE - 1
    assert limits.read(row, last) != limits.read(empty(limits), last)


@every_algorithm
def test_a_row_of_the_present_needs_no_mending(algorithm: Algorithm) -> None:
    limits = limits_of(Rate(6, "minute", algorithm))
    row = limits.allocate(empty(limits), NOW, 6)
    assert row is not None
    assert limits.mend(row, NOW) is None
    assert limits.mend(row, NOW - LATE) is None
    assert limits.mend(limits.force(row, NOW, 99), NOW) is None


@every_algorithm
@given(back=st.integers(2 * MINUTE, 10**6 * MINUTE))
def test_a_row_is_mended_to_what_it_said(algorithm: Algorithm, back: int) -> None:
    limits = limits_of(Rate(6, "minute", algorithm))
    row = limits.allocate(empty(limits), NOW, 6)
    assert row is not None
    mended = limits.mend(row, NOW - back)
    assert mended is not None
    assert limits.read(mended, NOW - back) == limits.read(row, NOW - back)
    assert limits.mend(mended, NOW - back) is None
    assert limits.allocate(mended, NOW - back + 2 * MINUTE, 6) is not None


# -- ids and names --------------------------------------------------------------------------------


def test_an_id_does_not_depend_on_amount_position_or_wording() -> None:
    one = limits_of(Rate(5, "minute"), Rate(9, "hour", "fixed"))
    other = limits_of(Rate(7, "60 minutes", "fixed", cost=3), Rate(8, 60))
    assert one.ids == other.ids[::-1]
    assert {len(each) for each in one.ids} == {8}


def test_an_id_depends_on_what_a_limit_is() -> None:
    minute = Rate(5, "minute")
    different = [
        limits_of(minute),
        LimitSet("app", "other", [minute]),
        limits_of(Rate(5, "minute", "fixed")),
        limits_of(Rate(5, "minute", "sliding")),
        limits_of(Rate(5, "2 minutes")),
        limits_of(Rate(5, "minute", name="calls")),
    ]
    assert len({limits.ids for limits in different}) == len(different)


def test_ids_stay_what_they_are_in_files_from_before() -> None:
    limits = limits_of(Rate(5, "minute"), Rate(9, "hour", "fixed", name="\ud800"))
    assert [each.hex() for each in limits.ids] == ["8c1ebea7571dd34a", "54a54a76bd50cc22"]


@pytest.mark.parametrize(
    ("twice", "sentence"),
    [
        ((Rate(5, "minute"), Rate(9, "minute", "fixed")), "two limits called 'policy-minute'.*give one its own"),
        ((Rate(5, "minute"), Rate(9, "60 seconds")), "over the same window, 'policy-minute' and 'policy-60-second'"),
    ],
)
def test_limits_that_cannot_be_told_apart_are_refused(twice: Sequence[Rate], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        limits_of(*twice)


def test_a_shadow_has_a_head_of_its_own_and_a_soft_one_has_not() -> None:
    heads = [LimitSet("app", "policy", [], mode=mode).head for mode in ("enforce", SOFT, SHADOW)]
    assert heads[0] == heads[1] == ("app", "policy", "subject", "enforce")
    assert heads[2] == ("app", "policy", "subject", "shadow")
    assert LimitSet("app", "policy", [], kind="address").head[2] == "address"


def test_a_limit_set_is_what_counters_ask_for() -> None:
    limits: Limits = limits_of(Rate(5, "minute"), Rate(9, "hour", "fixed"), Rate(9, "day", "sliding"))
    assert (limits.sizes, limits.size) == ((1, 2, 3), 6)
    assert (
        repr(limits) == "LimitSet('app', 'policy', 'subject', 'enforce', 'policy-minute', 'policy-hour', 'policy-day')"
    )
