"""`check`: how it is asked, how it ends, and what it shows."""

import pytest

from tests.commands.apps import FASTAPI, FLASK, GOOD
from tests.commands.conftest import Project

BOTH = pytest.mark.parametrize("source", [FASTAPI, FLASK], ids=["fastapi", "flask"])
DEAR = "app = make(policies=[Policy('p', routes=['POST *'], limits=['2/minute'], cost=3)])"


@BOTH
def test_it_ends_with_0_when_allowed_and_with_1_when_refused(source: str, project: Project) -> None:
    project.write(source + DEAR.replace("POST *", "POST /api/*"))
    allowed = project.run("check", "GET", "/api/items/7", "--app", "shop:app")
    refused = project.run("check", "post", "/api/reports", "--app", "shop:app")
    assert (allowed.exit_code, allowed.stdout.splitlines()[-1]) == (0, "allowed")
    assert (refused.exit_code, refused.stdout.splitlines()[-1]) == (1, "refused: 429 quota-exceeded")
    assert "never fits: it costs more than the limit" in refused.stdout


@BOTH
def test_headers_address_and_host_are_those_that_are_given(source: str, project: Project) -> None:
    project.write(source + GOOD)
    said = project.json(
        "check", "GET", "/api/items/7?a=b", "--header", "X-Customer: acme", "--from", "192.0.2.1", "--app", "shop:app"
    )
    assert (said["route"].startswith("/api/items/"), said["client"], said["subject"]) == (True, "192.0.2.1", "acme")
    project.write(source + "app = make(policies=[Policy('p', identity=Host(), limits=['2/minute'])])")
    assert project.json("check", "GET", "/", "--host", "Shop.test:80", "--app", "shop:app")["subject"] == "shop.test"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["GET", "/", "--header", "X"], "--header 'X' is no header", id="no-colon"),
        pytest.param(["GET", "/", "--header", "A: b\r\nC: d"], "is no header: write --header", id="two-headers"),
        pytest.param(["GET", "/", "--header", "ä: b"], "is no header", id="no-ascii"),
        pytest.param(["GET", "x"], "a path begins with a slash", id="no-path"),
        pytest.param(["GET", "/", "--from", "me"], "'me' is no address", id="no-address"),
        pytest.param(["GET"], "Missing argument 'PATH'", id="no-target"),
    ],
)
def test_a_wrong_question_ends_with_2(arguments: list[str], sentence: str, project: Project) -> None:
    project.write(FASTAPI + GOOD)
    ended = project.run("check", *arguments, "--app", "shop:app")
    assert (ended.exit_code, sentence in ended.stderr) == (2, True)


@BOTH
def test_what_a_client_wrote_does_nothing_to_the_terminal(source: str, project: Project) -> None:
    project.write(source + "app = make(policies=[Policy('p', identity=Query('who'), limits=['2/minute'])])")
    target = "/a%0a%1b[2J%E2%80%AE?who=%0d%0aallowed%1b[31m"
    for more in ([], ["--json"]):
        shown = project.run("check", "GET", target, "--app", "shop:app", *more).stdout
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown
        assert all(line.isprintable() for line in shown.splitlines())


def test_counts_that_are_not_there_yet_are_told(project: Project) -> None:
    project.write(FASTAPI + GOOD)
    assert "nothing is counted yet" in project.run("check", "GET", "/api/items/7", "--app", "shop:app").stdout
    project.write(FASTAPI + GOOD.replace("make(", "make(counters='memory://',"))
    assert "known to the server's process alone" in project.run("check", "GET", "/api/x", "--app", "shop:app").stdout


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param("", ["policies   none: recorded, never limited", "allowed"], id="no-policy"),
        pytest.param("whitelist=['/api/*']", ["not watched: it passes through"], id="whitelisted"),
        pytest.param("enabled=False", ["not watched: it passes through"], id="off"),
        pytest.param(
            "policies=[Policy('p', identity=Header('X'), limits=['2/minute'], on_missing_identity='reject')]",
            ['  subject  nobody is named by Header("X")', "refused: 401 missing-identity"],
            id="nobody",
        ),
        pytest.param("policies=[Policy('p')]", ["           this policy has no limits", "allowed"], id="no-limit"),
    ],
)
def test_what_is_not_counted_says_why(options: str, lines: list[str], project: Project) -> None:
    project.write(FASTAPI + f"app = make({options})")
    shown = project.run("check", "GET", "/api/items/7", "--app", "shop:app").stdout.splitlines()
    assert [line for line in shown if line in lines] == lines
