"""The keeper: it opens nothing before it is used, shares what it should, and survives forks and exits."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, Reply, WsgiCall, asgi_application, wsgi_application
from usagekeeper import ConfigurationError, Header, Policy, RecordQuery, UsageKeeper, asgi, wsgi
from usagekeeper.counters.memory import MemoryCounters
from usagekeeper.counters.sqlite import SqliteCounters
from usagekeeper.stores.memory import MemoryStore
from usagekeeper.stores.sqlite import SqliteStore

LIMITED = Policy("p", limits=["2/minute"])


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    one: Call[Any] = request.param()
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and we are in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrapped_asgi(**options: Any) -> Any:
    return asgi.UsageMiddleware(asgi_application(lambda received: Reply()), **options)


def wrapped_wsgi(**options: Any) -> Any:
    return wsgi.UsageMiddleware(wsgi_application(lambda received: Reply()), **options)


# -- where things are -------------------------------------------------------------------------------------------------


def test_the_default_store_is_a_file_of_this_folder_wherever_we_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = UsageKeeper()
    monkeypatch.chdir("/")
    assert isinstance(keeper.store, SqliteStore)
    assert isinstance(keeper.counters, SqliteCounters)
    assert (keeper.store.path, keeper.counters.path) == (folder / "usagekeeper.db", folder / "usagekeeper.counters.db")


@pytest.mark.parametrize("url", ["sqlite:///data/api.usage.db", "sqlite:///{folder}/data/api.usage.db"])
def test_counters_are_kept_beside_the_store_in_a_file_of_their_own(folder: Path, url: str) -> None:
    (folder / "data").mkdir()
    keeper = UsageKeeper(store=url.format(folder=folder))
    assert isinstance(keeper.counters, SqliteCounters)
    assert keeper.counters.path == folder / "data/api.usage.counters.db"


def test_counters_of_a_store_in_memory_are_in_memory() -> None:
    keeper = UsageKeeper(store="memory://")
    assert isinstance(keeper.counters, MemoryCounters)


def test_objects_are_taken_as_they_are() -> None:
    store, counters = MemoryStore(), MemoryCounters()
    keeper = UsageKeeper(store=store, counters=counters)
    assert (keeper.store, keeper.counters) == (store, counters)


def test_the_places_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="usagekeeper"):
        UsageKeeper()
    assert f"store: {folder}/usagekeeper.db" in caplog.messages
    assert f"counters: {folder}/usagekeeper.counters.db" in caplog.messages


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"store": "sqlite:///missing/x.db"}, id="no such folder"),
        pytest.param({"store": "sqlite:///file/x.db"}, id="a file for a folder"),
        pytest.param({"store": "sqlite:///."}, id="a folder for a file"),
        pytest.param({"counters": "sqlite:///missing/x.db"}, id="no such folder for counters"),
        pytest.param({"counters": "sqlite:///file/x.db"}, id="a file for the counters' folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_at_the_start(folder: Path, options: dict[str, Any]) -> None:
    (folder / "file").touch()
    with pytest.raises(ConfigurationError, match=str(folder)):
        UsageKeeper(**options)
    assert os.listdir(folder) == ["file"]


def test_counters_never_share_a_file_with_records(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="file"):
        UsageKeeper(store="sqlite:///one.db", counters="sqlite:///one.db")


@pytest.mark.parametrize("option", ["store", "counters"])
def test_a_password_in_a_url_is_not_repeated(option: str) -> None:
    options: dict[str, Any] = {"store": "memory://", option: "oracle://ann:hunter2@host/db"}
    with pytest.raises(ConfigurationError) as told:
        UsageKeeper(**options)
    assert "hunter2" not in str(told.value)


# -- when things are opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [UsageKeeper, wrapped_asgi, wrapped_wsgi])
def test_a_constructor_opens_nothing_and_starts_nothing(folder: Path, build: Callable[..., Any]) -> None:
    before = threading.enumerate()
    built = build(policies=[LIMITED])
    assert (os.listdir(folder), threading.enumerate()) == ([], before)
    assert getattr(built, "keeper", built).epoch is None


def test_the_first_request_opens(folder: Path, call: Call[Any]) -> None:
    call.behind(policies=[LIMITED], store="sqlite:///usage.db")
    assert call().record.status == 200
    assert {"usage.db", "usage.counters.db"} <= set(os.listdir(folder))


def test_a_request_that_is_not_watched_opens_nothing(folder: Path, call: Call[Any]) -> None:
    call.behind(policies=[LIMITED], store="sqlite:///usage.db", whitelist=["/api/x"])
    assert call.status() == 200
    assert os.listdir(folder) == []


def test_a_keeper_that_is_switched_off_opens_nothing(folder: Path, call: Call[Any]) -> None:
    call.behind(policies=[LIMITED], store="sqlite:///usage.db", enabled=False)
    assert call.status() == 200
    assert os.listdir(folder) == []


def test_a_closed_keeper_is_opened_by_use(folder: Path, call: Call[Any]) -> None:
    call.behind(policies=[LIMITED], store="sqlite:///usage.db")
    call()
    call.keeper.close()
    assert (call().status, len(call.recorded())) == (200, 2)
    assert call.status() == 429


def test_closing_twice_or_unused_is_nothing(folder: Path) -> None:
    keeper = UsageKeeper()
    keeper.close()
    keeper.close()
    assert os.listdir(folder) == []


def test_a_keeper_that_nobody_holds_is_gone() -> None:
    keeper = UsageKeeper(store="memory://")
    gone = weakref.ref(keeper)
    keeper.start()
    keeper.close()
    del keeper
    gc.collect()
    assert gone() is None


# -- who shares what --------------------------------------------------------------------------------------------------


def test_middlewares_of_one_keeper_share_limits_and_records(call: Call[Any]) -> None:
    keeper = call.keep(policies=[LIMITED])
    statuses = []
    for _ in range(3):
        call.behind(keeper=keeper)
        statuses.append(call.status())
    assert statuses == [200, 200, 429]
    assert len(call.recorded()) == 3


def test_both_drivers_may_share_one_keeper() -> None:
    one, other = AsgiCall(), WsgiCall()
    keeper = one.keep(policies=[LIMITED])
    one.behind(keeper=keeper)
    other.behind(keeper=keeper)
    assert [each.status() for each in (one, other, one, other)] == [200, 200, 429, 429]
    one.close()
    other.close()


def test_two_keepers_in_memory_share_nothing(call: Call[Any]) -> None:
    for _ in range(2):
        call.behind(policies=[LIMITED])
        assert call.statuses(3) == [200, 200, 429]


@pytest.mark.parametrize(
    ("applications", "last"), [(("one", "one"), 429), (("one", "other"), 200)], ids=["equal", "not"]
)
def test_keepers_of_one_file_share_limits_where_the_application_is_equal(
    folder: Path, call: Call[Any], applications: tuple[str, str], last: int
) -> None:
    for application in applications:
        call.behind(policies=[LIMITED], store="sqlite:///usage.db", application=application)
        statuses = call.statuses(2)
    assert statuses == [last, last]


def test_keepers_of_one_file_have_one_store(folder: Path) -> None:
    assert UsageKeeper().store is UsageKeeper(store=f"sqlite:///{folder}/usagekeeper.db").store


def test_records_of_two_applications_in_one_file_are_told_apart(folder: Path, call: Call[Any]) -> None:
    for application in ("one", "other", "other"):
        call.behind(store="sqlite:///usage.db", application=application)
        call.status()
    call.recorded()
    assert len(list(call.keeper.store.read(RecordQuery(application="other")))) == 2


@pytest.mark.parametrize("text", ["' OR 1=1 --", '"; DROP TABLE records; --', "%", "_", "\x00"], ids=ascii)
def test_a_question_to_the_store_is_no_statement(folder: Path, call: Call[Any], text: str) -> None:
    call.behind(store="sqlite:///usage.db", policies=[Policy("p", identity=Header("X-Customer"))])
    call(headers=[("x-customer", "acme")])
    queries = [RecordQuery(subject=text), RecordQuery(application=text), RecordQuery(route=text)]
    for query in queries:
        assert list(call.keeper.store.read(query)) == []
    assert len(list(call.keeper.store.read(RecordQuery(subject="acme")))) == 1


# -- keeper= and options ----------------------------------------------------------------------------------------------

CONFLICT = r"give either keeper= or options, not both: put application, policies into UsageKeeper\(...\)"


def test_a_wsgi_middleware_refuses_a_keeper_and_options() -> None:
    with pytest.raises(ConfigurationError, match=CONFLICT):
        wrapped_wsgi(keeper=UsageKeeper(store="memory://"), policies=[], application="a")


def test_an_asgi_middleware_with_a_keeper_and_options_answers_nobody() -> None:
    middleware = wrapped_asgi(keeper=UsageKeeper(store="memory://"), policies=[], application="a")
    with pytest.raises(ConfigurationError, match=CONFLICT):
        asyncio.run(middleware({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None))


def test_an_asgi_middleware_with_a_wrong_option_fails_the_start() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    asyncio.run(wrapped_asgi(polices=[])({"type": "lifespan"}, receive, send))
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"] == "ConfigurationError: there is no option 'polices': did you mean 'policies'?"


@pytest.mark.parametrize("keeper", ["sqlite:///usage.db", UsageKeeper, 5], ids=["url", "class", "number"])
def test_what_is_no_keeper_is_told(keeper: Any) -> None:
    with pytest.raises(ConfigurationError, match="keeper= is a UsageKeeper, not"):
        wrapped_wsgi(keeper=keeper)


def test_options_are_given_by_keyword() -> None:
    with pytest.raises(TypeError):
        UsageKeeper("memory://")  # type: ignore[call-arg]


# -- processes --------------------------------------------------------------------------------------------------------

SERVE = """
import os, signal, sys, threading
from usagekeeper import Policy, RecordQuery, UsageKeeper
from usagekeeper.wsgi import UsageMiddleware

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

