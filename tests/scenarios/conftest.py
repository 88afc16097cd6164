"""What the stories are told with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.scenarios.servers import Program, Server

Serve = Callable[[str, Callable[[int], Sequence[str]]], Server]


class Run(Protocol):
    def __call__(self, source: str, arguments: Sequence[str], name: str = "served") -> Program: ...


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server; it is ended with the test, and what it said is shown when that failed."""
    started: list[Server] = []

    def start(source: str, arguments: Callable[[int], Sequence[str]]) -> Server:
        started.append(Server(tmp_path, source, arguments))
        return started[-1].ready()

    yield start
    end(started)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a program that is no server, or is expected not to become one."""
    started: list[Program] = []

    def start(source: str, arguments: Sequence[str], name: str = "served") -> Program:
        started.append(Program(tmp_path, source, arguments, name))
        return started[-1]

    yield start
    end(started)


def end(programs: Iterable[Program]) -> None:
    for program in programs:
        program.kill()
        print(program.output)  # shown by pytest when the test failed


def folder(path: Path, name: str) -> Path:
    """A folder of its own for one of several."""
    made = path / name
    made.mkdir()
    return made
