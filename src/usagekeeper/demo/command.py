"""One run of the demo, from the free port to the last figure."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from types import FrameType
from typing import Any, Final

from usagekeeper.demo import HOST, LIMIT, REPORT_COST, store_url
from usagekeeper.demo.clients import Traffic
from usagekeeper.demo.ledger import Ledger
from usagekeeper.demo.server import served
from usagekeeper.demo.summary import Summary, rows, summary
from usagekeeper.demo.table import Show, text, view
from usagekeeper.errors import UsageError
from usagekeeper.stores import open_store

_STEP: Final = 0.25
"""Seconds between two looks at the figures."""


def run(*, seconds: int, port: int, as_json: bool) -> bool:
    """Run the demo for *seconds* (0: until interrupted) and say whether it added up."""
    if os.name == "nt":
        raise UsageError("the demo counts in files that need flock, which Windows does not have")
    absent = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if absent:
        raise UsageError(f'the demo needs {" and ".join(absent)}: pip install "usagekeeper[cli,fastapi]" uvicorn')
    with TemporaryDirectory(prefix="usagekeeper-demo-", ignore_cleanup_errors=True) as name, _stop() as stop:
        ended = _watch(Path(name), seconds, port, stop, silent=as_json)
    if as_json:
        print(json.dumps(ended.as_json(), indent=2))
    else:
        print(text(ended.clients), ended.sentence(), *ended.failures, sep="\n")
    return ended.adds_up


def _watch(folder: Path, seconds: int, port: int, stop: Stop, *, silent: bool) -> Summary:
    store = open_store(store_url(folder))
    try:
        with served(folder, port) as bound:
            if not silent:
                print(_introduction(bound, seconds), flush=True)
            with nullcontext(_nothing) if silent else view() as show:
                traffic, elapsed = _traffic(bound, seconds, stop, Ledger(store), show)
        ledger = Ledger(store)  # read anew, now that all is written
        ledger.read()
        return summary(elapsed, traffic.tallies, ledger)
    finally:
        store.close()


def _traffic(port: int, seconds: int, stop: Stop, ledger: Ledger, show: Show) -> tuple[Traffic, float]:
    """Let the clients work until the time is over or somebody asks to stop."""
    traffic = Traffic(port)
    began = monotonic()
    traffic.start()
    try:
        while not stop.asked and (not seconds or monotonic() - began < seconds):
            sleep(_STEP)
            ledger.read()
            show(monotonic() - began, rows(traffic.tallies, ledger))
    finally:
        traffic.stop()
    return traffic, monotonic() - began


def _nothing(seconds: float, clients: Any) -> None:
    """Shows nothing."""


def _introduction(port: int, seconds: int) -> str:
    address = f"http://{HOST}:{port}"
    length = f"for {seconds} seconds; ^C ends it before" if seconds else "until ^C"
    return f"""\
A sample API on {address} has customers for you to watch, {length}.
Each may do {LIMIT}; a report costs {REPORT_COST}. Try it yourself, in another terminal:

  curl -i -H 'X-Customer: you' {address}/api/items/1
  curl -i -H 'X-Customer: you' -X POST {address}/api/reports
  curl -i -H 'X-Customer: you' '{address}/api/items/[1-9]'
"""


class Stop:
    """Notes the first wish to end; a second one is not waited for."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _stop() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