def serve(times=1):
    for _ in range(times):
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "1.2.3.4", "wsgi.url_scheme": "http"}
        statuses = []
        body = middleware(environ, lambda status, headers: statuses.append(status[:3]) or print)
        list(body)
        body.close()
    return statuses[0]

def in_child(act):
    # What hangs is ended by an alarm, which the parent sees.
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(20)
        act()
        sys.stdout.flush()
        os._exit(0)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def ids(keeper):
    return [str(record.id) for record in keeper.store.read(RecordQuery())]
"""


def shown(folder: Path, script: str) -> list[str]:
    """What a program prints that serves requests in *folder*."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SERVE + script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_a_forked_child_records_under_ids_of_its_own(tmp_path: Path) -> None:
    script = """
keeper = UsageKeeper(clock=lambda: 1_700_000_000.0)
middleware = UsageMiddleware(app, keeper=keeper)
serve(3)
children = [in_child(lambda: (serve(2), keeper.close())) for _ in range(3)]
serve(2)
print(*map(ended, children), keeper.flush())
print(len(ids(keeper)), len(set(ids(keeper))))
"""
    assert shown(tmp_path, script) == ["0 0 0 True", "11 11"]


def test_a_forked_child_does_not_deliver_what_its_parent_recorded(tmp_path: Path) -> None:
    script = """
from usagekeeper.stores.memory import MemoryStore
class Counting(MemoryStore):
    taken = 0
    def append(self, records):
        self.taken += len(records)
        return super().append(records)

release = threading.Event()
class Slow(Counting):
    def append(self, records):
        release.wait()
        return super().append(records)

keeper = UsageKeeper(store=Slow(), counters="memory://")
middleware = UsageMiddleware(app, keeper=keeper)
serve(5)
child = in_child(lambda: (release.set(), serve(2), keeper.flush(), print(keeper.store.taken)))
print(ended(child))
release.set()
print(keeper.flush(), keeper.store.taken)
"""
    assert shown(tmp_path, script) == ["2", "0", "True 5"]


