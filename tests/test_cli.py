"""The command line: what it says to a wrong call, and how it ends."""

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

from usagekeeper import UsageError, __version__
from usagekeeper.cli import main
from usagekeeper.demo import command


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_it_runs_as_a_module_and_says_its_version() -> None:
    ended = run("-m", "usagekeeper", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"usagekeeper, version {__version__}\n")


def test_help_tells_every_option_of_the_demo() -> None:
    said = invoke("demo", "--help").output
    assert all(option in said for option in ("--seconds", "--port", "--json"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["dmeo"], "No such command 'dmeo'", id="unknown-command"),
        pytest.param(["demo", "--second", "1"], "No such option '--second'", id="unknown-option"),
        pytest.param(["demo", "--seconds", "-1"], "-1 is not in the range x>=0", id="negative-time"),
        pytest.param(["demo", "--seconds", "nan"], "'nan' is not a valid integer", id="no-number"),
        pytest.param(["demo", "--port", "65536"], "65536 is not in the range 0<=x<=65535", id="no-port"),
        pytest.param(["demo", "now"], "Got unexpected extra argument (now)", id="extra-argument"),
    ],
)
def test_a_wrong_call_ends_with_2_and_a_sentence(arguments: list[str], sentence: str) -> None:
    ended = invoke(*arguments)
    assert ended.exit_code == 2
    assert sentence in ended.output


@pytest.mark.parametrize(("adds_up", "code"), [(True, 0), (False, 1)])
def test_the_demo_ends_with_1_when_it_does_not_add_up(
    adds_up: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run", lambda **_: adds_up)
    assert invoke("demo").exit_code == code


def test_what_cannot_be_done_ends_with_2_and_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> bool:
        raise UsageError("There is no room.")

    monkeypatch.setattr(command, "run", refuse)
    ended = invoke("demo")
    assert (ended.exit_code, ended.output) == (2, "Error: There is no room.\n")


def test_without_click_it_names_what_to_install() -> None:
    ended = run("-c", "import sys; sys.modules['click'] = None; import usagekeeper.cli")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == 'the command line needs click: pip install "usagekeeper[cli]"\n'


def test_the_command_line_imports_nothing_else_that_is_third_party() -> None:
    loaded = run("-c", "import sys, usagekeeper.cli; print(*sys.modules)").stdout.split()
    assert not {"fastapi", "flask", "uvicorn", "rich", "pydantic", "msgspec"}.intersection(loaded)
