"""Which public keys an issuer has now: its key set, fetched over HTTP when asked for and kept for minutes.

No thread, no connection that is kept, nothing opened at construction. One fetch at a time and one within ten seconds,
however many requests name keys that nobody knows; requests whose keys are known never wait for it. While the issuer
does not answer, the keys of before are used for an hour.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from usagekeeper.errors import ConfigurationError, UsageError

LIFETIME: Final = 300
"""Seconds after which the set is fetched again: as long is a withdrawn key accepted."""
GRACE: Final = 3600
"""Seconds beyond that for which the keys of before are used while no fetch succeeds."""
COOL_DOWN: Final = 10
"""Seconds between two fetches, whatever they brought."""
TIMEOUT: Final = 3.0
"""Seconds that a fetch may take."""
LARGEST: Final = 262_144
"""Bytes of a key set."""
MOST: Final = 100
"""Keys of a set."""

_SECOND: Final = 1_000_000_000
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_LOG: Final = logging.getLogger("usagekeeper")

Jwk = Mapping[str, Any]
Table = Mapping[tuple[str, str], Any]
"""A key for each (kid, algorithm)."""


class KeySetError(UsageError):
    """What the issuer answered is no key set."""


def read_keys(document: bytes) -> list[Jwk]:
    """The keys of a JWK set (RFC 7517, section 5); raises `KeySetError`."""
    try:
        found = json.loads(document.decode())
    except (ValueError, RecursionError):
        raise KeySetError("the answer is not JSON") from None
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise KeySetError('the answer has no list of "keys"')
    if len(keys) > MOST:
        raise KeySetError(f"the answer has {len(keys)} keys, more than {MOST}")
    return [key for key in keys if isinstance(key, dict)]


class Keys:
    """The keys at *url*, each made usable by *read*. Times are those of *timer*, in nanoseconds."""

    def __init__(self, url: str, read: Callable[[bytes], Table], timer: Callable[[], int]) -> None:
        self._url = url
        self._read = read
        self._timer = timer
        self._http = _client()
        # Reading the certificates takes 10 ms, which no event loop should wait for.
        self._trust = self._http.create_ssl_context() if url.startswith("https:") else True
        self.table: Table = {}
        self._fetched: int | None = None
        """When the table was asked for."""
        self._asked: int | None = None
        """When the latest fetch began."""
        self._answered = True
        """Whether it succeeded."""
        self.drop()

    def drop(self) -> None:
        """Forget what is under way: in a forked child nobody will end it."""
        self._lock = threading.Lock()
        self._flight: Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what is known, without waiting ---------------------------------------------------------------------------

    def fresh(self, now: int) -> bool:
        """Whether the table needs no look at the issuer."""
        return self._fetched is not None and 0 <= now - self._fetched < LIFETIME * _SECOND

    def usable(self, now: int) -> bool:
        """Whether the table may be used while the issuer cannot be asked."""
        return self._fetched is not None and now - self._fetched < (LIFETIME + GRACE) * _SECOND

    def may_ask(self, now: int) -> bool:
        """Whether a fetch may begin."""
        return self._asked is None or not 0 <= now - self._asked < COOL_DOWN * _SECOND

    def under_way(self) -> bool:
        """Whether somebody fetches the keys at the moment."""
        flight = self._flight
        return flight is not None and not flight.done()

    def silent(self) -> bool:
        """Whether the latest fetch failed."""
        return not self._answered

    def retry_after(self, now: int) -> int:
        """Whole seconds until the issuer is asked again."""
        left = COOL_DOWN * _SECOND - (now - self._asked) if self._asked is not None else 0
        return min(max(-(-left // _SECOND), 1), COOL_DOWN)

    # -- fetching -------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Fetch the keys, or wait for whoever does already."""
        flight, ours = self._board()
        if flight is None:
            return
        if not ours:
            wait_for([flight], TIMEOUT + 1)
            return
        with self._flying(flight):
            self._land(self._get())

    async def afetch(self) -> None:
        """The same, on a running loop. A client that leaves does not end the fetch that others wait for."""
        flight, ours = self._board()
        if flight is None:
            return
        if ours:
            task = asyncio.get_running_loop().create_task(self._fly(flight))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.wait([asyncio.wrap_future(flight)], timeout=TIMEOUT + 1)

    def _board(self) -> tuple[Future[None] | None, bool]:
        """The fetch to wait for, and whether it is ours to make; None where none may begin."""
        with self._lock:
            now = self._timer()
            if not self.may_ask(now):
                return (self._flight if self.under_way() else None), False
            # One that is still under way after so long belongs to a loop that was stopped.
            self._asked = now
            self._flight = Future()
            return self._flight, True

    async def _fly(self, flight: Future[None]) -> None:
        with self._flying(flight):
            self._land(await self._aget())

    @contextmanager
    def _flying(self, flight: Future[None]) -> Iterator[None]:
        self._answered = False
        try:
            yield
            self._answered = True
        except (self._http.HTTPError, self._http.InvalidURL, KeySetError, OSError, UnicodeError) as error:
            _LOG.warning("the keys at %s could not be fetched: %s: %s", self._url, type(error).__name__, error)
        finally:
            flight.set_result(None)

    def _land(self, document: bytes) -> None:
        table = self._read(document)
        if not table:
            raise KeySetError("the answer has no key for these algorithms")
        self.table, self._fetched = table, self._asked

    def _get(self) -> bytes:
        ends = time.monotonic() + TIMEOUT
        body = bytearray()
        with (
            self._http.Client(verify=self._trust, timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream("GET", self._url, headers=_HEADERS) as response,
        ):
            _check(response)
            for piece in response.iter_raw():
                _add(body, piece)
                if time.monotonic() > ends:
                    raise TimeoutError(f"not whole after {TIMEOUT:g} seconds")
        return bytes(body)

    async def _aget(self) -> bytes:
        body = bytearray()
        async with (
            asyncio.timeout(TIMEOUT),
            self._http.AsyncClient(verify=self._trust, timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream("GET", self._url, headers=_HEADERS) as response,
        ):
            _check(response)
            async for piece in response.aiter_raw():
                _add(body, piece)
        return bytes(body)


def _check(response: Any) -> None:
    if response.status_code != 200:
        raise KeySetError(f"the answer is {response.status_code}, and redirects are not followed")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise KeySetError("the answer is compressed though it was not asked to be")


def _add(body: bytearray, piece: bytes) -> None:
    body += piece
    if len(body) > LARGEST:
        raise KeySetError(f"the answer is larger than {LARGEST} bytes")


class _Client(NamedTuple):
    """What is used of httpx."""

    HTTPError: Any
    InvalidURL: Any
    Client: Any
    AsyncClient: Any
    create_ssl_context: Any


def _client() -> _Client:
    try:
        import httpx
    except ImportError:
        raise ConfigurationError('jwks_url= needs httpx: pip install "usagekeeper[jwt,http]"') from None
    return _Client(httpx.HTTPError, httpx.InvalidURL, httpx.Client, httpx.AsyncClient, httpx.create_ssl_context)