def test_attack_fork_a_forked_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held(tmp_path: Path) -> None:
    script = """
from usagekeeper.limits import LimitSet
from usagekeeper.values import Charge, Operation
inside, release = threading.Event(), threading.Event()

def hold(words, now, cost):
    inside.set()
    release.wait()
    return words

keeper = UsageKeeper(store="memory://", policies=[Policy("p", limits=["9/minute"])])
middleware = UsageMiddleware(app, keeper=keeper)
serve()
limits = LimitSet("default", "other", [])
limits.allocate = hold
holding = Operation([Charge(limits, "x", 1)], 0)
thread = threading.Thread(target=keeper.counters.apply, args=[holding])
thread.start()
inside.wait()
child = in_child(lambda: print(serve()))
print(ended(child))
release.set()
thread.join()
"""
    assert shown(tmp_path, script) == ["200", "0"]


def test_a_child_forked_before_the_first_request_starts_by_itself(tmp_path: Path) -> None:
    script = """
keeper = UsageKeeper(policies=[Policy("p", limits=["5/minute"])])
middleware = UsageMiddleware(app, keeper=keeper)
print(*map(ended, [in_child(lambda: (serve(2), keeper.close())) for _ in range(2)]))
print(serve(), serve())
keeper.flush()
print(len(set(ids(keeper))))
"""
    assert shown(tmp_path, script) == ["0 0", "200 429", "6"]


def test_what_is_buffered_is_written_when_the_process_ends(tmp_path: Path) -> None:
    assert shown(tmp_path, "middleware = UsageMiddleware(app)\nprint(serve(9))") == ["200"]
    assert shown(tmp_path, "print(len(ids(UsageKeeper())))") == ["9"]
