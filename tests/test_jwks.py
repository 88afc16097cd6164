"""Key sets: one fetch for everybody, bounded in time and size, and nobody waits for a fetch that will never end."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import PATIENCE
from tests.tokens import Issuer, issuing, jwk, key_set
from usagekeeper.jwks import COOL_DOWN, Keys, KeySetError, Table, read_keys


class Timer:
    """Nanoseconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def table(document: bytes) -> Table:
    return {(key["kid"], "ES256"): key for key in read_keys(document)}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(jwk()) as one:
        yield one


def afetch(keys: Keys) -> None:
    asyncio.run(keys.afetch())


HALVES = pytest.mark.parametrize("fetch", [Keys.fetch, afetch], ids=["sync", "async"])


@HALVES
def test_keys_are_there_after_a_fetch(issuer: Issuer, fetch: Callable[[Keys], None]) -> None:
    keys = Keys(issuer.url, table, Timer())
    assert not keys.fresh(0)
    fetch(keys)
    assert keys.fresh(0)
    assert set(keys.table) == {("EC", "ES256")}


@HALVES
def test_a_second_fetch_waits_for_the_cool_down(issuer: Issuer, fetch: Callable[[Keys], None]) -> None:
    timer = Timer()
    keys = Keys(issuer.url, table, timer)
    for seconds in (0, COOL_DOWN - 1, 1, 0):
        timer.advance(seconds)
        fetch(keys)
    assert issuer.asked == 2


@HALVES
def test_an_issuer_that_says_nothing_is_given_up(
    issuer: Issuer, fetch: Callable[[Keys], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usagekeeper.jwks.TIMEOUT", 0.05)
    done = threading.Event()

    def hang() -> tuple[int, dict[str, str], bytes]:
        done.wait(PATIENCE)
        return 500, {}, b""

    issuer.answer = hang
    keys = Keys(issuer.url, table, Timer())
    fetch(keys)
    done.set()
    assert (keys.silent(), keys.under_way(), keys.usable(0)) == (True, False, False)


def test_threads_that_come_together_share_one_fetch(issuer: Issuer) -> None:
    keys = Keys(issuer.url, table, Timer())
    together = threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait(PATIENCE)
        keys.fetch()
        return len(keys.table)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [1] * 8
    assert issuer.asked == 1


def test_a_fetch_that_its_loop_took_along_is_made_anew_after_the_cool_down(issuer: Issuer) -> None:
    timer = Timer()
    keys = Keys(issuer.url, table, timer)
    keys._board()
    assert keys.under_way()
    timer.advance(COOL_DOWN)
    keys.fetch()
    assert (issuer.asked, keys.under_way()) == (1, False)


def test_a_host_that_no_resolver_takes_is_a_failure_like_others() -> None:
    keys = Keys("http://localhost:1/keys", table, Timer())
    for url in ("http://a..b/", f"http://{'a' * 70}.invalid/", "http://localhost:1/keys"):
        keys._url = url
        keys._asked = None
        keys.fetch()
        keys._asked = None
        afetch(keys)
        assert keys.silent()


@pytest.mark.parametrize("document", [b"", b"\xff", b"[]", b"{}", b'{"keys": {}}', b"[" * 100_000])
def test_what_is_no_key_set_is_said(document: bytes) -> None:
    with pytest.raises(KeySetError):
        read_keys(document)


def test_what_is_no_key_in_a_set_is_left_out() -> None:
    assert read_keys(b'{"keys": [1, null, {"kid": "a"}]}') == [{"kid": "a"}]
    assert len(read_keys(key_set(jwk(), jwk("EC2")))) == 2
