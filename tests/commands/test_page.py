"""The page of the command line: its transcripts are what the commands print, its tables are those of the code."""

import asyncio
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from tests.commands.conftest import Project
from tests.helpers import AsgiCall
from usagekeeper.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/command-line.md").read_text()
TRANSCRIPTS = [
    (match[1], match[2])
    for match in re.finditer(r"^```console\n\$ usagekeeper (.+)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)
]


@pytest.fixture
def used(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The example of the README after six calls of a customer and one of a stranger."""
    project.write((ROOT / "examples/fastapi_app.py").read_text(), "fastapi_app")
    monkeypatch.setenv("USAGEKEEPER_APP", "fastapi_app:app")
    call = AsgiCall()
    call.app = import_module("fastapi_app").app
    for _ in range(6):
        call.status("GET", "/api/items/7", {"X-Customer": "acme", "User-Agent": "curl/8.5.0"}, client="127.0.0.1")
    call.status("GET", "/wp-admin%0d%0a%1b[2J", {"User-Agent": "curl/8.5.0"}, client="127.0.0.1")
    asyncio.run(shut_down(call.app))
    yield project
    call.close()


async def shut_down(app: Any) -> None:
    """What a server says when it starts and ends: the keeper writes its records."""
    said = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, str]:
        return {"type": next(said)}

    async def send(message: Mapping[str, Any]) -> None:
        assert message["type"].endswith("complete")

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)


def masked(text: str) -> str:
    """Without moments, durations, waits and folders."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", "MOMENT", text)
    text = re.sub(r"[\d.]+ ms", "X ms", text)
    text = re.sub(r"in \d+ s|t=\d+|((?:reset|retry-after): )\d+", r"\1X", text, flags=re.IGNORECASE)
    return re.sub(r"/\S+/(?=usagekeeper\.)", "/", text).strip()


@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS, ids=[command for command, _ in TRANSCRIPTS])
def test_a_transcript_is_what_is_printed(command: str, shown: str, used: Project) -> None:
    assert masked(used.run(*shlex.split(command)).stdout) == masked(shown)


def test_every_command_that_looks_has_a_transcript() -> None:
    assert {command.split()[0] for command, _ in TRANSCRIPTS} == {"routes", "check", "tail", "doctor"}


@pytest.mark.parametrize("name", ["routes", "check", "tail", "doctor"])
def test_the_page_tells_every_option(name: str) -> None:
    text = PAGE[PAGE.index(f"\n## {name}") :].partition("\n## ")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(--[\w-]+)", text)) | {"--app", "--json"}
    options = [one for one in main.commands[name].params if isinstance(one, click.Option)]
    assert told == {word for option in options for word in (*option.opts, *option.secondary_opts)}
