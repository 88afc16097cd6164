"""A project of a user: modules in an empty folder, and the command line run in it."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from click.testing import CliRunner, Result

from usagekeeper.cli import main
from usagekeeper.records import UsageRecord
from usagekeeper.stores.sqlite import SqliteStore


class Project:
    """A folder with the modules of a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, source: str, name: str = "shop") -> None:
        (self.folder / f"{name}.py").write_text(dedent(source))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """We are in an empty folder, and nothing of it stays imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in os.environ:
        if name.startswith(("USAGEKEEPER_", "UVICORN_", "GUNICORN_", "WEB_", "FORWARDED_")):
            monkeypatch.delenv(name)
    before = set(sys.modules)
    yield Project(tmp_path)
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def filled(tmp_path: Path) -> Callable[[Sequence[UsageRecord]], None]:
    """Puts records into the store of the project."""

    def fill(records: Sequence[UsageRecord]) -> None:
        store = SqliteStore(tmp_path / "usage.db")
        store.append(records)
        store.close()

    return fill
