"""What the README and the pages under docs/ say, done: their programs run, their tables are true."""

import ast
import datetime
import http.client
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import usagekeeper
from usagekeeper import Policy, RecordQuery, Request, Route, UsageKeeper, UsageRecord
from usagekeeper.config import Settings, read_settings
from usagekeeper.identity import verified
from usagekeeper.stores import open_store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
STORE = "sqlite:///{}/usagekeeper.db"

NAMES: dict[str, Any] = {name: getattr(usagekeeper, name) for name in usagekeeper.__all__}
NAMES |= {"time": time, "timedelta": datetime.timedelta}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str, text: str = README) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def table(text: str) -> list[list[str]]:
    """The rows below the head of the first table in *text*."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def code(cell: str) -> str:
    found = re.match(r"`([^`]+)`", cell)
    assert found, cell
    return found[1]


def value(expression: str) -> Any:
    return eval(expression, {**NAMES})


FASTAPI, FLASK, *PROGRAMS = blocks(README, "python")
FIRST, SIXTH = blocks(README, "console")


# -- the two applications ---------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A response as curl -i shows it, and its headers by name."""

    status: int
    headers: dict[str, str]
    text: str


class Server:
    """A server in a process of its own, on a port of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        self.port = 0
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break

    def get(self, path: str, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            pairs = [f"{name}: {value}" for name, value in answer.getheaders()]
            shown = [f"HTTP/1.1 {answer.status} {answer.reason}", *pairs, "", answer.read().decode()]
            lower = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, lower, "\n".join(shown))
        finally:
            connection.close()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)


@contextmanager
def serving(folder: Path, *command: str) -> Iterator[Server]:
    arguments = [sys.executable, "-m", *command]
    with subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        guard = threading.Timer(90, process.kill)
        guard.start()
        try:
            yield Server(process)
        finally:
            guard.cancel()
            process.kill()


def recorded(folder: Path) -> list[UsageRecord]:
    store = open_store(STORE.format(folder))
    try:
        return list(store.read(RecordQuery()))
    finally:
        store.close()


def run(program: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def masked(text: str) -> str:
    """Without what differs from one moment to the next."""
    text = re.sub(r"(?m)^(date|x-ratelimit-reset|retry-after): .*$", r"\1: ...", text)
    return re.sub(r";t=\d+", ";t=...", text).strip()


@pytest.mark.parametrize(("block", "name"), [(FASTAPI, "fastapi_app"), (FLASK, "flask_app")])
def test_the_applications_are_those_of_the_examples(block: str, name: str) -> None:
    assert block == (ROOT / f"examples/{name}.py").read_text()
    assert len([line for line in block.splitlines() if line]) <= 15


def test_the_fastapi_application_answers_as_the_transcript_says(tmp_path: Path) -> None:
    (tmp_path / "fastapi_app.py").write_text(FASTAPI)
    with serving(tmp_path, "uvicorn", "--port", "0", "fastapi_app:app") as server:
        answers = [server.get("/api/items/7", **{"X-Customer": "acme"}) for _ in range(6)]
        assert server.get("/openapi.json").status == 200
        server.end()

    assert [answer.status for answer in answers] == [200] * 5 + [429]
    for shown, answer in ((FIRST, answers[0]), (SIXTH, answers[5])):
        command, _, text = shown.partition("\n")
        assert command == "$ curl -i -H 'X-Customer: acme' http://127.0.0.1:8000/api/items/7"
        assert masked(answer.text) == masked(text)
    assert 0 < int(answers[5].headers["retry-after"]) <= 12

    records = recorded(tmp_path)
    assert [record.outcome for record in records] == ["allowed"] * 5 + ["refused"]
    assert {record.route for record in records} == {"/api/items/{item_id}"}
    reading = next(block for block in PROGRAMS if "open_store" in block)
    assert [run(reading, tmp_path)] == blocks(section("What you see"), "text")


def test_the_flask_application_answers_alike_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "flask_app.py").write_text(FLASK)
    with serving(tmp_path, "gunicorn", "--workers", "2", "--bind", "127.0.0.1:0", "flask_app:app") as server:
        answers = [server.get("/api/items/7", **{"X-Customer": "acme"}) for _ in range(6)]
        server.end()

    assert [answer.status for answer in answers] == [200] * 5 + [429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0"]
    assert '{"id":7,"left":4}' in answers[0].text
    assert answers[5].headers["content-type"] == "application/problem+json"
    assert 0 < int(answers[5].headers["retry-after"]) <= 12
    assert sorted(record.outcome for record in recorded(tmp_path)) == ["allowed"] * 5 + ["refused"]


# -- the other programs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.splitlines()[0])
def test_a_program_of_the_readme_runs(program: str, tmp_path: Path) -> None:
    run(program, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    run("\n\n".join(blocks(page.read_text(), "python")), tmp_path)


def test_the_counters_of_the_page_pass_the_conformance_suite(tmp_path: Path) -> None:
    program = "\n\n".join(blocks((ROOT / "docs/writing-counters.md").read_text(), "python"))
    (tmp_path / "test_dict.py").write_text(program)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "test_dict.py",
    ]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


# -- the tables -------------------------------------------------------------------------------------------------------


def test_the_readme_names_two_commands() -> None:
    assert blocks(README, "sh") == ["scripts/demo\nscripts/test\n"]
    assert set(re.findall(r"scripts/\w+", README)) == {"scripts/demo", "scripts/test"}
    assert all(os.access(ROOT / name, os.X_OK) for name in ("scripts/demo", "scripts/test"))


def test_the_table_of_options_is_the_settings() -> None:
    told = {code(name): value(code(default)) for name, default, _ in table(section("Options"))}
    assert list(told) == list(Settings.model_fields)
    assert read_settings(told, {}) == read_settings({}, {})


def test_the_options_of_the_environment_are_those_that_are_told() -> None:
    told = re.findall(r"`(\w+)`", section("Options").split("\n\n")[-2].split("are also read")[0])
    read = []
    for name in Settings.model_fields:
        try:
            read += [name] if read_settings({}, {f"USAGEKEEPER_{name.upper()}": "?"}) != read_settings({}, {}) else []
        except usagekeeper.ConfigurationError:
            read.append(name)
    assert told == read


def test_the_table_of_policies_is_the_policy() -> None:
    told = {code(name): value(code(default)) for name, default, _ in table(section("Policies"))}
    parameters = dict(inspect.signature(Policy).parameters)
    del parameters["name"]
    assert told == {
        name: list(one.default) if isinstance(one.default, tuple) else one.default for name, one in parameters.items()
    }


@pytest.mark.parametrize(
    ("line", "where"),
    [pytest.param(code(line), where, id=goal) for goal, line, where in table(section("I want to ..."))],
)
def test_a_line_to_add_is_taken(line: str, where: str, tmp_path: Path) -> None:
    given = value(f"dict({line})".replace("/var/lib/shop", str(tmp_path)))
    if where == "policy":
        UsageKeeper(store="memory://", policies=[Policy("default", **given)])
    else:
        assert where == "option"
        UsageKeeper(**{"store": "memory://", "counters": "memory://", **given})


@pytest.mark.parametrize("cell", [row[0] for row in table(section("Patterns"))])
def test_a_pattern_of_the_table_is_one(cell: str) -> None:
    assert all(Route.parse(pattern) for pattern in re.findall(r"`([^`]+)`", cell))


def test_patterns_are_refused_as_told() -> None:
    refused = re.findall(r"`([^`]+)`", section("Patterns").rpartition("than they seem to")[2])
    assert len(refused) == 3
    for pattern in refused:
        with pytest.raises(usagekeeper.ConfigurationError):
            Route.parse(pattern)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/identity.md"], ids=["readme", "identity"])
def test_the_strategies_are_all_there_are(page: Path) -> None:
    first = table(section("Strategies") if page.name == "README.md" else page.read_text())
    told = {found[1] for row in first if (found := re.match(r"`([A-Z]\w+)\(", row[0]))}
    names = [name for name in usagekeeper.__all__ if hasattr(NAMES[name], "sources") or name == "BearerClaim"]
    assert told == set(names)


@pytest.mark.parametrize("cell", [row[0] for row in table(section("Strategies")) if row[0].startswith("`")])
def test_a_strategy_of_the_table_is_one(cell: str) -> None:
    verified(value(code(cell)), lambda claim: lambda token: "subject")


def test_every_field_of_a_record_is_explained() -> None:
    told = [code(row[0]) for row in table((ROOT / "docs/records.md").read_text().partition("`record.id`")[0])]
    assert sorted(told) == sorted(UsageRecord.__struct_fields__)


def test_what_a_callable_may_ask_is_there() -> None:
    text = (ROOT / "docs/identity.md").read_text()
    asked = re.findall(r"`(\w+)(?:\(name\))?`", text[text.index("A callable asks") :].partition(".")[0])
    assert len(asked) == 8
    known = {*dir(Request), *Request.__struct_fields__}
    assert set(asked) <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles], anchor


def test_the_programs_are_python_that_a_reader_can_copy() -> None:
    for text in (README, *(page.read_text() for page in PAGES)):
        for block in blocks(text, "python"):
            ast.parse(block)
            assert max(map(len, block.splitlines())) <= 120
