"""What all counters must do, as tests to subclass. Keeps out how a backend does it.

A backend's test file names its counters once, and gets these tests for both halves:

    class TestMine(CountersSuite):
        @pytest.fixture
        def counters(self) -> Iterator[Counters]:
            counters = MyCounters(...)      # patient ones: the suite measures no time
            yield counters
            counters.close()

    class TestMineAwaited(AsyncHalf, TestMine):
        pass
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import count
from threading import Barrier
from typing import ClassVar, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usagekeeper.counters.base import AsyncCounters, Counters
from usagekeeper.limits import LimitSet
from usagekeeper.rates import Algorithm, Rate
from usagekeeper.values import (
    ADJUST,
    ALLOCATE,
    CHECK,
    ENFORCE,
    SECOND,
    SHADOW,
    SOFT,
    Charge,
    Kind,
    Mode,
    Operation,
    Spends,
    Words,
)

NOW: Final = 1_800_000_000 * SECOND + 250_000
"""A moment in the first half of its second, minute and hour."""
HOUR: Final = 3600 * SECOND
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("gcra", "fixed", "sliding")

_applications = count()

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
several_examples = settings(
    max_examples=60,
    deadline=None,
    # Every example counts for an application of its own, so that one set of counters serves them all.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)


def limits_of(
    *rates: Rate, application: str | None = None, policy: str = "policy", mode: Mode = ENFORCE, kind: str = "subject"
) -> LimitSet:
    """Limits that nobody else uses, unless they are given the same *application*."""
    if application is None:
        application = f"application {next(_applications)}"
    return LimitSet(application, policy, rates, kind=kind, mode=mode)


def remaining(limits: LimitSet, row: Words, now: int) -> list[int]:
    """The units that each limit has left."""
    return [spend.remaining for spend in limits.read(row, now)]


async def awaited(half: AsyncCounters, operation: Operation) -> Spends:
    """The answer of an async half, whichever way it comes."""
    answer = half.apply(operation)
    return answer if isinstance(answer, Spends) else await answer


class CountersSuite:
    """Subclass it as ``Test…`` and give it a fixture `counters`."""

    persistent: ClassVar[bool] = False
    """Counts outlive `close` and belong to a limit's id: a changed configuration finds them again."""

    @pytest.fixture
    def counters(self) -> Iterator[Counters]:
        """The counters under test, empty."""
        raise NotImplementedError("a suite needs a fixture that yields its counters")

    def apply(self, counters: Counters, operation: Operation) -> Spends:
        """What both halves do in their way."""
        return counters.apply(operation)

    # -- shorthand ------------------------------------------------------------------------------

    def charge(
        self,
        counters: Counters,
        limits: LimitSet,
        cost: int = 1,
        *,
        now: int = NOW,
        kind: Kind = ALLOCATE,
        to: str = "ann",
    ) -> Spends:
        """One charge, alone."""
        return self.apply(counters, Operation([Charge(limits, to, cost)], now, kind))

    def admitted(
        self, counters: Counters, limits: LimitSet, *, now: int = NOW, tries: int = 30, to: str = "ann"
    ) -> int:
        """How many of *tries* units get through."""
        return sum(not self.charge(counters, limits, now=now, to=to).refused for _ in range(tries))

    def left(self, counters: Counters, limits: LimitSet, *, now: int = NOW, to: str = "ann") -> list[int]:
        """What a look at the counters says is left."""
        return remaining(limits, self.charge(counters, limits, 0, now=now, kind=CHECK, to=to).rows[0], now)

    # -- the answer -----------------------------------------------------------------------------

    def test_an_answer_speaks_of_every_charge_in_order(self, counters: Counters) -> None:
        few, many = limits_of(Rate(1, "hour")), limits_of(Rate(9, "hour"), Rate(5, "minute", "sliding"), mode=SHADOW)
        charges = [Charge(few, "ann", 1), Charge(many, "bob", 2)]
        spends = self.apply(counters, Operation(charges, NOW))
        assert (spends.now, spends.refused, spends.fits) == (NOW, False, [True, True])
        assert [len(row) for row in spends.rows] == [few.size, many.size]
        assert remaining(few, spends.rows[0], NOW) == [0]
        assert remaining(many, spends.rows[1], NOW) == [7, 3]

    def test_nothing_to_charge_is_nothing_refused(self, counters: Counters) -> None:
        assert self.apply(counters, Operation([], NOW)) == Spends(NOW, False, [], [])

    def test_a_policy_without_limits_refuses_nothing(self, counters: Counters) -> None:
        assert self.admitted(counters, limits_of()) == 30

    def test_a_second_identical_call_charges_again(self, counters: Counters) -> None:
        limits = limits_of(Rate(5, "minute"))
        operation = Operation([Charge(limits, "ann", 2)], NOW)
        assert [self.apply(counters, operation).refused for _ in range(3)] == [False, False, True]

    # -- exact ----------------------------------------------------------------------------------

    @every_algorithm
    @pytest.mark.parametrize("cost", [1, 10])
    def test_threads_together_get_exactly_the_limit(self, counters: Counters, algorithm: Algorithm, cost: int) -> None:
        limits = limits_of(Rate(100, "hour", algorithm), Rate(100, "day", algorithm))
        threads, tries = 8, 25
        start = Barrier(threads)

        def work() -> int:
            start.wait()
            return sum(not self.charge(counters, limits, cost).refused for _ in range(tries))

        with ThreadPoolExecutor(threads) as pool:
            admitted = sum(done.result() for done in [pool.submit(work) for _ in range(threads)])
        assert admitted == 100 // cost
        assert self.left(counters, limits) == [0, 0]

    @several_examples
    @given(data=st.data())
    def test_the_answers_are_those_of_a_slow_and_plain_model(self, counters: Counters, data: st.DataObject) -> None:
        rates = data.draw(_some_rates)
        limits = limits_of(*rates)
        models = [_MODELS[rate.algorithm](rate) for rate in rates]
        now = NOW
        for step, cost in data.draw(_some_charges):
            now += step
            expected = all(model.fits(now, cost) for model in models)
            assert self.charge(counters, limits, cost, now=now, kind=CHECK).refused is not expected
            assert self.charge(counters, limits, cost, now=now).refused is not expected
            if expected:
                for model in models:
                    model.take(now, cost)

    # -- all or nothing -------------------------------------------------------------------------

    @every_algorithm
    def test_a_refused_charge_changes_no_limit(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(3, "minute", algorithm), Rate(1000, "day", algorithm))
        assert self.admitted(counters, limits, tries=3) == 3
        before = self.charge(counters, limits, 0, kind=CHECK).rows
        for _ in range(5):
            refused = self.charge(counters, limits)
            assert (refused.refused, refused.fits) == (True, [False])
            assert list(map(list, refused.rows)) == list(map(list, before))
        assert list(map(list, self.charge(counters, limits, 0, kind=CHECK).rows)) == list(map(list, before))
        assert self.left(counters, limits) == [0, 997]

    @every_algorithm
    def test_the_order_of_limits_does_not_decide_what_is_charged(
        self, counters: Counters, algorithm: Algorithm
    ) -> None:
        limits = limits_of(Rate(1000, "day", algorithm), Rate(3, "minute", algorithm))
        assert self.admitted(counters, limits, tries=10) == 3
        assert self.left(counters, limits) == [997, 0]

    @every_algorithm
    def test_several_charges_are_all_made_or_none(self, counters: Counters, algorithm: Algorithm) -> None:
        account, address = limits_of(Rate(10, "hour", algorithm)), limits_of(Rate(2, "hour", algorithm), kind="address")
        charges = [Charge(account, "ann", 1), Charge(address, "192.0.2.1", 1)]
        answers = [self.apply(counters, Operation(charges, NOW)) for _ in range(4)]
        assert [spends.refused for spends in answers] == [False, False, True, True]
        assert answers[-1].fits == [True, False]
        assert self.left(counters, account) == [8]
        assert self.left(counters, address, to="192.0.2.1") == [0]

    def test_a_refused_stranger_leaves_nothing_behind(self, counters: Counters) -> None:
        limits = limits_of(Rate(5, "hour"))
        assert self.charge(counters, limits, 6, to="stranger").refused
        assert self.left(counters, limits, to="stranger") == [5]

    # -- modes ----------------------------------------------------------------------------------

    def test_a_shadow_charge_decides_nothing_and_stops_at_its_limit(self, counters: Counters) -> None:
        enforced, shadow = limits_of(Rate(5, "hour")), limits_of(Rate(2, "hour"), mode=SHADOW)
        charges = [Charge(shadow, "ann", 1), Charge(enforced, "ann", 1)]
        answers = [self.apply(counters, Operation(charges, NOW)) for _ in range(4)]
        assert [spends.refused for spends in answers] == [False] * 4
        assert [spends.fits for spends in answers] == [[True, True]] * 2 + [[False, True]] * 2
        assert (self.left(counters, shadow), self.left(counters, enforced)) == ([0], [1])

    def test_a_shadow_charge_counts_apart_from_the_enforced_one(self, counters: Counters) -> None:
        application = f"application {next(_applications)}"
        shadow = limits_of(Rate(5, "hour"), application=application, mode=SHADOW)
        enforced = limits_of(Rate(5, "hour"), application=application)
        assert self.admitted(counters, shadow, tries=3) == 3
        assert (self.left(counters, shadow), self.left(counters, enforced)) == ([2], [5])

    @every_algorithm
    def test_a_soft_charge_counts_past_its_limit_and_says_so(self, counters: Counters, algorithm: Algorithm) -> None:
        soft = limits_of(Rate(2, "hour", algorithm), Rate(9, "day", algorithm), mode=SOFT)
        answers = [self.charge(counters, soft) for _ in range(4)]
        assert [spends.refused for spends in answers] == [False] * 4
        assert [spends.fits for spends in answers] == [[True], [True], [False], [False]]
        assert self.left(counters, soft) == [0, 5]

    def test_a_refusal_charges_neither_shadow_nor_soft(self, counters: Counters) -> None:
        enforced, shadow = limits_of(Rate(1, "hour")), limits_of(Rate(5, "hour"), mode=SHADOW)
        soft = limits_of(Rate(5, "hour"), mode=SOFT)
        charges = [Charge(soft, "ann", 1), Charge(shadow, "ann", 1), Charge(enforced, "ann", 1)]
        assert [self.apply(counters, Operation(charges, NOW)).refused for _ in range(3)] == [False, True, True]
        assert (self.left(counters, soft), self.left(counters, shadow)) == ([4], [4])

    # -- looking and correcting -----------------------------------------------------------------

    @every_algorithm
    def test_a_look_changes_nothing_and_answers_like_a_charge(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(3, "hour", algorithm))
        looks = [self.charge(counters, limits, 3, kind=CHECK) for _ in range(3)]
        assert [(spends.refused, spends.fits) for spends in looks] == [(False, [True])] * 3
        assert self.left(counters, limits) == [3]
        assert not self.charge(counters, limits, 3).refused
        assert self.charge(counters, limits, 1, kind=CHECK).refused

    @every_algorithm
    def test_a_correction_gives_back_and_takes_without_asking(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(5, "hour", algorithm))
        assert self.admitted(counters, limits) == 5
        assert not self.charge(counters, limits, -2, kind=ADJUST).refused
        assert self.left(counters, limits) == [2]
        assert not self.charge(counters, limits, 7, kind=ADJUST).refused
        assert self.left(counters, limits) == [0]
        assert self.charge(counters, limits).refused

    @every_algorithm
    def test_a_correction_never_goes_below_empty(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(5, "hour", algorithm))
        assert self.charge(counters, limits, -100, kind=ADJUST).fits == [True]
        assert self.left(counters, limits) == [5]
        assert self.admitted(counters, limits) == 5

    @every_algorithm
    def test_a_huge_correction_breaks_nothing(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(5, "hour", algorithm), Rate(10**6, "day", algorithm))
        for _ in range(5):
            self.charge(counters, limits, 2**62, kind=ADJUST)
        assert self.charge(counters, limits).refused
        assert self.left(counters, limits) == [0, 0]
        assert self.left(counters, limits, to="bob") == [5, 10**6]

    def test_a_correction_of_several_subjects_is_one(self, counters: Counters) -> None:
        limits = limits_of(Rate(5, "hour"))
        self.apply(counters, Operation([Charge(limits, name, 2) for name in ("ann", "bob")], NOW, ADJUST))
        assert (self.left(counters, limits), self.left(counters, limits, to="bob")) == ([3], [3])

    # -- time -----------------------------------------------------------------------------------

    @every_algorithm
    def test_a_clock_set_back_grants_nothing_and_locks_nobody_out(
        self, counters: Counters, algorithm: Algorithm
    ) -> None:
        limits = limits_of(Rate(6, "minute", algorithm))
        assert self.admitted(counters, limits) == 6
        then = NOW - HOUR
        assert self.admitted(counters, limits, now=then) == 0
        assert self.admitted(counters, limits, now=then + 90 * SECOND) >= 1
        assert self.admitted(counters, limits, now=then + 300 * SECOND) == 6

    @every_algorithm
    def test_a_clock_set_back_frees_a_shadow_too(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(6, "minute", algorithm), mode=SHADOW)
        for _ in range(6):
            assert self.charge(counters, limits).fits == [True]
        then = NOW - HOUR
        assert self.charge(counters, limits, now=then).fits == [False]
        assert self.charge(counters, limits, now=then + 300 * SECOND).fits == [True]

    @every_algorithm
    def test_a_clock_set_forward_grants_one_window_at_most(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(6, "minute", algorithm))
        assert self.admitted(counters, limits) == 6
        assert self.admitted(counters, limits, now=NOW + HOUR) == 6
        assert self.admitted(counters, limits) == 0  # and back again
        assert self.admitted(counters, limits, now=NOW + 300 * SECOND) == 6

    @every_algorithm
    def test_charges_that_arrive_late_grant_nothing(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(10, "second", algorithm))
        edge = (NOW // SECOND + 1) * SECOND
        admitted = 0
        for _ in range(20):  # two processes, one of which read the clock just before the next window
            admitted += self.admitted(counters, limits, now=edge, tries=1)
            admitted += self.admitted(counters, limits, now=edge - 20, tries=1)
        assert admitted == 10

    @every_algorithm
    def test_when_a_row_expires_it_is_like_new(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(4, "minute", algorithm), Rate(20, "hour", algorithm))
        assert self.admitted(counters, limits) == 4
        ends = limits.expires(self.charge(counters, limits, 0, kind=CHECK).rows[0])
        assert self.left(counters, limits, now=ends) == [4, 20]
        assert self.admitted(counters, limits, now=ends) == 4

    # -- keys -----------------------------------------------------------------------------------

    @several_examples
    @given(data=st.data())
    def test_no_two_keys_collide(self, counters: Counters, data: st.DataObject) -> None:
        own = f"{next(_applications)}"
        one, other = data.draw(_two_keys)
        first, second = (
            limits_of(Rate(3, "hour"), application=own + a, policy=p, kind=k) for a, p, k, _ in (one, other)
        )
        assert self.charge(counters, first, 2, to=one[3]).refused is False
        assert self.left(counters, first, to=one[3]) == [1]
        assert self.left(counters, second, to=other[3]) == [3]

    def test_long_subjects_are_told_apart(self, counters: Counters) -> None:
        limits = limits_of(Rate(3, "hour"))
        long = "x" * 100_000
        assert self.admitted(counters, limits, to=long + "a") == 3
        assert self.admitted(counters, limits, to=long + "b") == 3
        assert self.admitted(counters, limits, to=long + "a") == 0

    # -- costs and many limits ------------------------------------------------------------------

    @every_algorithm
    def test_a_cost_of_nothing_fits_always(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(2, "hour", algorithm))
        assert not self.charge(counters, limits, 0).refused
        assert self.admitted(counters, limits) == 2
        self.charge(counters, limits, 5, kind=ADJUST)
        assert not self.charge(counters, limits, 0).refused
        assert self.charge(counters, limits).refused

    @every_algorithm
    def test_a_cost_above_the_limit_never_fits(self, counters: Counters, algorithm: Algorithm) -> None:
        limits = limits_of(Rate(5, "minute", algorithm))
        refused = self.charge(counters, limits, 6)
        assert refused.refused
        assert [spend.retry_after for spend in limits.read(refused.rows[0], NOW, 6)] == [None]
        assert self.charge(counters, limits, 6, now=NOW + HOUR).refused
        assert self.left(counters, limits, now=NOW + HOUR) == [5]

    def test_a_limit_with_a_cost_of_its_own_is_charged_that(self, counters: Counters) -> None:
        limits = limits_of(Rate(3, "hour", name="requests", cost=1), Rate(100, "day", name="tokens"))
        assert not self.charge(counters, limits, 40).refused
        assert not self.charge(counters, limits, 20).refused
        assert self.left(counters, limits) == [1, 40]
        self.charge(counters, limits, -20, kind=ADJUST)
        assert self.left(counters, limits) == [2, 60]

    def test_twenty_limits_are_one_operation(self, counters: Counters) -> None:
        rates = [Rate(3 + n, f"{n + 1} hours", ALGORITHMS[n % 3]) for n in range(20)]
        limits = limits_of(*rates)
        assert self.admitted(counters, limits, tries=10) == 3
        assert self.left(counters, limits) == list(range(20))

    # -- counters that outlive the process ------------------------------------------------------

    def test_counts_outlive_closing(self, counters: Counters) -> None:
        self._needs_persistence()
        limits = limits_of(Rate(5, "hour"))
        assert self.admitted(counters, limits, tries=3) == 3
        counters.close()
        counters.close()
        assert self.left(counters, limits) == [2]

    def test_a_changed_amount_keeps_what_was_used(self, counters: Counters) -> None:
        self._needs_persistence()
        application = f"application {next(_applications)}"
        smaller, larger = (limits_of(Rate(n, "hour", "fixed"), application=application) for n in (5, 9))
        assert self.admitted(counters, smaller) == 5
        assert self.left(counters, larger) == [4]
        assert self.admitted(counters, larger) == 4
        assert self.charge(counters, smaller).refused

    def test_reordered_limits_keep_their_counts(self, counters: Counters) -> None:
        self._needs_persistence()
        application = f"application {next(_applications)}"
        rates = [Rate(10, "minute"), Rate(20, "hour", "fixed"), Rate(30, "day", "sliding")]
        forward, backward = (limits_of(*order, application=application) for order in (rates, rates[::-1]))
        assert self.admitted(counters, forward, tries=4) == 4
        assert self.left(counters, backward) == [26, 16, 6]
        assert self.admitted(counters, backward, tries=1) == 1
        assert self.left(counters, forward) == [5, 15, 25]

    def test_an_added_limit_starts_from_nothing_and_disturbs_no_other(self, counters: Counters) -> None:
        self._needs_persistence()
        application = f"application {next(_applications)}"
        minute, hour = Rate(10, "minute"), Rate(20, "hour", "fixed")
        before, after = limits_of(minute, application=application), limits_of(hour, minute, application=application)
        assert self.admitted(counters, before, tries=4) == 4
        assert self.left(counters, after) == [20, 6]

    def test_a_removed_limit_leaves_the_others_their_counts(self, counters: Counters) -> None:
        self._needs_persistence()
        application = f"application {next(_applications)}"
        minute, hour = Rate(10, "minute"), Rate(20, "hour", "fixed")
        before, after = limits_of(hour, minute, application=application), limits_of(minute, application=application)
        assert self.admitted(counters, before, tries=4) == 4
        assert self.admitted(counters, after, tries=1) == 1
        assert self.left(counters, after) == [5]

    def _needs_persistence(self) -> None:
        if not self.persistent:
            pytest.skip("these counters do not outlive their process")


class AsyncHalf:
    """Mixed into a suite, before it: the same tests through `Counters.async_half`."""

    def apply(self, counters: Counters, operation: Operation) -> Spends:
        """Awaited, on a loop of its own."""
        return asyncio.run(awaited(counters.async_half(), operation))

    def test_tasks_together_get_exactly_the_limit(self, counters: Counters) -> None:
        limits = limits_of(Rate(100, "hour"), Rate(100, "day", "fixed"))
        operation = Operation([Charge(limits, "ann", 1)], NOW)

        async def work() -> list[Spends]:
            half = counters.async_half()
            return await asyncio.gather(*(awaited(half, operation) for _ in range(300)))

        assert sum(not spends.refused for spends in asyncio.run(work())) == 100

    def test_both_halves_count_in_one_place(self, counters: Counters) -> None:
        limits = limits_of(Rate(2, "hour"))
        operation = Operation([Charge(limits, "ann", 1)], NOW)
        assert not counters.apply(operation).refused
        assert not self.apply(counters, operation).refused
        assert counters.apply(operation).refused
        assert self.apply(counters, operation).refused


# -- the model: what each algorithm promises, written for reading --------------------------------


class _Bucket:
    """gcra: a bucket of *count* units that leaks one each spacing."""

    def __init__(self, rate: Rate) -> None:
        self.size = rate.count
        self.leak = Fraction(1, -(-rate.seconds * SECOND // rate.count))  # whole microseconds, rounded up
        self.level, self.at = Fraction(0), 0

    def _now(self, now: int) -> Fraction:
        return max(Fraction(0), self.level - (now - self.at) * self.leak)

    def fits(self, now: int, cost: int) -> bool:
        return cost == 0 or self._now(now) + cost <= self.size

    def take(self, now: int, cost: int) -> None:
        self.level, self.at = self._now(now) + cost, now


class _Windows:
    """fixed and sliding: what was used in each window since the epoch."""

    def __init__(self, rate: Rate) -> None:
        self.size, self.period = rate.count, rate.seconds * SECOND
        self.overlap = int(rate.algorithm == "sliding")
        self.used: dict[int, int] = {}

    def fits(self, now: int, cost: int) -> bool:
        window, gone = divmod(now, self.period)
        before = self.overlap * self.used.get(window - 1, 0) * (1 - Fraction(gone, self.period))
        return cost == 0 or self.used.get(window, 0) + before + cost <= self.size

    def take(self, now: int, cost: int) -> None:
        window = now // self.period
        self.used[window] = self.used.get(window, 0) + cost


_MODELS: Final[dict[str, Callable[[Rate], _Bucket | _Windows]]] = {
    "gcra": _Bucket,
    "fixed": _Windows,
    "sliding": _Windows,
}


def _distinct(rates: Sequence[tuple[int, int, Algorithm]]) -> list[Rate]:
    windows = {(seconds, algorithm): number for number, seconds, algorithm in rates}
    return [Rate(n, s, algorithm, name=f"{s} {algorithm}") for (s, algorithm), n in windows.items()]


_some_rates = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 7, 60]), st.sampled_from(ALGORITHMS)), min_size=1, max_size=3
).map(_distinct)
_some_charges = st.lists(
    st.tuples(
        st.one_of(
            st.just(0), st.integers(0, SECOND), st.integers(0, 70 * SECOND), st.sampled_from([SECOND, 7 * SECOND])
        ),
        st.integers(0, 13),
    ),
    min_size=1,
    max_size=40,
)


def _cut(text: str, cuts: tuple[int, int, int]) -> tuple[str, ...]:
    first, second, third = sorted(cuts)
    return text[:first], text[first:second], text[second:third], text[third:]


_hostile = st.one_of(
    st.sampled_from(["", "\x00", "a:b", ":", "/", "|", "\ud800", "é", "e\u0301", "\U0001f511", "0"]),
    st.text(st.characters(), max_size=8),
    st.text("ab:|\x00\x01", max_size=60),
)
_cuts = st.tuples(*[st.integers(0, 8)] * 3)
_two_keys = st.one_of(
    st.tuples(*[st.tuples(_hostile, _hostile, _hostile, _hostile)] * 2),
    st.builds(lambda text, one, other: (_cut(text, one), _cut(text, other)), _hostile, _cuts, _cuts),
).filter(lambda keys: keys[0] != keys[1])
