"""The composition root: one keeper holds the rules, the counters, the store and the recorder of an application.

Constructing one opens nothing and starts nothing; the first watched request of each process does. A forked child
drops, never closes, what it inherited.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from usagekeeper.bearer import BearerClaim
from usagekeeper.config import Options, Settings, read_settings
from usagekeeper.counters import Counters, open_counters
from usagekeeper.engine import Engine, check_names
from usagekeeper.errors import ConfigurationError
from usagekeeper.identity import verified
from usagekeeper.jwt import Verifier
from usagekeeper.policies import Policy
from usagekeeper.proxies import client_of
from usagekeeper.recorder import Recorder
from usagekeeper.stores import open_store
from usagekeeper.stores.base import UsageStore

if TYPE_CHECKING:
    from typing import Unpack

_LOG: Final = logging.getLogger("usagekeeper")


class UsageKeeper:
    """Knows, limits and records the use of one application.

    *options* are those of the README's table. Raises `ConfigurationError` at once when one is wrong. Middlewares,
    the command line and tests may share one keeper; apps that share a store and counters share limits when their
    *application* is equal.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        settings = read_settings(options)
        self.settings = settings
        self.application = settings.application
        self._enabled = settings.enabled
        self.policies = tuple(settings.all_policies())
        check_names(self.policies)
        self.custom_refusals = settings.on_refusal is not None
        self.clock = settings.clock
        self.now: Callable[[], int] = time.time_ns
        """The clock in nanoseconds since the epoch."""
        self.timer: Callable[[], int] = time.perf_counter_ns
        if settings.clock is not time.time:  # one clock for tests: durations follow it too
            self.now = self.timer = lambda: round(settings.clock() * 1_000_000) * 1000
        self.store: UsageStore = _opened(settings.store, "store", UsageStore, open_store)
        self.counters: Counters = _opened(_beside(settings), "counters", Counters, open_counters)
        _apart(self.store, self.counters)
        self.recorder = Recorder(self.store, retention=settings.retention, clock=settings.clock)
        self.epoch: object = None
        """Replaced when the keeper takes up work in a process; drivers compare it."""
        self.mark = f"usagekeeper.{id(self):x}"
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._verifiers: dict[BearerClaim, Verifier] = {}
        self.identity = verified(settings.parsed_identity(), self._verifier)
        """The strategy of policies that name none."""
        self.ready = [self._with_verifier(policy) for policy in self.policies]
        """The policies, each with what verifies its tokens."""
        self.engine()  # whatever is wrong with the rules is said here
        _KEEPERS.add(self)

    def engine(self) -> Engine:
        """The rules, compiled anew: each middleware adds the routes of its own application."""
        settings = self.settings
        engine = Engine(
            application=settings.application,
            routes=settings.parsed_routes("routes"),
            whitelist=settings.parsed_routes("whitelist"),
            policies=self.ready,
            identity=self.identity,
            client_of=client_of(settings.trusted_proxies),
            exempt=settings.exempt,
            headers=settings.headers,
            on_refusal=settings.on_refusal,
            on_outage=settings.on_outage,
        )
        self._engines.add(engine)
        return engine

    @property
    def disagreements(self) -> int:
        """Requests of this process that the framework served by another route than their records say; 0 as a rule."""
        return sum(engine.disagreements for engine in self._engines)

    @property
    def enabled(self) -> bool:
        """Whether anything is watched; middlewares heed a change with their next request."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        if self.epoch is not None:
            self.epoch = object()

    def _verifier(self, claim: BearerClaim) -> Verifier:
        """One for all equal claims: its keys are fetched once."""
        if claim not in self._verifiers:
            self._verifiers[claim] = Verifier(claim, clock=self.clock, timer=self.timer)
        return self._verifiers[claim]

    def _with_verifier(self, policy: Policy) -> Policy:
        if policy.identity is None:
            return policy
        return replace(policy, identity=verified(policy.identity, self._verifier))

    def start(self) -> None:
        """Take up work in this process; the drivers call it before the first watched request."""
        if self.epoch is None:
            self.epoch = object()
            atexit.register(_close, weakref.ref(self))
            _finalize(weakref.ref(self))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every record made so far is in the store; False when that took longer than *timeout* seconds."""
        return self.recorder.flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is buffered and let go of files and connections; later use opens them again."""
        self.recorder.close(timeout)
        self.counters.close()
        self.store.close()
        self.epoch = None

    def _drop(self) -> None:
        """In a forked child: forget what belongs to the parent."""
        self.epoch = None
        for verifier in self._verifiers.values():
            verifier.drop()
        self.recorder.drop()
        self.counters.drop()
        self.store.drop()


def keeper_of(keeper: UsageKeeper | None, options: Options) -> UsageKeeper:
    """The keeper that a middleware was given, or one built from its *options*."""
    if keeper is None:
        return UsageKeeper(**options)
    if options:
        raise ConfigurationError(
            f"give either keeper= or options, not both: put {', '.join(sorted(options))} into UsageKeeper(...)"
        )
    if not isinstance(keeper, UsageKeeper):
        raise ConfigurationError(f"keeper= is a UsageKeeper, not {keeper!r}")
    return keeper


def _opened(given: Any, option: str, protocol: Any, opener: Callable[[str], Any]) -> Any:
    if isinstance(given, str):
        opened = opener(given)
        check = getattr(opened, "check", None)
        if check is not None:
            check()
            _LOG.info("%s: %s", option, opened.path)
        return opened
    if isinstance(given, protocol) and not isinstance(given, type):
        return given
    raise ConfigurationError(f'{option} is a URL such as "sqlite:///usagekeeper.db" or an object, not {given!r}')


def _beside(settings: Settings) -> Any:
    """Where "auto" counts: in a file of its own beside the store's, because SQLite has one writer a file."""
    if settings.counters != "auto":
        return settings.counters
    store = settings.store
    if isinstance(store, str):
        path = Path(store.removeprefix("sqlite:///")) if store.startswith("sqlite:///") else None
    else:
        path = getattr(store, "path", None)
    return "memory://" if path is None else f"sqlite:///{path.with_name(path.stem + '.counters.db')}"


def _apart(store: object, counters: object) -> None:
    path = getattr(store, "path", None)
    if path is not None and path == getattr(counters, "path", None):
        raise ConfigurationError(
            f"store and counters are both {path}, and a SQLite file has one writer: give each a file of its own,"
            ' or leave counters out ("auto" puts them beside the store)'
        )


def _finalize(reference: weakref.ref[UsageKeeper]) -> None:
    """Processes that `multiprocessing` started (workers of granian) leave without `atexit`: they run finalizers."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, _close, (reference,), exitpriority=0)


def _close(reference: weakref.ref[UsageKeeper]) -> None:
    keeper = reference()
    if keeper is not None:
        keeper.close()


def _after_fork() -> None:
    for keeper in list(_KEEPERS):
        keeper._drop()


_KEEPERS: Final[weakref.WeakSet[UsageKeeper]] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
